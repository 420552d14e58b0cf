"""ONNX Runtime's GPU providers: what they are asked for, and that nothing falls back to the CPU without a word.

No GPU here: the sessions are real ones on the CPU that call themselves GPU sessions (``fake_onnxruntime``).
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ArtifactError, BackendError, InputError, MissingDependencyError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnxruntime as real
from fake_onnxruntime import RTX, FakeOnnxRuntime, GpuDevice
from tiny_onnx import CONFIG, write_model

from yolact_deploy.machine.nvidia import Gpu
from yolact_deploy.runtime import onnxruntime_gpu
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.onnxruntime_gpu import OnnxRuntimeGpuBackend
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOnnxRuntime:
    """A GPU, and an onnxruntime that has all providers."""
    module = FakeOnnxRuntime(tmp_path / "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(onnxruntime_gpu, "require_gpu", lambda index: Gpu(index, "Test GPU", (8, 9), False, 1 << 30))
    plugin = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.get_library_path = lambda: "/plugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    module.rtx_devices = [GpuDevice(0), GpuDevice(1)]
    return module


# -- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
@pytest.mark.parametrize(("tail", "kind"), [("graph", DetectionOutputs), ("host", HeadOutputs)])
def test_outputs(fake: FakeOnnxRuntime, tmp_path: Path, provider: str, tail: str, kind: type) -> None:
    path = write_model(tmp_path / "m.onnx")
    backend = OnnxRuntimeGpuBackend(path, provider=provider, device=1, tail=tail)
    assert (backend.max_batch, backend.fixed_batch, backend.precision) == (4, False, "fp32")
    outputs = backend.run(IMAGES)
    assert isinstance(outputs, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", real)
        expected = OnnxRuntimeBackend(path, tail=tail).run(IMAGES)
    for name, found, wanted in zip(outputs._fields, outputs, expected, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    facts = backend.describe()
    assert facts["provider"] == provider
    assert facts["providers"][0] == onnxruntime_gpu.PROVIDERS[provider]
    assert (facts["device"], facts["tail"]) == ("cuda:1", tail)
    backend.close()


def test_a_run_that_fails(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    backend = OnnxRuntimeGpuBackend(write_model(tmp_path / "m.onnx"), provider="cuda")
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed: .*[Ii]nvalid") as caught:
        backend.run(IMAGES[:, :32])
    assert "\n" not in str(caught.value)
    assert backend._opened.session._enable_fallback is False


# -- what a provider is asked for -----------------------------------------------------------------------------------


def options_of(fake: FakeOnnxRuntime, path: Path, **choices: Any) -> dict[str, str]:
    OnnxRuntimeGpuBackend(path, **choices)
    return fake.sessions[-1][1]


def test_cuda_options(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    assert options_of(fake, path, provider="cuda", device=1) == {"device_id": "1", "use_tf32": "0"}
    assert options_of(fake, path, provider="cuda", tf32=True)["use_tf32"] == "1"
    assert options_of(fake, path, provider="cuda", provider_options={"prefer_nhwc": 1})["prefer_nhwc"] == "1"
    assert OnnxRuntimeGpuBackend(path, provider="cuda", tf32=True).precision == "tf32"


def test_tensorrt_options(fake: FakeOnnxRuntime, tmp_path: Path, caches: Path) -> None:
    dynamic = write_model(tmp_path / "dynamic.onnx")
    fixed = write_model(tmp_path / "fixed.onnx", batch=(2, 2, 2), precision="fp16")
    found = options_of(fake, dynamic, provider="tensorrt")
    assert found["trt_fp16_enable"] == "0"
    assert found["trt_engine_cache_enable"] == "1"
    assert Path(found["trt_engine_cache_path"]).is_dir()
    assert Path(found["trt_engine_cache_path"]).is_relative_to(caches)
    assert found["trt_profile_min_shapes"] == "images:1x64x64x3"
    assert found["trt_profile_opt_shapes"] == "images:2x64x64x3"
    assert found["trt_profile_max_shapes"] == "images:4x64x64x3"
    found = options_of(fake, fixed, provider="tensorrt")
    assert found["trt_fp16_enable"] == "1"  # as the graph is
    assert "trt_bf16_enable" not in found, "older versions do not know it"
    assert not [key for key in found if "profile" in key]
    found = options_of(fake, write_model(tmp_path / "bf16.onnx", precision="bf16"), provider="tensorrt")
    assert (found["trt_fp16_enable"], found["trt_bf16_enable"]) == ("0", "1")
    assert "trt_int8_enable" not in found


@pytest.mark.parametrize("form", ["symmetric", "onnxruntime"])
def test_int8(fake: FakeOnnxRuntime, tmp_path: Path, form: str) -> None:
    """The symmetric form goes to the GPU as it is; TensorRT takes no other."""
    how = {"target": form, "method": "minmax", "images": 3, "images_sha256": "12"}
    path = write_model(tmp_path / "int8.onnx", precision="int8", quantization=how)
    assert OnnxRuntimeGpuBackend(path, provider="cuda").precision == "int8"
    if form == "symmetric":
        assert options_of(fake, path, provider="tensorrt")["trt_int8_enable"] == "1"
        assert options_of(fake, path, provider="rtx")
        return
    for provider in ("tensorrt", "rtx"):
        with pytest.raises(ArtifactError, match=r"does not support its zero points: export it with --int8 --target"):
            OnnxRuntimeGpuBackend(path, provider=provider)


def test_rtx_options(fake: FakeOnnxRuntime, tmp_path: Path, caches: Path) -> None:
    found = options_of(fake, write_model(tmp_path / "m.onnx"), provider="rtx", device=1)
    assert fake.registered == [(RTX, "/plugin.so")]
    devices, given = fake.sessions[-1][2].devices
    assert given == found
    assert devices == [fake.rtx_devices[1]]
    assert found["nv_profile_max_shapes"] == "images:4x64x64x3"
    assert Path(found["nv_runtime_cache_path"]) == caches / "rtx"
    assert "device_id" not in found  # the device is given itself
    options_of(fake, tmp_path / "m.onnx", provider="rtx")
    assert len(fake.registered) == 1  # once in a process


def test_rtx_devices_without_numbers_are_in_order(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    fake.rtx_devices = [GpuDevice(None), GpuDevice(None)]
    options_of(fake, write_model(tmp_path / "m.onnx"), provider="rtx", device=1)
    assert fake.sessions[-1][2].devices[0] == [fake.rtx_devices[1]]


def test_the_names_of_options_stand_in_the_real_libraries() -> None:
    """Only where onnxruntime-gpu or the plugin is installed; their binaries list every option they take."""
    folder = Path(real.__file__).parent / "capi"
    libraries = {name: folder / f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")}
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if spec is not None and spec.origin is not None:
        libraries["rtx"] = Path(spec.origin).parent / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    installed = {provider: path for provider, path in libraries.items() if path.exists()}
    if not installed:
        pytest.skip("this onnxruntime package has no GPU providers")
    metadata = Metadata(config=CONFIG, batch=(1, 2, 4))
    for provider, path in installed.items():
        data = path.read_bytes()
        for name in onnxruntime_gpu._provider_options(provider, metadata, 0, 1, False):
            assert name.encode() in data, (provider, name)


# -- nothing falls back ---------------------------------------------------------------------------------------------


def test_a_provider_that_falls_back(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    fake.falls_back = True
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider does not start on Test GPU .*would use the CPU"):
        OnnxRuntimeGpuBackend(write_model(tmp_path / "m.onnx"), provider="cuda")


def test_a_node_that_falls_back(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    fake.left_to_cpu = ("TopK", "Sigmoid", "Reshape")
    with pytest.raises(BackendError, match="TensorrtExecutionProvider would leave Sigmoid, TopK nodes to the CPU"):
        OnnxRuntimeGpuBackend(path, provider="tensorrt")
    fake.left_to_cpu = ("Reshape",)  # which computes shapes
    backend = OnnxRuntimeGpuBackend(path, provider="tensorrt", tail="host")
    assert set(backend.describe()["shape_nodes_on_cpu"]) == {"Reshape"}
    assert fake.sessions[-1][2].get_session_config_entry("session.record_ep_graph_assignment_info") == "1"


@pytest.mark.parametrize(("batch", "strict"), [((2, 2, 2), True), ((1, 2, 4), False)])
def test_an_onnxruntime_that_cannot_tell_nodes(
    fake: FakeOnnxRuntime, tmp_path: Path, batch: tuple[int, int, int], strict: bool
) -> None:
    """It is told to leave none to the CPU where the batch is fixed; here all are, so that the real session refuses."""

    class Old:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._inner = fake_session(*arguments, **options)

        def get_providers(self) -> list[str]:
            return list(self._inner.get_providers())

        def disable_fallback(self) -> None:
            self._inner.disable_fallback()

    fake_session = fake.InferenceSession
    fake.InferenceSession = Old
    path = write_model(tmp_path / "m.onnx", batch=batch)
    if strict:
        with pytest.raises(BackendError, match="CUDAExecutionProvider would leave some nodes to the CPU"):
            OnnxRuntimeGpuBackend(path, provider="cuda")
    else:
        assert OnnxRuntimeGpuBackend(path, provider="cuda").describe()["shape_nodes_on_cpu"] is None


def test_a_session_that_cannot_be_made(
    fake: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx")

    def refuse(said: str) -> Callable[..., Any]:
        def make(*arguments: Any, **options: Any) -> Any:
            raise RuntimeError(said)

        return make

    fake.InferenceSession = refuse("somewhere.cc:729 Please install TensorRT libraries as mentioned\n\n")  # type: ignore[assignment]
    with pytest.raises(BackendError, match=r"^TensorrtExecutionProvider cannot start\. Install CUDA 13, cuDNN 9 and"):
        OnnxRuntimeGpuBackend(path, provider="tensorrt")
    fake.InferenceSession = refuse("a surprise\nwith a trace")  # type: ignore[assignment]
    with pytest.raises(ArtifactError, match=r"rejects the model with CUDAExecutionProvider: a surprise$"):
        OnnxRuntimeGpuBackend(path, provider="cuda")
    assert capsys.readouterr().out == ""


# -- what must be there ---------------------------------------------------------------------------------------------


def test_no_such_provider(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="expected one of cuda, tensorrt, rtx, got 'dml'"):
        OnnxRuntimeGpuBackend(path, provider="dml")
    fake.get_available_providers = lambda: ["CPUExecutionProvider"]  # type: ignore[method-assign]
    with pytest.raises(
        BackendError, match=r"package \(9\.9\.9\) has no CUDAExecutionProvider\. Install one: .*\[gpu\]"
    ):
        OnnxRuntimeGpuBackend(path, provider="cuda")


def test_a_missing_library_is_named(
    fake: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, real_cdll = write_model(tmp_path / "m.onnx"), ctypes.CDLL
    asked = []

    def load(name: str, *arguments: Any) -> Any:
        if "libonnxruntime_providers" not in name:
            return real_cdll(name, *arguments)
        asked.append(Path(name))
        raise OSError("libcublasLt.so.13: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(BackendError) as caught:
        OnnxRuntimeGpuBackend(path, provider="cuda")
    assert str(caught.value) == (
        "CUDAExecutionProvider cannot start: libcublasLt.so.13 is missing. Install CUDA 13 and cuDNN 9 (JetPack brings "
        "them; elsewhere python -m pip install 'onnxruntime-gpu[cuda,cudnn]')"
    )
    assert asked == [tmp_path / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"]
    assert fake.preloaded == 1
    assert capsys.readouterr().out == ""  # what preload_dlls prints


def test_libraries_that_only_onnxruntime_can_load(
    fake: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name}: undefined symbol: Provider_GetHost")

    monkeypatch.setattr(ctypes, "CDLL", load)
    OnnxRuntimeGpuBackend(write_model(tmp_path / "m.onnx"), provider="cuda")


def test_the_rtx_plugin(fake: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.onnx")
    fake.rtx_devices = []
    message = "TensorRT for RTX does not support Test GPU (compute capability 8.9), TensorRT and TensorRT for RTX"
    with pytest.raises(BackendError, match=re.escape(message)):
        OnnxRuntimeGpuBackend(path, provider="rtx")
    fake.registered.clear()

    def fail(name: str, library: str) -> None:
        raise RuntimeError(f"Failed to load library {library} with error: libcuda.so.1\nmore")

    monkeypatch.setattr(fake, "register_execution_provider_library", fail)
    with pytest.raises(BackendError, match=r"plugin cannot be loaded \(Failed to load .*libcuda\.so\.1\): it requires"):
        OnnxRuntimeGpuBackend(path, provider="rtx")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="python -m pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"):
        OnnxRuntimeGpuBackend(path, provider="rtx")


def test_an_onnxruntime_without_plugins(fake: FakeOnnxRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeOnnxRuntime, "register_execution_provider_library")
    with pytest.raises(BackendError, match=r"requires onnxruntime 1\.24 or later, got 9\.9\.9"):
        OnnxRuntimeGpuBackend(write_model(tmp_path / "m.onnx"), provider="rtx")


def test_the_driver_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> Gpu:
        raise BackendError("no NVIDIA driver here")

    monkeypatch.setattr(onnxruntime_gpu, "require_gpu", missing)
    with pytest.raises(BackendError, match="no NVIDIA driver here"):
        OnnxRuntimeGpuBackend(tmp_path / "absent.onnx", provider="cuda")


# -- the real package -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("", "get_available_providers get_ep_devices register_execution_provider_library preload_dlls cuda_version"),
        ("", "SessionOptions RunOptions InferenceSession OrtDeviceMemoryType"),
        ("SessionOptions", "add_session_config_entry add_provider_for_devices log_severity_level"),
        ("RunOptions", "add_run_config_entry"),
        ("InferenceSession", "get_providers disable_fallback get_provider_graph_assignment_info io_binding"),
        ("InferenceSession", "run run_with_iobinding get_inputs get_outputs"),
        ("OrtEpDevice", "ep_name memory_info"),
        ("OrtMemoryInfo", "device_id"),
        ("OrtDeviceMemoryType", "DEFAULT"),
        ("IOBinding", "bind_input bind_output"),
    ],
)
def test_names_of_the_real_package(owner: str, names: str) -> None:
    place = getattr(real, owner) if owner else real
    for name in names.split():
        assert hasattr(place, name), f"{owner}.{name}"


def test_signatures_of_the_real_package() -> None:
    """Of compiled functions, which have no Python signature: their arguments as their documentation counts them."""
    for function, arguments in (
        (real.SessionOptions.add_provider_for_devices, 3),
        (real.SessionOptions.add_session_config_entry, 3),
        (real.RunOptions.add_run_config_entry, 3),
        (real.OrtEpDevice.memory_info, 2),
        (real.register_execution_provider_library, 2),
        (real.get_ep_devices, 0),
    ):
        text = (function.__doc__ or "").splitlines()[0]
        inside = text.partition("(")[2].rpartition(") ->")[0]
        assert len(re.findall(r"(?:self|arg\d+): ", inside)) == arguments, text

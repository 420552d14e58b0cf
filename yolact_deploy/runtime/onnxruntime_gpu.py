"""ONNX Runtime on an NVIDIA GPU with its CUDA, TensorRT or TensorRT-RTX provider, without fallback to the CPU.

By default ONNX Runtime falls back to the CPU in three places: if libraries of a provider are missing (a line in the
log), if creating the session fails (a print), and for each node without a kernel (silently). Here each of them is an
error that says what to install; only shape computations may stay on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import io
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.cache import cache_folder
from yolact_deploy.config import Size
from yolact_deploy.errors import ArtifactError, BackendError, MissingDependencyError, import_optional
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.machine.nvidia import Gpu, require_gpu, tensorrt_flavours
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import Outputs, numpy_tail
from yolact_deploy.vocabulary import check_word

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}
_RTX_PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
_GPU_PACKAGE = "python -m pip uninstall -y onnxruntime onnxruntime-gpu; python -m pip install 'yolact-deploy[gpu]'"
_ZERO_POINTS = (
    "the file is in the INT8 form of ONNX Runtime on a CPU, and TensorRT does not support its zero points: "
    "export it with --int8 --target tensorrt"
)

#: operators that compute the shapes of dynamic batches; providers leave these on the CPU on purpose
_SHAPE_OPS = frozenset(
    ("Shape", "Size", "Gather", "Unsqueeze", "Squeeze", "Concat", "Cast", "Slice", "Range", "Reshape")
) | frozenset(("Add", "Sub", "Mul", "Div"))

_register = threading.Lock()


@dataclasses.dataclass(frozen=True)
class GpuSession:
    """A session on the GPU, and where its nodes run."""

    session: Any  #: onnxruntime.InferenceSession
    provider: str  #: "cuda", "tensorrt" or "rtx"
    gpu: Gpu
    #: number of nodes per operator that compute shapes on the CPU; None if this ONNX Runtime does not report it
    cpu_nodes: Mapping[str, int] | None

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts."""
        import onnxruntime

        return {
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "provider": self.provider,
            "providers": list(self.session.get_providers()),
            "device": f"cuda:{self.gpu.index}",
            "gpu": str(self.gpu),
            "shape_nodes_on_cpu": None if self.cpu_nodes is None else dict(self.cpu_nodes),
        }


def open_session(
    model: bytes,
    metadata: Metadata,
    *,
    provider: str,
    device: int = 0,
    stream: int | None = None,
    tf32: bool = False,
    provider_options: Mapping[str, object] | None = None,
) -> GpuSession:
    """Create a session that runs ``model`` on a GPU.

    Args:
        model: an exported ONNX file from :func:`~yolact_deploy.graph.onnx_graph.load_graph`
        metadata: of a file that takes a range of sizes, with ``config`` at the one to run
        provider: one of :data:`PROVIDERS`
        device: number of the GPU
        stream: handle of a CUDA stream on which everything must run; by default the session creates its own
        tf32: lets the CUDA provider round the factors of FP32 products to TF32; the other providers decide themselves
        provider_options: further options of the provider; these override the defaults

    Raises:
        MissingDependencyError, BackendError: the provider cannot run here, or cannot run the whole graph.
        ArtifactError: ONNX Runtime or TensorRT rejects the model.
    """
    check_word("provider of onnxruntime on a GPU", provider, PROVIDERS)
    gpu = require_gpu(device)
    if provider != "cuda" and metadata.has_zero_points:
        raise ArtifactError(_ZERO_POINTS)
    ort = import_optional("onnxruntime", "gpu", "Running an ONNX file on a GPU")
    options = _session_options(ort, metadata)
    chosen = {**_provider_options(provider, metadata, device, stream, tf32), **(provider_options or {})}
    named = {key: str(value) for key, value in chosen.items()}
    arguments = _add_provider(ort, options, provider, gpu, named)
    session = _make_session(ort, model, options, arguments, provider)
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise BackendError(_does_not_start(provider, gpu))
    return GpuSession(session, provider, gpu, _cpu_nodes(session, provider))


def _add_provider(ort: Any, options: Any, provider: str, gpu: Gpu, named: dict[str, str]) -> dict[str, Any]:
    """What a session needs beside its options, to which a provider that comes as a plugin is added."""
    if provider == "rtx":
        options.add_provider_for_devices([_rtx_device(ort, gpu)], named)
        return {}
    _require_libraries(ort, provider)
    return {"providers": [(PROVIDERS[provider], named)]}


class OnnxRuntimeGpuBackend(Backend):
    """An exported ONNX file on a GPU in ONNX Runtime, with NumPy arrays in and out.

    Args:
        path: the ONNX file
        provider: "cuda", "tensorrt" or "rtx"
        device: number of the GPU
        tail: "graph" runs Fast NMS and mask assembly in the graph, "host" in NumPy
        tf32, provider_options: as for :func:`open_session`
        size: the input of a file that takes a range of sizes; the usual one by default

    Raises:
        As :func:`open_session`.
        InputError: a size that the file does not take.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        provider: str,
        device: int = 0,
        tail: str = "graph",
        tf32: bool = False,
        provider_options: Mapping[str, object] | None = None,
        size: Size | None = None,
    ) -> None:
        require_gpu(device)  # before the slow steps
        graph = load_graph(path, tail, gpu=True)
        self.metadata = graph.metadata.at_size(size, path)
        self.tail = numpy_tail(self.metadata.config, heads=graph.on_host, mask_iou=graph.mask_iou)
        self.precision = "tf32" if tf32 else self.metadata.precision
        self._opened = open_session(
            graph.data,
            dataclasses.replace(graph.metadata, config=self.metadata.config),
            provider=provider,
            device=device,
            tf32=tf32,
            provider_options=provider_options,
        )

    def run(self, images: NDArray[Any]) -> Outputs:
        try:
            return self.tail.outputs(*self._opened.session.run(None, {"images": images}))
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error

    @property
    def run_stages(self) -> tuple[str, ...]:
        (network,) = super().run_stages
        return (f"upload+{network}+download",)  # one call of ONNX Runtime

    def describe(self) -> dict[str, Any]:
        return {**self._opened.describe(), "tail": self.tail.name}

    def close(self) -> None:
        del self._opened


def first_line(error: BaseException) -> str:
    """The message of an ONNX Runtime exception, without its stack trace."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- options --------------------------------------------------------------------------------------------------------


def _session_options(ort: Any, metadata: Metadata) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if _can_tell_nodes(ort):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    elif metadata.batch[0] == metadata.batch[2]:
        # Older releases support only "all or nothing", and a dynamic batch needs its shapes computed on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if metadata.sizes is not None:  # one of them: what depends on the size is then constant
        for name, side in zip(("height", "width"), metadata.config.input_shape, strict=True):
            options.add_free_dimension_override_by_name(name, side)
    return options


def _can_tell_nodes(ort: Any) -> bool:
    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def _provider_options(
    provider: str, metadata: Metadata, device: int, stream: int | None, tf32: bool
) -> dict[str, object]:
    options: dict[str, object] = {"device_id": device} if provider != "rtx" else {}  # rtx gets the device itself
    if stream is not None:
        options |= {"has_user_compute_stream": 1, "user_compute_stream": stream}
    if provider == "cuda":
        return options | {"use_tf32": int(tf32)}
    prefix = "trt" if provider == "tensorrt" else "nv"
    options |= _profile(prefix, metadata)
    if provider == "rtx":
        return options | {"nv_runtime_cache_path": cache_folder("rtx")}
    return options | {
        # Its networks are weakly typed: without this option it computes an FP16 graph in FP32.
        "trt_fp16_enable": int(metadata.precision == "fp16"),
        # Older versions of ONNX Runtime reject this option.
        **({"trt_bf16_enable": 1} if metadata.precision == "bf16" else {}),
        **({"trt_int8_enable": 1} if metadata.precision == "int8" else {}),  # uses the scales of the Q/DQ nodes
        "trt_engine_cache_enable": 1,
        "trt_engine_cache_path": cache_folder("engines"),
        "trt_timing_cache_enable": 1,
        "trt_timing_cache_path": cache_folder("timing"),
    }


def _profile(prefix: str, metadata: Metadata) -> dict[str, object]:
    """Shapes of the optimization profile; without it, each new batch size rebuilds the engine."""
    low, usual, high = metadata.batch
    if low == high:
        return {}
    height, width = metadata.config.input_shape
    sizes = {"min": low, "opt": usual, "max": high}
    return {f"{prefix}_profile_{name}_shapes": f"images:{n}x{height}x{width}x3" for name, n in sizes.items()}


# -- requirements ---------------------------------------------------------------------------------------------------


def require_provider(provider: str, device: int = 0) -> None:
    """Check what a provider needs, before anything is exported for it.

    Raises:
        MissingDependencyError: a package or a library is missing.
        BackendError: no such GPU, or the provider does not support it.
    """
    gpu = require_gpu(device)
    ort = import_optional("onnxruntime", "gpu", "Running an ONNX file on a GPU")
    if provider == "rtx":
        _rtx_device(ort, gpu)
    else:
        _require_libraries(ort, provider)


def _require_libraries(ort: Any, provider: str) -> None:
    """Raise :class:`MissingDependencyError` with the first missing library of a built-in provider."""
    name = PROVIDERS[provider]
    if name not in ort.get_available_providers():
        raise MissingDependencyError(
            f"this onnxruntime package ({ort.__version__}) has no {name}. Install one: {_GPU_PACKAGE}"
        )
    if hasattr(ort, "preload_dlls"):  # since 1.21: loads CUDA and cuDNN installed by pip
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not library.exists():  # a build with another layout
        return
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        # Symbols that ONNX Runtime itself provides are always missing here; only a missing file is a problem.
        missing, is_file, _ = str(error).partition(": cannot open shared object file")
        if is_file:
            cure = _libraries_cure(ort, provider)
            raise MissingDependencyError(f"{name} cannot start: {missing} is missing. {cure}") from None


def _libraries_cure(ort: Any, provider: str) -> str:
    cuda = str(getattr(ort, "cuda_version", "") or "12").partition(".")[0]
    if provider == "tensorrt":
        return (
            f"Install CUDA {cuda}, cuDNN 9 and TensorRT 10 (JetPack brings them; elsewhere python -m pip install "
            f"'onnxruntime-gpu[cuda,cudnn]' tensorrt-cu{cuda}-libs==10.*), with their folders in LD_LIBRARY_PATH"
        )
    return (
        f"Install CUDA {cuda} and cuDNN 9 (JetPack brings them; elsewhere python -m pip install "
        "'onnxruntime-gpu[cuda,cudnn]')"
    )


def _rtx_device(ort: Any, gpu: Gpu) -> Any:
    """The handle of a GPU in the TensorRT-RTX provider, after registering the plugin."""
    if not hasattr(ort, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"provider rtx requires onnxruntime 1.24 or later, got {ort.__version__}: "
            "python -m pip install -U onnxruntime"
        )
    name = PROVIDERS["rtx"]
    with _register:
        if not any(device.ep_name == name for device in ort.get_ep_devices()):
            _register_rtx(ort, name)
        devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    for position, device in enumerate(devices):
        if _ordinal(ort, device, position) == gpu.index:
            return device
    serves = " and ".join(tensorrt_flavours(gpu.capability)) or "no TensorRT"
    raise BackendError(
        f"TensorRT for RTX does not support {gpu}, {serves} does: use provider=cuda or provider=tensorrt"
    )


def _register_rtx(ort: Any, name: str) -> None:
    try:
        plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    except ImportError as error:
        raise MissingDependencyError(
            f"provider rtx requires the TensorRT-RTX plugin of ONNX Runtime ({error}). "
            f"Install it with: python -m pip install {_RTX_PACKAGE}"
        ) from error
    try:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:
        raise BackendError(
            f"the TensorRT-RTX plugin cannot be loaded ({first_line(error)}): it requires a driver for CUDA 13. "
            f"See yolact-deploy doctor, or reinstall {_RTX_PACKAGE}"
        ) from error


def _ordinal(ort: Any, device: Any, position: int) -> int:
    """Number of the GPU of a handle."""
    try:
        return int(device.memory_info(ort.OrtDeviceMemoryType.DEFAULT).device_id)
    except Exception:  # other providers list the GPUs in order
        return position


# -- sessions -------------------------------------------------------------------------------------------------------


def _make_session(ort: Any, model: bytes, options: Any, arguments: dict[str, Any], provider: str) -> Any:
    try:
        # With fallback enabled, a failure is printed and a session on the CPU is returned.
        session = ort.InferenceSession(model, options, enable_fallback=0, **arguments)
    except Exception as error:
        message = first_line(error)
        if "assigned to the default CPU EP" in message:
            raise BackendError(_not_whole(provider, "some")) from error
        if "Please install TensorRT libraries" in message:
            raise BackendError(f"{PROVIDERS[provider]} cannot start. {_libraries_cure(ort, provider)}") from error
        raise ArtifactError(f"ONNX Runtime rejects the model with {PROVIDERS[provider]}: {message}") from error
    session.disable_fallback()
    return session


def _does_not_start(provider: str, gpu: Gpu) -> str:
    return (
        f"{PROVIDERS[provider]} does not start on {gpu}, and ONNX Runtime would use the CPU instead: "
        "see yolact-deploy doctor for what is missing (driver, CUDA, cuDNN, TensorRT)"
    )


def _not_whole(provider: str, nodes: str) -> str:
    return (
        f"{PROVIDERS[provider]} would leave {nodes} nodes to the CPU: update onnxruntime, use another provider, "
        "or use tail=host, which runs less in the graph"
    )


def _cpu_nodes(session: Any, provider: str) -> Mapping[str, int] | None:
    """Operators that run on the CPU; raises :class:`BackendError` if any does more than compute shapes."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    )
    computing = sorted(set(left) - _SHAPE_OPS)
    if computing:
        raise BackendError(_not_whole(provider, ", ".join(computing)))
    return left

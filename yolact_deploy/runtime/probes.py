"""The checks of `doctor`: each attempt uses one runtime or tool and returns its version and a remark, or raises.

A broken library may end the process, so :mod:`yolact_deploy.runtime.checks` runs each attempt in a child process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolact_deploy.errors import BackendError, YolactDeployError
from yolact_deploy.machine import nvidia

#: ONNX: y = Relu(x), float32 [1], opset 17; so that the checks do not need the onnx package
TINY_ONNX = (
    b'\x08\x08:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class UnusableError(Exception):
    """A runtime does not work here; with the cure."""

    def __init__(self, why: str, cure: str = "", version: str = "") -> None:
        super().__init__(why)
        self.cure = cure
        self.version = version


def _driver() -> tuple[str, str]:
    """CUDA version of the driver, its GPUs, and which TensorRT supports each."""
    driver = _require_driver("")
    described = []
    for gpu in driver.gpus:
        serves = " and ".join(nvidia.tensorrt_flavours(gpu.capability)) or "none"
        described.append(f"{gpu}, supported by {serves}")
    return ".".join(("CUDA " + str(driver.cuda_version[0]), str(driver.cuda_version[1]))), "; ".join(described)


def _require_driver(version: str) -> nvidia.Driver:
    """The driver; raises :class:`UnusableError` with the version of the runtime that needs it."""
    try:
        return nvidia.find_driver()
    except BackendError as error:
        raise _unusable(error, version) from error


#: where the cure starts in the messages of this package
_CURE = re.compile(r"(?:: |[.;] )(?=(?:use|check|see|update|install|reinstall|python -m pip|set) )", re.IGNORECASE)


def _unusable(error: YolactDeployError, version: str = "") -> UnusableError:
    """Split the message of an error into reason and cure."""
    why, *cure = _CURE.split(str(error), maxsplit=1)
    return UnusableError(why, "".join(cure), version)


def _cuda_kernels() -> tuple[str, str]:
    """NVRTC compiles a CUDA kernel of this package, and each GPU runs it."""
    importlib.import_module("cuda.bindings.nvrtc")
    from yolact_deploy.runtime.cuda import nvrtc, selftest

    version = ""
    try:
        version = "NVRTC {}.{}".format(*nvrtc.version())
        selftest.compile_kernels()
        try:
            gpus = nvidia.find_driver().gpus
        except BackendError as error:
            return version, f"compiles the CUDA kernels but cannot run them: {_unusable(error)}"
        for gpu in gpus:
            selftest.run_kernels(gpu.index)
    except YolactDeployError as error:
        raise _unusable(error, version) from error
    return version, f"Fast NMS runs on {', '.join(gpu.name for gpu in gpus)}"


def _run_onnxruntime() -> tuple[str, str]:
    import numpy as np

    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # failures are reported below
    session = ort.InferenceSession(TINY_ONNX, options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(1, np.float32)})
    names = (name.removesuffix("ExecutionProvider") for name in ort.get_available_providers())
    return ort.__version__, f"providers in this package: {', '.join(names)}"


def _run_onnxruntime_gpu(provider: str) -> tuple[str, str]:
    """Run on the GPU, in a session without fallback to the CPU."""
    import numpy as np

    from yolact_deploy.artifact import Metadata
    from yolact_deploy.config import YolactConfig
    from yolact_deploy.runtime.onnxruntime_gpu import open_session

    ort: Any = importlib.import_module("onnxruntime")
    _require_driver(ort.__version__)
    try:
        opened = open_session(TINY_ONNX, Metadata(config=YolactConfig()), provider=provider)
    except YolactDeployError as error:
        raise _unusable(error, ort.__version__) from error
    opened.session.run(None, {"x": np.ones(1, np.float32)})
    return ort.__version__, f"runs on {opened.gpu}"


def _openvino() -> tuple[str, str]:
    import numpy as np

    from yolact_deploy.runtime.openvino import shared_core

    openvino: Any = importlib.import_module("openvino")
    core = shared_core()
    devices = core.available_devices
    compiled = core.compile_model(core.read_model(TINY_ONNX), "CPU")
    compiled([np.ones(1, np.float32)])
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bf16 = "native BF16" if native else "no native BF16, so openvino-bf16 is slow here"
    return openvino.__version__.split("-")[0], f"devices: {', '.join(devices)}; on the CPU {bf16}"


def _ncnn() -> tuple[str, str]:
    ncnn: Any = importlib.import_module("ncnn")
    with ncnn.Net() as net:
        net.load_param_mem("7767517\n1 1\nInput x 0 1 x\n")
    return ncnn.__version__, "runs what 'export --format ncnn' writes"


def _litert() -> tuple[str, str]:
    litert: Any = importlib.import_module("ai_edge_litert")
    importlib.import_module("ai_edge_litert.interpreter")
    return litert.__version__, "runs what 'export --format tflite' writes"


def _tensorrt() -> tuple[str, str]:
    trt: Any = importlib.import_module("tensorrt")
    _require_driver(trt.__version__)
    if trt.Runtime(trt.Logger(trt.Logger.ERROR)) is None or trt.Builder(trt.Logger(trt.Logger.ERROR)) is None:
        raise UnusableError("TensorRT has no GPU that it supports", nvidia.DRIVER_CURE, trt.__version__)
    return trt.__version__, "builder and runtime start"


def _load_rtx() -> Any:
    importlib.import_module("tensorrt_rtx_libs")  # loads the libraries for the bindings
    return importlib.import_module("tensorrt_rtx_bindings")


def _rtx_runtime() -> tuple[str, str]:
    trt = _load_rtx()
    _require_driver(trt.__version__)
    if trt.Runtime(trt.Logger(trt.Logger.ERROR)) is None:
        raise UnusableError("TensorRT for RTX does not support this GPU", "use an RTX 30 or later GPU", trt.__version__)
    return trt.__version__, "runtime starts"


def _rtx_builder() -> tuple[str, str]:
    trt = _load_rtx()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(TINY_ONNX):
        raise UnusableError(f"its parser fails: {parser.get_error(0).desc()}", version=trt.__version__)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise UnusableError("it cannot build a network of one layer", version=trt.__version__)
    try:
        nvidia.find_driver()
    except BackendError as error:
        return trt.__version__, f"builds engines but cannot run them: {_unusable(error)}"
    return trt.__version__, "builds engines"


def _torch_cpu() -> tuple[str, str]:
    torch: Any = importlib.import_module("torch")
    torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    count = torch.get_num_threads()
    return torch.__version__, f"{count} thread{'s' if count > 1 else ''}"


def _torch_cuda() -> tuple[str, str]:
    torch: Any = importlib.import_module("torch")
    if torch.version.cuda is None:
        raise UnusableError(
            "this torch was built without CUDA", "install torch from its CUDA index (pytorch.org)", torch.__version__
        )
    _require_driver(torch.__version__)
    if not torch.cuda.is_available():
        raise UnusableError(
            f"torch cannot use the driver (it was built for CUDA {torch.version.cuda})",
            "update the driver, or install a torch for an older CUDA",
            torch.__version__,
        )
    torch.ones(8, device="cuda").sum().item()
    return torch.__version__, f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"


def _importable(module: str, distribution: str = "") -> Callable[[], tuple[str, str]]:
    def attempt() -> tuple[str, str]:
        importlib.import_module(module)
        return importlib.metadata.version(distribution or module), ""

    return attempt


@dataclass(frozen=True)
class Probe:
    """How to check one runtime or tool."""

    kind: str
    extra: str
    attempt: Callable[[], tuple[str, str]]
    #: modules whose absence means "not installed"
    modules: tuple[str, ...]


def _tool(extra: str, module: str, distribution: str = "") -> Probe:
    return Probe("tool", extra, _importable(module, distribution), (module,))


_RTX_MODULES = ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")
_ORT_MODULES = ("onnxruntime",)

PROBES = {
    "NVIDIA driver": Probe("tool", "rtx", _driver, ()),
    "CUDA kernels": Probe("tool", "rtx", _cuda_kernels, ("cuda", "cuda.bindings", "cuda.bindings.nvrtc")),
    "onnxruntime CPU": Probe("runtime", "onnx", _run_onnxruntime, _ORT_MODULES),
    "onnxruntime CUDA": Probe("runtime", "gpu", lambda: _run_onnxruntime_gpu("cuda"), _ORT_MODULES),
    "onnxruntime TensorRT": Probe("runtime", "gpu", lambda: _run_onnxruntime_gpu("tensorrt"), _ORT_MODULES),
    "onnxruntime RTX": Probe("runtime", "gpu", lambda: _run_onnxruntime_gpu("rtx"), _ORT_MODULES),
    "openvino": Probe("runtime", "openvino", _openvino, ("openvino",)),
    "ncnn": Probe("runtime", "ncnn", _ncnn, ("ncnn",)),
    "litert": Probe("runtime", "litert", _litert, ("ai_edge_litert",)),
    "torch CPU": Probe("runtime", "train", _torch_cpu, ("torch",)),
    "torch CUDA": Probe("runtime", "train", _torch_cuda, ("torch",)),
    "tensorrt": Probe("runtime", "tensorrt", _tensorrt, ("tensorrt",)),
    "tensorrt-rtx": Probe("runtime", "rtx", _rtx_runtime, _RTX_MODULES),
    "tensorrt-rtx builder": Probe("tool", "rtx", _rtx_builder, _RTX_MODULES),
    "onnx": _tool("export", "onnx"),
    "onnxscript": _tool("export", "onnxscript"),
    "torchvision": _tool("train", "torchvision"),
    "safetensors": _tool("train", "safetensors"),
    "torchinfo": _tool("train", "torchinfo"),
    "pycocotools": _tool("bench", "pycocotools"),
    "huggingface_hub": _tool("hub", "huggingface_hub"),
}

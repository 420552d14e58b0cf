"""`load`: one call for every kind of model file, and the ``FILE@BACKEND`` spelling of the command line.

yolact.onnx                               ONNX Runtime
yolact.onnx@openvino-bf16                 OpenVINO, computing in BF16
yolact.onnx@onnxruntime:threads=2         ONNX Runtime with two threads
yolact.onnx@onnxruntime:provider=cuda     ONNX Runtime on a GPU, with CUDA kernels around it
yolact.trt@tensorrt:device=cuda:1         TensorRT on the second GPU
yolact_base_54_800000.pth                 the eager PyTorch model
weights.pth@torch-fp16:device=cuda,compile=yes
                                          PyTorch on a GPU in half precision, compiled, replayed as a CUDA graph
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError, InputError
from yolact_deploy.machine.nvidia import parse_device, require_gpu
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor

ONNX_SUFFIXES = (".onnx",)
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
ENGINE_SUFFIXES = (".trt", ".engine", ".plan")
BACKENDS = ("onnxruntime", "openvino", "torch", "tensorrt")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
TAILS = ("auto", "host", "graph")
PROVIDERS = ("cpu", "cuda", "tensorrt", "rtx")

#: what may be chosen for each backend
_OPTIONS = {
    "onnxruntime": ("threads", "tail", "device", "provider"),
    "openvino": ("threads", "tail", "device"),
    "torch": ("threads", "tail", "device", "compile"),
    "tensorrt": ("device",),
}
_PRECISIONS = {
    "onnxruntime": ("fp32", "tf32"),
    "openvino": ("fp32", "bf16"),
    "torch": ("fp32", "tf32", "fp16", "bf16"),
    "tensorrt": ("fp32",),
}
_KNOWN_OPTIONS = (
    f"threads=N, tail={'|'.join(TAILS)}, device=cpu|cuda|cuda:N, provider={'|'.join(PROVIDERS)} and compile=yes"
)


@dataclass(frozen=True)
class ModelSpec:
    """A parsed ``FILE[@BACKEND[-PRECISION][:OPTION[,OPTION...]]]``; :meth:`spelling` is the way back.

    Options are threads=N, tail=auto|host|graph, device=cpu|cuda|cuda:N, provider=cpu|cuda|tensorrt|rtx, compile=yes|no.
    """

    path: Path
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    tail: str = "auto"
    device: str | None = None
    provider: str | None = None
    compile: bool = False

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> ModelSpec:
        """Raises :class:`InputError` on a spelling that means nothing."""
        text = os.fspath(text)
        path, at, choice = text.rpartition("@")
        if not at or Path(text).exists():
            return cls(Path(text))
        engine, _, options = choice.partition(":")
        backend, _, precision = engine.partition("-")
        if backend not in BACKENDS:
            raise InputError(f"{text}: unknown backend {backend!r} after '@'; known are {', '.join(BACKENDS)}")
        if precision and precision not in PRECISIONS:
            raise InputError(f"{text}: unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
        spec = cls(Path(path), backend, precision or None)
        for option in filter(None, options.split(",")):
            spec = spec._with_option(option, text)
        return spec

    def _with_option(self, option: str, text: str) -> ModelSpec:
        key, _, value = option.partition("=")
        if key == "threads" and value.isdigit() and int(value) > 0:
            return replace(self, threads=int(value))
        if key == "tail" and value in TAILS:
            return replace(self, tail=value)
        if key == "provider" and value in PROVIDERS:
            return replace(self, provider=value)
        if key == "compile" and value in ("yes", "no"):
            return replace(self, compile=value == "yes")
        if key == "device":
            try:
                parse_device(value)
            except InputError as error:
                raise InputError(f"{text}: {error}") from None
            return replace(self, device=value)
        raise InputError(f"{text}: unknown option {option!r}; known are {_KNOWN_OPTIONS}")

    def spelling(self) -> str:
        """The text of which :meth:`parse` makes this."""
        chosen = {
            "threads": self.threads,
            "tail": None if self.tail == "auto" else self.tail,
            "device": self.device,
            "provider": self.provider,
            "compile": "yes" if self.compile else None,
        }
        options = ",".join(f"{key}={value}" for key, value in chosen.items() if value is not None)
        engine = "-".join(filter(None, (self.backend, self.precision))) + (f":{options}" if options else "")
        return f"{self.path}@{engine}" if engine else str(self.path)

    def __str__(self) -> str:
        engine = "-".join(filter(None, (self.backend, self.precision)))
        return f"{self.path.name}@{engine}" if engine else self.path.name


def load(
    model: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tail: str | None = None,
    device: str | None = None,
    provider: str | None = None,
    compile: bool | None = None,
    config: YolactConfig | str | None = None,
    image_size: int | None = None,
    score_threshold: float = 0.15,
    nms: str | None = None,
    lazy_masks: bool = True,
) -> Predictor:
    """Load an ONNX file, an engine or a checkpoint.

    Args:
        model: path, or ``FILE@BACKEND`` (see the module's docstring)
        backend: "onnxruntime", "openvino", "torch" or "tensorrt"; by default what the file's name suggests
        precision: where the backend offers a choice: "fp32" or "bf16" (OpenVINO; by default what a file in BF16 says,
            where the CPU has it), "fp32", "tf32", "fp16" or "bf16" (PyTorch; "tf32" is its own default on a GPU),
            "tf32" (ONNX Runtime's provider "cuda")
        threads: CPU threads; by default as many as the machine has cores
        tail: where Fast NMS and mask assembly run: "host" (NumPy, inside the boxes only), "graph" (as exported; of a
            checkpoint, PyTorch), or "auto", the fastest for the backend, which on a GPU is our CUDA kernels
        device: "cpu", "cuda" or "cuda:1"; engines run on "cuda" by default
        provider: of ONNX Runtime: "cpu", "cuda", "tensorrt" or "rtx"; with device "cuda" that is "cuda"
        compile: compile the PyTorch model
        config: for checkpoints whose configuration cannot be told from the tensors (input size, Pascal priors)
        image_size: for checkpoints, another input size than the configuration's
        score_threshold: detections below are left out
        nms: "fast", "cross-class" or "traditional", where the tail runs on the host
        lazy_masks: paste masks when they are asked for

    Raises:
        InputError, ArtifactError, CheckpointError: the file is not what it should be, or options that do not fit
        BackendError: the backend cannot run here; ``yolact-deploy doctor`` tells why
    """
    spec = ModelSpec.parse(model)
    if not spec.path.exists():
        raise InputError(f"no such model file: {spec.path}")
    if spec.path.is_dir():
        raise InputError(f"{spec.path} is a folder: name the model file in it")
    spec = ModelSpec(
        spec.path,
        backend or spec.backend or _default_backend(spec.path),
        precision or spec.precision,
        threads or spec.threads,
        tail or spec.tail,
        device or spec.device,
        provider or spec.provider,
        spec.compile if compile is None else compile,
    )
    network = _open(spec, config=config, image_size=image_size)
    return Predictor(network, score_threshold=score_threshold, nms=nms, lazy_masks=lazy_masks)


def _default_backend(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in ONNX_SUFFIXES:
        return "onnxruntime"
    if suffix in CHECKPOINT_SUFFIXES:
        return "torch"
    if suffix in ENGINE_SUFFIXES:
        return "tensorrt"
    known = ", ".join((*ONNX_SUFFIXES, *ENGINE_SUFFIXES, *CHECKPOINT_SUFFIXES))
    raise ArtifactError(f"{path}: cannot tell what kind of model {suffix or 'this'} is; known are {known}")


def _open(spec: ModelSpec, *, config: YolactConfig | str | None, image_size: int | None) -> Backend:
    _check(spec)
    gpu = None if spec.device is None else parse_device(spec.device)
    if spec.backend == "onnxruntime":
        return _open_onnxruntime(spec, gpu)
    if spec.backend == "openvino":
        from yolact_deploy.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(spec.path, precision=spec.precision, threads=spec.threads, tail=spec.tail)
    if spec.backend == "torch":
        return _open_torch(spec, gpu, config, image_size)
    from yolact_deploy.runtime.tensorrt import TensorRtBackend

    return TensorRtBackend(spec.path, device=gpu or 0)


def _check(spec: ModelSpec) -> None:
    """Raises :class:`InputError` where a choice is not one of the backend's."""
    backend = spec.backend or ""
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if spec.precision is not None and spec.precision not in _PRECISIONS[backend]:
        raise InputError(_no_precision(backend, spec.precision))
    given = {
        "threads": spec.threads is not None,
        "tail": spec.tail != "auto",
        "device": spec.device is not None,
        "provider": spec.provider is not None,
        "compile": spec.compile,
    }
    for name, is_given in given.items():
        if is_given and name not in _OPTIONS[backend]:
            raise InputError(f"{backend} has no option {name!r}; it has {', '.join(_OPTIONS[backend])}")
    if spec.tail not in TAILS:
        raise InputError(f"unknown tail {spec.tail!r}; known are {', '.join(TAILS)}")
    if spec.provider is not None and spec.provider not in PROVIDERS:
        raise InputError(f"unknown provider {spec.provider!r}; known are {', '.join(PROVIDERS)}")
    gpu = None if spec.device is None else parse_device(spec.device)
    if backend == "openvino" and gpu is not None:
        raise InputError("openvino runs on the CPU here: for a GPU use onnxruntime:provider=cuda, or build an engine")
    if backend == "tensorrt" and spec.device == "cpu":
        raise InputError("tensorrt runs on a GPU: for the CPU use the ONNX file from which the engine was built")


def _no_precision(backend: str, precision: str) -> str:
    if precision not in PRECISIONS:
        return f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}"
    if precision == "int8":
        return "int8 is a choice of the export (--int8 --calibration DIR): leave it out, its files run in 8 bits anyway"
    if backend in ("onnxruntime", "tensorrt"):
        return f"{backend} computes in the precision of the file: export it with that precision instead"
    return f"{backend} has no precision {precision!r}; it has {', '.join(_PRECISIONS[backend])}"


def _open_onnxruntime(spec: ModelSpec, gpu: int | None) -> Backend:
    provider = spec.provider or ("cpu" if gpu is None else "cuda")
    if spec.device is not None and (provider == "cpu") != (gpu is None):
        raise InputError(f"provider={provider} does not run on device={spec.device}")
    if spec.precision == "tf32" and provider != "cuda":
        raise InputError("onnxruntime-tf32 is a choice of provider=cuda only")
    if provider == "cpu":
        from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(spec.path, threads=spec.threads, tail=spec.tail)
    if spec.threads is not None:
        raise InputError(f"threads are of provider=cpu; provider={provider} runs on the GPU")
    gpu, tf32 = gpu or 0, spec.precision == "tf32"
    require_gpu(gpu)  # the first thing to say where there is none
    if spec.tail != "auto":
        from yolact_deploy.runtime.onnxruntime_gpu import OnnxRuntimeGpuBackend

        return OnnxRuntimeGpuBackend(spec.path, provider=provider, device=gpu, tail=spec.tail, tf32=tf32)
    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.onnxruntime_network import OnnxRuntimeNetwork

    device = Device.open(gpu)
    return CudaBackend(OnnxRuntimeNetwork(spec.path, device, provider=provider, tf32=tf32), device)


def _open_torch(spec: ModelSpec, gpu: int | None, config: YolactConfig | str | None, image_size: int | None) -> Backend:
    precision = spec.precision or "fp32"
    if precision == "tf32" and gpu is None:
        raise InputError("torch-tf32 is a choice of device=cuda only")
    if gpu is not None:
        require_gpu(gpu)  # the first thing to say where there is none
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.model.fuse import fuse_batch_norm
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    model = load_model(spec.path, config=config, image_size=image_size)
    plain = precision in ("fp32", "tf32") and not spec.compile
    if not plain:
        model = fuse_batch_norm(model)
    # The plain model is the reference for all others, so it stays as the original does it, on a GPU as well.
    # Our kernels, which all others run around their network, give no mask scores.
    if gpu is None or plain or spec.tail != "auto" or model.config.mask_iou:
        return TorchBackend(
            model, threads=spec.threads, tail=spec.tail, precision=precision, device=gpu, compile=spec.compile
        )
    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.torch.torch_network import TorchNetwork

    device = Device.open(gpu)
    return CudaBackend(TorchNetwork(model, device, precision=precision, compile=spec.compile), device)

"""`load` opens every kind of model file; `ModelSpec` is the ``FILE@BACKEND`` spelling of the command line.

yolact.onnx                               ONNX Runtime
yolact.onnx@openvino-bf16                 OpenVINO, computing in BF16
yolact.onnx@onnxruntime:threads=2         ONNX Runtime with two threads
yolact.onnx@onnxruntime:provider=cuda     ONNX Runtime on a GPU, with this package's CUDA kernels around it
yolact.onnx@opencv                        the DNN module of OpenCV 5
yolact_ncnn_model@ncnn                    ncnn, the folder that export --format ncnn writes
yolact_tflite_model@litert                LiteRT, the folder that export --format tflite writes
yolact_opencv_model@opencv                the folder that export --format opencv writes
yolact.trt@tensorrt:device=cuda:1         TensorRT on the second GPU
yolact_base_54_800000.pth                 the eager PyTorch model
weights.pth@torch-fp16:device=cuda,compile=yes
                                          PyTorch on a GPU in half precision, compiled, replayed as a CUDA graph
http://localhost:8000/yolact              the network of a model that a server has; grpc:// for Triton's other port
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.config import Size, YolactConfig
from yolact_deploy.errors import ArtifactError, BackendError, ConfigError, InputError, import_optional
from yolact_deploy.machine.nvidia import parse_device, require_gpu
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.remote_names import remote_url
from yolact_deploy.runtime.selection import SCORE_THRESHOLD, NmsSettings, ScoreThreshold
from yolact_deploy.runtime.sliced_predictor import SlicedPredictor
from yolact_deploy.runtime.slicing import Slicing
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import (
    BACKENDS,
    CHECKPOINT_SUFFIXES,
    ENGINE_SUFFIXES,
    FRAME_MODES,
    JPEG_DECODERS,
    LOAD_TAILS,
    MAX_THREADS,
    MODEL_SUFFIXES,
    NCNN_SUFFIXES,
    ONNX_SUFFIXES,
    PRECISIONS,
    PROVIDERS,
    TFLITE_SUFFIXES,
    check_word,
)

_log = logging.getLogger(__name__)

#: what may be chosen for each backend
_OPTIONS = {
    "onnxruntime": ("threads", "tail", "device", "provider", "frames", "decode"),
    "openvino": ("threads", "tail", "device"),
    "torch": ("threads", "tail", "device", "compile", "frames", "decode"),
    "tensorrt": ("device", "frames", "decode"),
    "ncnn": ("threads",),
    "litert": ("threads",),
    "opencv": ("threads", "tail"),
    "remote": (),
}
_PRECISIONS = {
    "onnxruntime": ("fp32", "tf32"),
    "openvino": ("fp32", "bf16"),
    "torch": ("fp32", "tf32", "fp16", "bf16"),
    "tensorrt": ("fp32",),
    "ncnn": ("fp32",),
    "litert": ("fp32",),
    "opencv": ("fp32",),
    "remote": (),
}
_DEFAULT_BACKENDS = {
    **dict.fromkeys(ONNX_SUFFIXES, "onnxruntime"),
    **dict.fromkeys(ENGINE_SUFFIXES, "tensorrt"),
    **dict.fromkeys(CHECKPOINT_SUFFIXES, "torch"),
    **dict.fromkeys(NCNN_SUFFIXES, "ncnn"),
    **dict.fromkeys(TFLITE_SUFFIXES, "litert"),
}
#: backends with a form of their own: its suffixes, and the format of ``export``
_OWN_FORMATS = {"ncnn": (NCNN_SUFFIXES, "ncnn"), "litert": (TFLITE_SUFFIXES, "tflite")}
#: backends that run the files of another one
_SAME_FILES = {"openvino": "onnxruntime", "opencv": "onnxruntime"}
_KNOWN_OPTIONS = (
    f"threads=N, tail={'|'.join(LOAD_TAILS)}, device=cpu|cuda|cuda:N, provider={'|'.join(PROVIDERS)}, compile=yes|no, "
    f"frames={'|'.join(FRAME_MODES)} and decode={'|'.join(JPEG_DECODERS)}"
)
_YES_NO = {"yes": True, "no": False}


@dataclass(frozen=True)
class ModelSpec:
    """A model file and how to run it: ``FILE[@BACKEND[-PRECISION][:OPTION[,OPTION...]]]``, or the same by keyword.

    With a backend, a folder with one model file for it stands for that file.

    Options are threads=N, tail=auto|host|graph, device=cpu|cuda|cuda:N, provider=cpu|cuda|tensorrt|rtx, compile=yes|no,
    frames=auto|in-place|upload, decode=cpu|gpu.

    Raises:
        InputError: a value out of range, or one that the backend does not have.
    """

    path: Path
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    tail: str = "auto"
    device: str | None = None
    provider: str | None = None
    compile: bool = False
    frames: str = "auto"
    decode: str = "cpu"

    def __post_init__(self) -> None:
        if self.backend is not None and not self.url:
            object.__setattr__(self, "path", _model_file(self.path, self.backend))
        words = (
            ("backend", (*BACKENDS, "remote") if self.url else BACKENDS),
            ("precision", PRECISIONS),
            ("tail", LOAD_TAILS),
            ("provider", PROVIDERS),
            ("frames", FRAME_MODES),
            ("decode", JPEG_DECODERS),
        )
        for name, known in words:
            if (value := getattr(self, name)) is not None:
                check_word(name, value, known)
        threads = self.threads
        if threads is not None and not (type(threads) is int and 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads: expected a number from 1 to {MAX_THREADS}, got {shown(threads)}")
        if not isinstance(self.compile, bool):
            raise InputError(f"compile: expected True or False, got {self.compile!r}")
        gpu = self.gpu  # raises on a device that does not exist
        if backend := self.chosen_backend:
            self._check_backend(backend, gpu)

    @property
    def chosen_backend(self) -> str | None:
        """The backend, by default that of the file's suffix; None for an unknown one."""
        if self.url:
            return self.backend or "remote"
        return self.backend or _DEFAULT_BACKENDS.get(self.path.suffix.lower())

    @property
    def url(self) -> str | None:
        """The address of a model on a server; None for a file."""
        url = remote_url(self.path.as_posix())
        return None if url is None else f"{url.protocol}://{url.host}/{url.model}"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the model; none for one on a server."""
        if self.url:
            return ()
        return (self.path, self.path.with_suffix(".bin")) if self.chosen_backend == "ncnn" else (self.path,)

    @property
    def gpu(self) -> int | None:
        """Number of the GPU; None for the CPU and for the backend's default device."""
        return None if self.device is None else parse_device(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU."""
        return self.chosen_backend == "tensorrt" or self.gpu is not None or self.provider not in (None, "cpu")

    def _check_backend(self, backend: str, gpu: int | None) -> None:
        if self.url and (backend != "remote" or self.precision or any(self._options().values())):
            raise InputError(f"{self.url}: backend, precision and options are chosen by the server: leave them out")
        if self.precision is not None and self.precision not in _PRECISIONS[backend]:
            raise InputError(_no_precision(backend, self.precision))
        for name, value in self._options().items():
            if value is not None and name not in _OPTIONS[backend]:
                raise InputError(f"{backend} has no option {name!r}; it has {', '.join(_OPTIONS[backend])}")
        if backend in _OWN_FORMATS:
            suffixes, name = _OWN_FORMATS[backend]
            if self.path.suffix.lower() not in suffixes:
                raise InputError(
                    f"{backend} runs the {suffixes[0]} file that 'export --format {name}' writes, not {self.path.name}"
                )
        if backend == "openvino" and gpu is not None:
            raise InputError(
                "openvino runs on the CPU only: for a GPU use onnxruntime:provider=cuda, or build an engine"
            )
        if backend == "tensorrt" and self.device == "cpu":
            raise InputError("tensorrt runs on a GPU: for the CPU use the ONNX file from which the engine was built")
        if backend == "torch" and self.precision == "tf32" and gpu is None:
            raise InputError("torch-tf32 requires device=cuda")
        if backend == "onnxruntime":
            self._check_provider(gpu)

    def _check_provider(self, gpu: int | None) -> None:
        provider = self.provider or ("cpu" if gpu is None else "cuda")
        if self.device is not None and (provider == "cpu") != (gpu is None):
            raise InputError(f"provider={provider} does not run on device={self.device}")
        if self.precision == "tf32" and provider != "cuda":
            raise InputError("onnxruntime-tf32 requires provider=cuda")
        if self.threads is not None and provider != "cpu":
            raise InputError(f"threads requires provider=cpu; provider={provider} runs on the GPU")

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> ModelSpec:
        """Read a spelling; raises :class:`InputError` if it is wrong.

        An ``@`` belongs to the path if a file has the whole name, if it is in the name of a folder, or if the name ends
        as that of a model file.
        """
        text = os.fspath(text)
        path, at, choice = text.rpartition("@")
        in_path = "/" in choice or os.sep in choice or Path(text).suffix.lower() in MODEL_SUFFIXES
        if not at or in_path or os.path.lexists(text):
            return cls(Path(text))
        engine, _, options = choice.partition(":")
        backend, _, precision = engine.partition("-")
        try:
            return cls(Path(path), backend, precision or None, **_parse_options(options))
        except InputError as error:
            raise InputError(f"{text}: {error}") from None

    def check_file(self) -> None:
        """Raise :class:`InputError` if the file does not exist, with what is beside it."""
        if self.url:
            return
        if self.path.is_dir():
            files = _files_for(self.backend, self.path)
            hint = f", such as {files[0]}" if files else ""
            raise InputError(f"{self.path} is a folder: name the model file in it{hint}")
        if self.path.is_file():
            return
        onnx = self.path.with_suffix(".onnx")
        hint = f". {onnx} is there: 'yolact-deploy build {onnx}' builds its engine" if onnx.is_file() else ""
        raise InputError(f"no such model file: {self.path}{hint}")

    def check_gpu(self) -> None:
        """Raise :class:`BackendError` for an engine where no GPU is, with the ONNX file that runs instead."""
        if self.chosen_backend != "tensorrt":
            return
        try:
            require_gpu(self.gpu or 0)
        except BackendError as error:
            onnx = self.path.with_suffix(".onnx")
            hint = f"; {onnx} beside it runs here" if onnx.is_file() else ""
            raise BackendError(f"{self.path} needs an NVIDIA GPU: {error}{hint}") from error

    def updated(self, **given: Any) -> ModelSpec:
        """A copy with other values; None keeps a value."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def _options(self) -> dict[str, str | None]:
        """The options as the spelling has them; None for those left at their default."""
        return {
            "threads": None if self.threads is None else str(self.threads),
            "tail": None if self.tail == "auto" else self.tail,
            "device": self.device,
            "provider": self.provider,
            "compile": "yes" if self.compile else None,
            "frames": None if self.frames == "auto" else self.frames,
            "decode": None if self.decode == "cpu" else self.decode,
        }

    @property
    def in_place(self) -> bool | None:
        """Whether the GPU reads frames where they are in host memory; None leaves it to the kind of GPU."""
        return {"in-place": True, "upload": False}.get(self.frames)

    def spelling(self) -> str:
        """The text that :meth:`parse` reads back as this value."""
        options = ",".join(f"{name}={value}" for name, value in self._options().items() if value is not None)
        backend = self.chosen_backend if options or self.precision else self.backend
        engine = "-".join(filter(None, (backend, self.precision))) + (f":{options}" if options else "")
        name = self.url or str(self.path)
        return f"{name}@{engine}" if engine else name

    def __str__(self) -> str:
        engine = "-".join(filter(None, (self.backend, self.precision)))
        return f"{self.path.name}@{engine}" if engine else self.path.name


def _model_file(path: Path, backend: str) -> Path:
    """The only file for a backend in a folder, such as ``export --format`` writes; any other path as it is."""
    files = _files_for(backend, path) if path.is_dir() else []
    return files[0] if len(files) == 1 else path


def _files_for(backend: str | None, folder: Path) -> list[Path]:
    """The model files in a folder that a backend runs; None is any."""
    runs = _SAME_FILES.get(backend or "", backend)
    suffixes = [suffix for suffix, other in _DEFAULT_BACKENDS.items() if runs in (None, other)]
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())


def _parse_options(text: str) -> dict[str, Any]:
    """Keyword arguments of ``threads=2,tail=host``; their values are not checked here."""
    options: dict[str, Any] = {}
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name == "threads":
            options[name] = int(value) if value.isdecimal() and len(value) < 10 else value
        elif name == "compile":
            options[name] = _YES_NO.get(value, value)
        elif name in ("tail", "device", "provider", "frames", "decode"):
            options[name] = value
        else:
            raise InputError(f"unknown option {option!r}; known are {_KNOWN_OPTIONS}")
    return options


def _no_precision(backend: str, precision: str) -> str:
    if precision == "int8":
        return "int8 is a choice of the export (--int8 --calibration DIR): leave it out, its files run in 8 bits anyway"
    if backend in ("onnxruntime", "tensorrt"):
        return f"{backend} computes in the precision of the file: export it with that precision instead"
    return f"{backend} has no precision {precision!r}; it has {', '.join(_PRECISIONS[backend])}"


def load(
    model: str | os.PathLike[str] | ModelSpec,
    *,
    backend: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    tail: str | None = None,
    device: str | None = None,
    provider: str | None = None,
    compile: bool | None = None,
    frames: str | None = None,
    decode: str | None = None,
    config: YolactConfig | str | None = None,
    image_size: Size | None = None,
    fit: str | None = None,
    priors: str | None = None,
    score_threshold: ScoreThreshold = SCORE_THRESHOLD,
    nms: str | None = None,
    lazy_masks: bool = True,
    classes: Sequence[str] | None = None,
    max_detections: int | None = None,
    top_k: int | None = None,
    nms_iou: float | None = None,
    slicing: Slicing | Size | None = None,
) -> Predictor:
    """Load an ONNX file, an engine or a checkpoint, or open the network of a model that a server has.

    Args:
        model: path, ``FILE@BACKEND``, ``http://HOST:PORT/NAME`` or ``grpc://HOST:PORT/NAME`` (see
            :mod:`yolact_deploy.loading`); arguments win over the spelling
        backend: "onnxruntime", "openvino", "torch", "tensorrt", "ncnn", "litert" or "opencv"; inferred from the file's
            suffix by default
        precision: if the backend offers a choice: "fp32" or "bf16" (OpenVINO; the default is the file's precision, if
            the CPU supports it), "fp32", "tf32" (on a GPU), "fp16" or "bf16" (PyTorch), "tf32" (ONNX Runtime with
            provider "cuda")
        threads: CPU threads; all cores by default
        tail: where Fast NMS and mask assembly run: "host" (NumPy, inside the boxes only), "graph" (as exported; for a
            checkpoint, PyTorch) or "auto", the fastest for the backend, which on a GPU is the CUDA kernels
        device: "cpu", "cuda" or "cuda:1"; engines run on "cuda" by default
        provider: execution provider of ONNX Runtime: "cpu", "cuda", "tensorrt" or "rtx"; "cuda" with device "cuda"
        compile: compile the PyTorch model
        frames: how frames in host memory come to the GPU: "upload" copies them, "in-place" lets the kernels read pinned
            memory, and "auto" does that where CPU and GPU share their memory (Jetson)
        decode: "gpu" decodes JPEG files with nvImageCodec on the GPU, on the CUDA frame path; what it cannot decode is
            left to OpenCV, with a warning
        config: for checkpoints whose configuration cannot be inferred from the tensors (input size, Pascal priors)
        image_size: for checkpoints, an input other than the configuration's: the side of a square, or (height, width);
            for files that take a range of sizes, the one input for all pictures. By default each picture gets an input
            of its own ratio on a CPU, and the usual one on a GPU
        fit: for checkpoints, how pictures of another shape get there: "stretch", "letterbox" or "pad"
        priors: for checkpoints, what prior boxes keep at ``image_size``: "original" or "pixels", see
            :meth:`~yolact_deploy.config.YolactConfig.with_size`
        score_threshold: drops detections below; one number, or one for some classes: ``{"*": 0.3, "person": 0.5}`` or
            "0.3,person=0.5"
        nms: "fast", "cross-class" or "traditional", if the tail runs on the host
        lazy_masks: paste masks on first access
        classes: names of the classes to return; all by default
        max_detections: return the best so many of each image; more than the model's own, where NMS can be changed
        top_k: best candidates of each class that enter NMS (200 unless exported otherwise), where NMS can be changed
        nms_iou: IoU with a better detection of its class from which one is dropped (0.5), where NMS can be changed:
            for checkpoints, and for ONNX files whose tail runs on the host
        slicing: cut pictures into tiles of this size (height, width, or a side) and merge their detections; a
            :class:`~yolact_deploy.runtime.slicing.Slicing` also has the overlap and the rules

    Raises:
        InputError, ArtifactError, CheckpointError: a file that cannot be used, or options that do not fit it
        BackendError: the backend cannot run here; ``yolact-deploy doctor`` shows why
    """
    spec = model if isinstance(model, ModelSpec) else ModelSpec.parse(model)
    spec = spec.updated(
        backend=backend, precision=precision, threads=threads, tail=tail, device=device, provider=provider,
        compile=compile, frames=frames, decode=decode,
    )  # fmt: skip
    spec.check_file()
    source = spec.url or spec.path
    given = {"config": config, "image_size": image_size, "fit": fit, "priors": priors}
    given = {name: value for name, value in given.items() if value is not None}
    size: Size | None = None
    if spec.chosen_backend != "torch" and not spec.url:
        size = image_size  # of files that take a range of sizes
        given.pop("image_size", None)
    if spec.chosen_backend != "torch" and given:
        raise InputError(
            f"{[*given][-1]} applies to checkpoints only, and {source} was exported with its own: leave it out, or "
            "export the checkpoint again"
        )
    settings = NmsSettings(top_k, nms_iou, max_detections)
    if nms == "traditional" and top_k is not None:
        raise InputError("top_k has no effect with nms='traditional', which takes all candidates: leave it out")
    network = _open(spec, settings, given, size)
    try:
        _set_nms(network, source, settings)
        chosen: dict[str, Any] = {"score_threshold": score_threshold, "nms": nms, "lazy_masks": lazy_masks}
        chosen |= {"classes": classes, "max_detections": max_detections}
        tiles = Slicing.of(slicing)
        predictor = Predictor(network, **chosen) if tiles is None else SlicedPredictor(network, slicing=tiles, **chosen)
        _check_choices(network, source, predictor.score_threshold, nms)
    except (InputError, ConfigError):
        network.close()
        raise
    return predictor


def _set_nms(network: Backend, source: Path | str, settings: NmsSettings) -> None:
    """Change NMS where this package runs it on the host; elsewhere, refuse."""
    changes = settings.differences(network.metadata.config)
    if not changes:
        return
    if network.frames is not None or network.tail.name == "graph":
        where = "runs on the GPU as exported" if network.frames else "is in the graph"
        options = " ".join(f"--{change.partition('=')[0].replace('_', '-')}" for change in changes)
        raise InputError(
            f"{', '.join(changes)}: NMS of {source} {where}: export it again with {options}, or load an ONNX file with "
            "tail=host"
        )
    network.set_nms(settings.applied(network.metadata.config))


def _check_choices(network: Backend, source: Path | str, score_threshold: float, nms: str | None) -> None:
    """Refuse another NMS than the graph's; warn of a threshold that NMS has made useless."""
    exported = "cross-class" if network.metadata.cross_class else "fast"
    if nms not in (None, exported) and network.tail.name == "graph":
        raise InputError(
            f"nms={nms!r}: NMS is in the graph of {source}, exported as {exported!r}: leave it out, or load an ONNX "
            "file with tail=host"
        )
    least = network.metadata.config.nms_score_threshold
    if 0 < score_threshold < least:
        _log.warning("score threshold %g: the NMS of %s drops detections below %g", score_threshold, source, least)


def _open(
    spec: ModelSpec, settings: NmsSettings, of_checkpoint: Mapping[str, Any], size: Size | None = None
) -> Backend:
    """The network of a model.

    Args:
        of_checkpoint: keyword arguments of :func:`yolact_deploy.model.checkpoint.load_model`
        size: the one input of a file that takes several
    """
    backend = spec.chosen_backend
    if spec.url:
        from yolact_deploy.runtime.remote import RemoteBackend

        return RemoteBackend(spec.url)
    if backend == "onnxruntime":
        return _open_onnxruntime(spec, size)
    if backend in ("openvino", "opencv", "ncnn", "litert"):
        return _open_cpu_runtime(spec, backend, size)
    if backend == "torch":
        return _open_torch(spec, settings, of_checkpoint)
    if backend == "tensorrt":
        from yolact_deploy.runtime.tensorrt import TensorRtBackend

        try:
            return TensorRtBackend(spec.path, device=spec.gpu or 0, size=size, **_frame_options(spec))
        except BackendError:
            spec.check_gpu()
            raise
    what = spec.path.suffix.lower() or "without suffix"
    raise ArtifactError(f"{spec.path}: unknown model type {what}; expected one of {', '.join(MODEL_SUFFIXES)}")


def _open_cpu_runtime(spec: ModelSpec, backend: str, size: Size | None) -> Backend:
    if backend == "openvino":
        from yolact_deploy.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(spec.path, precision=spec.precision, threads=spec.threads, tail=spec.tail, size=size)
    if backend == "opencv":
        from yolact_deploy.runtime.opencv import OpenCvBackend

        return OpenCvBackend(spec.path, threads=spec.threads, tail=spec.tail, size=size)
    if backend == "litert":
        from yolact_deploy.runtime.mobile.litert import LiteRtBackend

        return LiteRtBackend(spec.path, threads=spec.threads, size=size)
    from yolact_deploy.runtime.mobile.ncnn import NcnnBackend

    return NcnnBackend(spec.path, threads=spec.threads, size=size)


def _open_onnxruntime(spec: ModelSpec, size: Size | None) -> Backend:
    provider = spec.provider or ("cpu" if spec.gpu is None else "cuda")
    if provider == "cpu":
        from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(spec.path, threads=spec.threads, tail=spec.tail, size=size)
    gpu, tf32 = spec.gpu or 0, spec.precision == "tf32"
    require_gpu(gpu)  # the first thing to report if there is none
    if spec.tail != "auto":
        from yolact_deploy.runtime.onnxruntime_gpu import OnnxRuntimeGpuBackend

        return OnnxRuntimeGpuBackend(spec.path, provider=provider, device=gpu, tail=spec.tail, tf32=tf32, size=size)
    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.onnxruntime_network import OnnxRuntimeNetwork

    device = Device.open(gpu)
    network = OnnxRuntimeNetwork(spec.path, device, provider=provider, tf32=tf32, size=size)
    return CudaBackend(network, device, **_frame_options(spec))


def _frame_options(spec: ModelSpec) -> dict[str, Any]:
    """How the CUDA frame path takes frames and files."""
    from yolact_deploy.runtime.cuda.jpeg import open_decoder

    jpeg = open_decoder(spec.gpu or 0) if spec.decode == "gpu" else None
    return {"in_place": spec.in_place, "jpeg": jpeg}


def _open_torch(spec: ModelSpec, settings: NmsSettings, of_checkpoint: Mapping[str, Any]) -> Backend:
    precision, gpu = spec.precision or "fp32", spec.gpu
    if gpu is not None:
        require_gpu(gpu)  # the first thing to report if there is none
    import_optional("torch", "export", "Running a checkpoint")
    import_optional("safetensors", "export", "Running a checkpoint")
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.model.fuse import fuse_batch_norm
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    model = load_model(spec.path, **of_checkpoint)
    model.config = settings.applied(model.config)
    plain = precision in ("fp32", "tf32") and not spec.compile
    if not plain:
        model = fuse_batch_norm(model)
    # The plain model is the reference for all others, so it follows the original, on a GPU as well. The CUDA kernels
    # around all other networks give no mask scores.
    if gpu is None or plain or spec.tail != "auto" or model.config.mask_iou:
        return TorchBackend(
            model, threads=spec.threads, tail=spec.tail, precision=precision, device=gpu, compile=spec.compile
        )
    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.torch.torch_network import TorchNetwork

    device = Device.open(gpu)
    network = TorchNetwork(model, device, precision=precision, compile=spec.compile)
    return CudaBackend(network, device, **_frame_options(spec))

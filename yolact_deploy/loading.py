"""`load`: one call for every kind of model file, and the ``FILE@BACKEND`` spelling of the command line.

yolact.onnx                          ONNX Runtime
yolact.onnx@openvino-bf16            OpenVINO, computing in BF16
yolact.onnx@onnxruntime:threads=2    ONNX Runtime with two threads
yolact_base_54_800000.pth            the eager PyTorch model
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor

ONNX_SUFFIXES = (".onnx",)
CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
ENGINE_SUFFIXES = (".trt", ".engine", ".plan")
BACKENDS = ("onnxruntime", "openvino", "torch", "tensorrt")
PRECISIONS = ("fp32", "bf16")
TAILS = ("auto", "host", "graph")


@dataclass(frozen=True)
class ModelSpec:
    """A parsed ``FILE[@BACKEND[-PRECISION][:threads=N][,tail=host|graph]]``."""

    path: Path
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    tail: str = "auto"

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
        threads, tail = None, "auto"
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            if key == "threads" and value.isdigit() and int(value) > 0:
                threads = int(value)
            elif key == "tail" and value in TAILS:
                tail = value
            else:
                raise InputError(f"{text}: unknown option {option!r}; known are threads=N and tail={'|'.join(TAILS)}")
        return cls(Path(path), backend, precision or None, threads, tail)

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
        precision: "fp32" or "bf16", where the backend offers a choice (OpenVINO)
        threads: CPU threads; by default as many as the machine has cores
        tail: where Fast NMS and mask assembly run: "host" (NumPy, inside the boxes only), "graph" (as exported), or
            "auto", the faster for the backend
        config: for checkpoints whose configuration cannot be told from the tensors (input size, Pascal priors)
        image_size: for checkpoints, another input size than the configuration's
        score_threshold: detections below are left out
        nms: "fast", "cross-class" or "traditional", where the tail runs on the host
        lazy_masks: paste masks when they are asked for

    Raises:
        InputError, ArtifactError, CheckpointError: the file is not what it should be
        BackendError: the backend cannot run here; ``yolact-deploy doctor`` tells why
    """
    spec = ModelSpec.parse(model)
    if not spec.path.exists():
        raise InputError(f"no such model file: {spec.path}")
    if spec.path.is_dir():
        raise InputError(f"{spec.path} is a folder: name the model file in it")
    chosen = backend or spec.backend or _default_backend(spec.path)
    network = _open(
        chosen,
        spec.path,
        precision=precision or spec.precision,
        threads=threads or spec.threads,
        tail=tail or spec.tail,
        config=config,
        image_size=image_size,
    )
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


def _open(
    backend: str,
    path: Path,
    *,
    precision: str | None,
    threads: int | None,
    tail: str,
    config: YolactConfig | str | None,
    image_size: int | None,
) -> Backend:
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if precision not in (None, "fp32") and backend != "openvino":
        raise InputError(f"{backend} computes in the precision of the file: export it with that precision instead")
    if backend == "onnxruntime":
        from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, threads=threads, tail=tail)
    if backend == "openvino":
        from yolact_deploy.runtime.openvino import OpenVinoBackend

        return OpenVinoBackend(path, precision=precision or "fp32", threads=threads, tail=tail)
    if backend == "torch":
        from yolact_deploy.runtime.torch.backend import TorchBackend
        from yolact_deploy.training.checkpoint import load_model

        return TorchBackend(load_model(path, config=config, image_size=image_size), threads=threads)
    raise BackendError(
        f"{path}: this version builds TensorRT engines but cannot run them yet. Run the ONNX file it was built from, "
        "or the engine with trtexec"
    )

"""Every way to run one network on a GPU, its agreement with the eager model, and its speed.

Frames are arrays in host memory; a call ends when masks of the frames' size are in host memory: packed for backends
with a frame hook, unpacked for PyTorch with the original method.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.latency import measure_interleaved
from yolact_deploy.detections import Detections
from yolact_deploy.errors import MissingDependencyError, import_optional
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.loading import load
from yolact_deploy.machine.nvidia import require_gpu, tensorrt_flavours
from yolact_deploy.runtime.onnxruntime_gpu import require_provider
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import stage_with
from yolact_deploy.runtime.tensorrt_api import import_tensorrt, quick_plugins
from yolact_deploy.vocabulary import FLAVOURS

Frames = Sequence[NDArray[np.uint8]]

BATCHES = (1, 8, 32)
#: INT8 with the rest of the trunk in FP16
INT8_FP16 = "int8+fp16"
#: least share of the eager model's detections that must be matched, by precision
LEAST_MATCHED = {"fp32": 0.99, "tf32": 0.97, "fp16": 0.95, "bf16": 0.90, "int8": 0.80, INT8_FP16: 0.80}
#: batches of compiled PyTorch, which compiles for each of them
COMPILED_BATCHES = (BATCHES[0], BATCHES[-1])
_WARM_UP = 5


@dataclass(frozen=True)
class Candidate:
    """One way to run the network.

    Attributes:
        prepare: builds its files and gives the argument of :func:`yolact_deploy.load`
        require: checks what it needs, before anything is built; raises :class:`MissingDependencyError` or others
        batches: for which the throughput is measured
    """

    name: str
    precision: str
    prepare: Callable[[], str]
    require: Callable[[], object]
    batches: tuple[int, ...] = BATCHES

    @property
    def title(self) -> str:
        return f"{self.name} {self.precision}"


class Workshop:
    """Builds the files of the candidates, each once, in one folder."""

    def __init__(self, weights: Path, folder: Path, batches: tuple[int, ...] = BATCHES) -> None:
        self.weights = weights
        self.folder = folder
        self.batch = (1, batches[len(batches) // 2], batches[-1])

    def onnx(self, precision: str, tail: str) -> Path:
        """The exported file; needs torch and onnx."""
        path = self.folder / f"{precision}_{tail}.onnx"
        if not path.exists():
            require_exporter()
            from yolact_deploy.artifact import atomic_write, sha256_file
            from yolact_deploy.export.onnx import export_onnx
            from yolact_deploy.export.spec import ExportSpec
            from yolact_deploy.model.checkpoint import load_model

            model, sha256 = load_model(self.weights), sha256_file(self.weights)
            with atomic_write(path) as temporary:
                if precision in ("int8", INT8_FP16):
                    rest = "fp16" if precision == INT8_FP16 else "fp32"
                    _export_int8(model, temporary, tail, self.batch, rest, sha256)
                else:
                    spec = ExportSpec(precision=precision, tail=tail, batch=self.batch)
                    export_onnx(model, temporary, spec, weights_sha256=sha256)
        return path

    def engine(self, flavour: str, precision: str, tail: str, plugin: str = "off") -> Path:
        """The engine built from the exported file on this machine."""
        path = self.folder / f"{flavour}_{precision}_{tail}_{plugin}.trt"
        if not path.exists():
            from yolact_deploy.export.build_options import BuildOptions
            from yolact_deploy.export.engine import build_engine

            build_engine(self.onnx(precision, tail), path, flavour=flavour, options=BuildOptions(plugin=plugin))
        return path


def _export_int8(model: Any, path: Path, tail: str, batch: tuple[int, int, int], rest: str, sha256: str) -> None:
    """An INT8 file with the ranges of the sample pictures; its AP is not checked, only its agreement, later."""
    from yolact_deploy.export.calibration import calibrate
    from yolact_deploy.export.mixed_precision import lower_trunk
    from yolact_deploy.export.onnx import trace, write_onnx
    from yolact_deploy.export.quantize import quantize_trunk
    from yolact_deploy.export.spec import ExportSpec
    from yolact_deploy.samples import sample_images

    spec = ExportSpec(precision="int8", rest=rest, tail=tail, batch=batch, calibration=sample_images())
    metadata = spec.metadata(model.config, weights_sha256=sha256)
    graph = trace(model, metadata)
    calibration = calibrate(graph, sample_images())
    quantize_trunk(graph, calibration)
    quantization = {"target": spec.form, "method": calibration.method, "images": len(sample_images()), "rest": rest}
    if rest != "fp32":
        lower_trunk(graph, precision=rest)
    write_onnx(graph, dataclasses.replace(metadata, quantization=quantization), path)


def candidates(shop: Workshop, device: int) -> Iterator[Candidate]:
    """All candidates; the first is the reference (eager FP32, the original method).

    What needs PyTorch alone comes first, then what takes least time to prepare.
    """
    weights, cuda = shop.weights, f"device=cuda:{device}"

    def torch(precision: str, options: str = "") -> Callable[[], str]:
        return lambda: f"{weights}@torch-{precision}:{cuda}{options}"

    def onnxruntime(provider: str, precision: str) -> Callable[[], str]:
        return lambda: f"{shop.onnx(precision, 'heads')}@onnxruntime:provider={provider},{cuda}"

    def engine(flavour: str, precision: str, tail: str, plugin: str = "off") -> Callable[[], str]:
        return lambda: f"{shop.engine(flavour, precision, tail, plugin)}@tensorrt:{cuda}"

    for precision in ("fp32", "fp16", "tf32"):
        yield Candidate("PyTorch eager", precision, torch(precision), require_torch)
    for precision in ("fp16", "bf16"):
        compiled = torch(precision, ",compile=yes")
        yield Candidate("PyTorch compiled", precision, compiled, require_torch_compiler, COMPILED_BATCHES)
    for flavour, title in FLAVOURS.items():
        require = partial(require_tensorrt, flavour, device)
        for precision in ("fp16", "fp32", INT8_FP16, "int8", "bf16"):
            yield Candidate(f"{title}, our kernels", precision, engine(flavour, precision, "heads"), require)
        yield Candidate(f"{title}, functions", "fp16", engine(flavour, "fp16", "functions"), require)
    for plugin in ("aot", "v3"):
        require = partial(require_tensorrt, "tensorrt", device, plugin)
        yield Candidate(f"TensorRT, {plugin} plugins", "fp16", engine("tensorrt", "fp16", "functions", plugin), require)
    for provider in ("cuda", "tensorrt", "rtx"):
        for precision in ("fp16", "fp32"):
            title = f"ONNX Runtime {provider}"
            require = partial(require_provider, provider, device)
            yield Candidate(title, precision, onnxruntime(provider, precision), require)


def require_torch() -> Any:
    """torch with a GPU; raises :class:`MissingDependencyError`."""
    torch = import_optional("torch", "train", "Running PyTorch")
    if not torch.cuda.is_available():
        raise MissingDependencyError(f"torch {torch.__version__} cannot use this GPU: see yolact-deploy doctor")
    return torch


def require_torch_compiler() -> None:
    """What ``torch.compile`` needs on a GPU."""
    require_torch()
    import_optional("triton", "train", "torch.compile on a GPU")
    if not any(map(shutil.which, ("cc", "gcc", "clang", "cl"))):
        raise MissingDependencyError("torch.compile requires a C compiler: install gcc")


def require_exporter() -> None:
    """What an export needs."""
    for module in ("torch", "onnx", "onnxscript"):
        import_optional(module, "export", "Exporting to ONNX")


def require_tensorrt(flavour: str, device: int, plugin: str = "off") -> None:
    """A TensorRT that supports this GPU, with the plugins."""
    trt = import_tensorrt(flavour)
    gpu = require_gpu(device)
    if flavour not in tensorrt_flavours(gpu.capability):
        raise MissingDependencyError(f"{FLAVOURS[flavour]} does not support {gpu}")
    if plugin == "aot" and quick_plugins(trt, flavour) is None:
        raise MissingDependencyError(f"{FLAVOURS[flavour]} {trt.__version__} has no ahead-of-time plugins")


def open_candidate(candidate: Candidate) -> Predictor:
    """The loaded model, all detections kept, masks pasted inside the call."""
    candidate.require()
    return load(candidate.prepare(), score_threshold=0.0, lazy_masks=False)


def measure_model(
    predictor: Predictor,
    frames: Frames,
    reference: Sequence[Detections] | None,
    *,
    calls: int,
    gmac: float | None,
    batches: tuple[int, ...] = BATCHES,
) -> tuple[dict[str, Any], list[Detections]]:
    """Agreement with the reference's detections, latency and throughput of one model, and its detections."""
    detections = [predictor(frame) for frame in frames]
    report: dict[str, Any] = {"backend": predictor.backend.name, "runtime": predictor.backend.describe()}
    if reference is not None:
        meter = AgreementMeter()
        for ours, theirs in zip(detections, reference, strict=True):
            meter.add(theirs, ours)
        report["agreement"] = meter.result().to_json()
    report["latency"] = _latency(predictor, frames, calls)
    report["throughput"] = {
        str(batch): _throughput(predictor, frames, batch, max(calls // batch, 8))
        for batch in batches
        if batch <= predictor.backend.max_batch
    }
    report["stream_images_per_s"] = _stream(predictor, frames, calls)
    stages = report["latency"]["stages_mean_ms"]
    network = stages[stage_with("network", stages) or ""]
    if gmac and network:
        report["network_operations_per_s"] = 2e9 * gmac / (network / 1e3)
    return report, detections


def _latency(predictor: Predictor, frames: Frames, calls: int) -> dict[str, Any]:
    """One image per call."""
    rounds = -(-calls // len(frames))
    latency = measure_interleaved({"": predictor}, frames, warmup=_WARM_UP * len(frames), repeats=rounds)[""]
    return {key: getattr(latency, key) for key in ("p50_ms", "p90_ms", "p99_ms", "calls", "stages_mean_ms")}


def _throughput(predictor: Predictor, frames: Frames, batch: int, calls: int) -> dict[str, Any]:
    """Images of one size in batches: all in one list, whose batches overlap, and one batch per call for the stages."""
    images = [frames[0]] * batch
    for _ in range(_WARM_UP):
        predictor(images)
    stages = []
    start = time.perf_counter()
    for _ in range(calls):
        predictor(images)
        stages.append(predictor.timings)
    serial = time.perf_counter() - start
    most = predictor.backend.max_batch
    try:
        predictor.backend.max_batch = batch  # of which a predictor makes its batches
        start = time.perf_counter()
        predictor(images * calls)
        piped = time.perf_counter() - start
    finally:
        predictor.backend.max_batch = most
    return {
        "images_per_s": calls * batch / piped,
        "serial_images_per_s": calls * batch / serial,
        "calls": calls,
        "stages_mean_ms": {name: statistics.fmean(stage[name] for stage in stages) for name in stages[0]},
    }


def _stream(predictor: Predictor, frames: Frames, calls: int) -> float:
    """Images/s of a video, image by image, where the model overlaps its work."""
    video = [frames[0]] * calls
    start = time.perf_counter()
    count = sum(1 for _ in predictor.stream(video))
    return count / (time.perf_counter() - start)


def disagreement(report: dict[str, Any], precision: str) -> str:
    """What is wrong with the agreement of a report; empty if nothing is."""
    share = report.get("agreement", {}).get("matched_share")
    if share is not None and share < LEAST_MATCHED[precision]:
        return f"matches {share:.1%} of the eager model's detections, expected {LEAST_MATCHED[precision]:.0%}"
    return ""

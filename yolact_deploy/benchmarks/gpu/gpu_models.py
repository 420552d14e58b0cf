"""Every way to run one network on a GPU, its agreement with the eager model, and its speed.

Frames are arrays in host memory; a call ends when masks of the frames' size are in host memory: packed for backends
with a frame hook, unpacked for PyTorch with the original method.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.latency import measure_interleaved
from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.loading import load
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import stage_with

Frames = Sequence[NDArray[np.uint8]]

BATCHES = (1, 8, 32)
#: least share of the eager model's detections that must be matched, by precision
LEAST_MATCHED = {"fp32": 0.99, "tf32": 0.97, "fp16": 0.95, "bf16": 0.90}
_WARM_UP = 5


@dataclass(frozen=True)
class Candidate:
    """One way to run the network; ``prepare`` builds its files and gives the argument of :func:`yolact_deploy.load`."""

    name: str
    precision: str
    prepare: Callable[[], str]


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
            from yolact_deploy.artifact import atomic_write, sha256_file
            from yolact_deploy.export.onnx import export_onnx
            from yolact_deploy.export.spec import ExportSpec
            from yolact_deploy.model.checkpoint import load_model

            model = load_model(self.weights)
            with atomic_write(path) as temporary:
                spec = ExportSpec(precision=precision, tail=tail, batch=self.batch)
                export_onnx(model, temporary, spec, weights_sha256=sha256_file(self.weights))
        return path

    def engine(self, flavour: str, precision: str, tail: str, plugin: str = "off") -> Path:
        """The engine built from the exported file on this machine."""
        path = self.folder / f"{flavour}_{precision}_{tail}_{plugin}.trt"
        if not path.exists():
            from yolact_deploy.export.build_options import BuildOptions
            from yolact_deploy.export.engine import build_engine
            from yolact_deploy.runtime.tensorrt_api import import_tensorrt

            import_tensorrt(flavour)  # before the export, which takes longer
            build_engine(self.onnx(precision, tail), path, flavour=flavour, options=BuildOptions(plugin=plugin))
        return path


def candidates(shop: Workshop, device: int) -> Iterator[Candidate]:
    """All candidates; the first is the reference (eager FP32, the original method)."""
    weights, cuda = shop.weights, f"device=cuda:{device}"

    def torch(precision: str, options: str = "") -> Callable[[], str]:
        return lambda: f"{weights}@torch-{precision}:{cuda}{options}"

    for precision in ("fp32", "tf32", "fp16"):
        yield Candidate("PyTorch eager", precision, torch(precision))
    for precision in ("fp16", "bf16"):
        yield Candidate("PyTorch compiled", precision, torch(precision, ",compile=yes"))
    for provider in ("cuda", "tensorrt", "rtx"):
        for precision in ("fp32", "fp16"):
            yield Candidate(f"ONNX Runtime {provider}", precision, _onnxruntime(shop, provider, precision, cuda))
    for flavour, title in (("tensorrt", "TensorRT"), ("rtx", "TensorRT for RTX")):
        for precision in ("fp32", "fp16", "bf16"):
            engine = _engine(shop, flavour, precision, "heads", "off", cuda)
            yield Candidate(f"{title}, our kernels", precision, engine)
        yield Candidate(f"{title}, functions", "fp16", _engine(shop, flavour, "fp16", "functions", "off", cuda))
    for plugin in ("v3", "aot"):
        engine = _engine(shop, "tensorrt", "fp16", "functions", plugin, cuda)
        yield Candidate(f"TensorRT, {plugin} plugins", "fp16", engine)


def _onnxruntime(shop: Workshop, provider: str, precision: str, cuda: str) -> Callable[[], str]:
    return lambda: f"{shop.onnx(precision, 'heads')}@onnxruntime:provider={provider},{cuda}"


def _engine(shop: Workshop, flavour: str, precision: str, tail: str, plugin: str, cuda: str) -> Callable[[], str]:
    return lambda: f"{shop.engine(flavour, precision, tail, plugin)}@tensorrt:{cuda}"


def open_candidate(candidate: Candidate) -> Predictor:
    """The loaded model, all detections kept, masks pasted inside the call."""
    return load(candidate.prepare(), score_threshold=0.0, lazy_masks=False)


def measure_model(
    predictor: Predictor, frames: Frames, reference: Sequence[Detections] | None, *, calls: int, gmac: float | None
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
        for batch in BATCHES
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
    """Lists of ``batch`` images of one size, one list per call."""
    images = [frames[0]] * batch
    for _ in range(_WARM_UP):
        predictor(images)
    stages = []
    start = time.perf_counter()
    for _ in range(calls):
        predictor(images)
        stages.append(predictor.timings)
    seconds = time.perf_counter() - start
    return {
        "images_per_s": calls * batch / seconds,
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

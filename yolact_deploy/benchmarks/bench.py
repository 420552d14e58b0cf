"""`run_bench`: several models on the same images: accuracy, agreement with the first of them, speed and memory.

Nothing but COCO results (masks as RLE), sums and the few worst images is kept, so that thousands of images fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolact_deploy.benchmarks.accuracy import Accuracy, Result, accuracy
from yolact_deploy.benchmarks.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter, ImageAgreement
from yolact_deploy.benchmarks.coco import CocoImage, CocoImages
from yolact_deploy.benchmarks.engines import EngineSource, check_same_classes
from yolact_deploy.benchmarks.environment import environment
from yolact_deploy.benchmarks.latency import MEBIBYTE, Latency, MemorySampler, OtherLoad, measure_interleaved, warm_up
from yolact_deploy.console import progress
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.predictor import Predictor


@dataclass(frozen=True)
class EngineRow:
    """What was measured of one model; None where it could not be."""

    name: str
    backend: str
    precision: str
    image_size: int
    runtime: dict[str, Any]
    file_mib: float
    #: growth of the process while it was loaded and warmed up, see ``latency.MemorySampler``
    memory_mib: float
    latency: Latency
    #: p50 latency of the reference divided by this one's
    speedup: float
    accuracy: Accuracy | None
    agreement: Agreement | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "latency": self.latency.to_json(), "warnings": list(self.warnings)}


@dataclass(frozen=True)
class WorstImage:
    """An image on which the models disagree: what each found, above the score threshold."""

    image: CocoImage
    agreement: dict[str, ImageAgreement]
    detections: dict[str, Detections]

    def to_json(self) -> dict[str, Any]:
        counts = {
            name: {"missed": a.missed, "extra": a.extra, "label_flips": a.label_flips, "badness": a.badness}
            for name, a in self.agreement.items()
        }
        return {"image_id": self.image.image_id, "file_name": self.image.path.name, "engines": counts}


@dataclass(frozen=True)
class BenchResult:
    """Everything a benchmark found; ``reference`` names the row to which the others are compared."""

    environment: dict[str, Any]
    dataset: dict[str, Any]
    settings: dict[str, Any]
    reference: str
    rows: tuple[EngineRow, ...]
    worst: tuple[WorstImage, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "dataset": self.dataset,
            "settings": self.settings,
            "reference": self.reference,
            "engines": [row.to_json() for row in self.rows],
            "worst_images": [worst.to_json() for worst in self.worst],
        }


def run_bench(
    sources: Sequence[EngineSource],
    images: CocoImages,
    *,
    warmup: int = 3,
    repeats: int = 1,
    score_threshold: float = SCORE_THRESHOLD,
    keep_worst: int = 4,
    quiet: bool = False,
) -> BenchResult:
    """Measure models on the same images, in turns; the first is the reference (the eager model, if there is one).

    Args:
        warmup: calls of each model before the measurement, at least one
        repeats: rounds over all images for the latency; accuracy takes the first
        score_threshold: of the detections that agreement judges
        keep_worst: images to keep for the report

    Raises:
        InputError, DatasetError, BackendError, ...: models or images that cannot be used, or do not fit each other.
    """
    if not sources:
        raise InputError("nothing to measure: give --weights, --engine, or both")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise InputError(f"two models have the same name among {', '.join(names)}: give each once")
    warmup = max(1, warmup)
    with contextlib.ExitStack() as stack:
        predictors: dict[str, Predictor] = {}
        memory: dict[str, float] = {}
        for source in sources:
            with MemorySampler() as sampler:
                predictor = predictors[source.name] = stack.enter_context(source.load())
                warm_up(predictor, images.paths, warmup)
            memory[source.name] = sampler.growth_mib
            check_same_classes(names[0], predictors[names[0]], source.name, predictor)
        images.check_classes(predictors[names[0]].config)
        collector = _Collector(images, names, predictors[names[0]].config.category_ids, score_threshold, keep_worst)
        with OtherLoad() as others:
            latencies = measure_interleaved(
                predictors,
                images.paths,
                warmup=0,
                repeats=repeats,
                on_result=collector.add,
                each=lambda steps: progress(steps, "measuring", quiet=quiet),
            )
        rows = tuple(
            EngineRow(
                name=source.name,
                backend=predictor.backend.name,
                precision=predictor.backend.precision,
                image_size=predictor.config.image_size,
                runtime=predictor.backend.describe(),
                file_mib=source.file_bytes / MEBIBYTE,
                memory_mib=memory[source.name],
                latency=latencies[source.name],
                speedup=latencies[names[0]].p50 / latencies[source.name].p50,
                accuracy=collector.accuracy(source.name),
                agreement=collector.agreement(source.name),
                warnings=_warnings(sources[0], source, predictors[names[0]], predictor),
            )
            for source, predictor in zip(sources, predictors.values(), strict=True)
        )
    settings = {
        "warmup": warmup,
        "repeats": repeats,
        "batch": 1,
        "score_threshold": 0.0,
        "agreement_score_threshold": score_threshold,
        "cores_used_by_others": round(others.cores, 2),
        "measured": "picture file to pasted masks, models in turns on each image",
    }
    return BenchResult(environment(), images.to_json(), settings, names[0], rows, collector.worst())


class _Collector:
    """Takes the detections of each image and keeps what the tables and the report need."""

    def __init__(
        self,
        images: CocoImages,
        names: Sequence[str],
        category_ids: Sequence[int],
        score_threshold: float,
        keep_worst: int,
    ) -> None:
        self._images = images
        self._reference, *self._others = names
        self._category_ids = category_ids
        self._score_threshold = score_threshold
        self._keep_worst = keep_worst
        self._results: dict[str, list[Result]] = {name: [] for name in names}
        self._meters = {name: AgreementMeter(score_threshold) for name in self._others}
        self._worst: list[tuple[float, int, WorstImage]] = []

    def add(self, index: int, found: Mapping[str, Detections]) -> None:
        image = self._images.images[index]
        for name, detections in found.items():
            self._results[name] += detections.to_coco(image.image_id, self._category_ids)
        agreement = {name: self._meters[name].add(found[self._reference], found[name]) for name in self._others}
        badness = max((a.badness for a in agreement.values()), default=0.0)
        entry = (badness, -index)  # of equally bad images the earlier ones stay
        if len(self._worst) < self._keep_worst or (self._worst and entry > self._worst[0][:2]):
            # The measurement takes turns; the pictures always stand in the order of the models.
            shown = {name: found[name].above(self._score_threshold) for name in (self._reference, *self._others)}
            heapq.heappush(self._worst, (*entry, WorstImage(image, agreement, shown)))
            if len(self._worst) > self._keep_worst:
                heapq.heappop(self._worst)

    def accuracy(self, name: str) -> Accuracy | None:
        if self._images.content is None:
            return None
        return accuracy(self._images.content, self._results[name], self._images.image_ids)

    def agreement(self, name: str) -> Agreement | None:
        if name == self._reference:
            return None
        return self._meters[name].result(self._results[self._reference], self._results[name])

    def worst(self) -> tuple[WorstImage, ...]:
        return tuple(image for _, _, image in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))


def _warnings(
    reference_source: EngineSource, source: EngineSource, reference: Predictor, predictor: Predictor
) -> tuple[str, ...]:
    """What makes the comparison with the reference unfair."""
    found = []
    expected = reference_source.weights_sha256 or reference.backend.metadata.weights_sha256
    actual = source.weights_sha256 or predictor.backend.metadata.weights_sha256
    if expected and actual and expected != actual:
        found.append(f"made from other weights ({actual[:12]}) than {reference_source.name} ({expected[:12]})")
    elif expected and not actual:
        found.append("does not tell which weights it was made from")
    for what, a, b in (
        ("input size", reference.config.image_size, predictor.config.image_size),
        ("input dtype", reference.backend.metadata.input_dtype, predictor.backend.metadata.input_dtype),
        ("NMS", reference.nms, predictor.nms),
    ):
        if a != b:
            found.append(f"{what} {b}, {reference_source.name} has {a}")
    return tuple(found)

"""`run_bench`: several models on the same images: accuracy, agreement with the first of them, speed and memory.

Nothing but COCO results (masks as RLE), sums and the few worst images is kept, so that thousands of images fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolact_deploy.artifact import sha256_file
from yolact_deploy.benchmarks.latency import MEBIBYTE, Latency, measure_interleaved, warm_up
from yolact_deploy.benchmarks.limits import MachineLimits, Roofline, roofline
from yolact_deploy.benchmarks.machine_limits import machine_limits
from yolact_deploy.benchmarks.model_energy import measure_energy
from yolact_deploy.datasets.image_sets import CocoImage, CocoImages, fingerprint
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.evaluation.accuracy import Accuracy, AccuracyMeter, Result, by_image
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter, ImageAgreement
from yolact_deploy.evaluation.bootstrap import Interval, PairedBootstrap
from yolact_deploy.evaluation.diagnosis import diagnose
from yolact_deploy.evaluation.engines import EngineSource, check_same_classes
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.graph.macs import ELEMENT_BYTES, Macs, count_macs
from yolact_deploy.machine.conditions import Conditions, ConditionsMeter
from yolact_deploy.machine.energy import Energy
from yolact_deploy.machine.environment import environment
from yolact_deploy.machine.peak_memory import PeakMemory, PeakMemoryMeter
from yolact_deploy.machine.yardstick import Yardstick, YardstickTimes
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import stage_with

#: of what ``BenchResult.to_json`` gives: schema/bench-v1.schema.json
SCHEMA = "bench-v1"
#: decimals of a stored sample in ms: a tenth of a microsecond
_SAMPLE_DECIMALS = 4
#: share of the detections, below which a mistake is looked for
_AGREES = 0.95
#: pictures on which is tried out what is wrong with an engine
_DIAGNOSED = 2


@dataclass(frozen=True)
class EngineRow:
    """What was measured of one model; None where it could not be."""

    name: str
    backend: str
    precision: str
    image_size: int
    runtime: dict[str, Any]
    file_mib: float
    #: growth of the process at its peak while it was loaded and warmed up
    memory_mib: float
    latency: Latency
    #: p50 latency of the reference divided by this one's
    speedup: float
    accuracy: Accuracy | None
    agreement: Agreement | None
    warnings: tuple[str, ...]
    #: of the model's file, and of the checkpoint that it was made from
    file_sha256: str | None = None
    weights_sha256: str | None = None
    #: of process and GPUs while it was loaded and warmed up
    memory: PeakMemory | None = None
    #: of the model alone; None where nobody asked
    energy: Energy | None = None
    #: what is probably wrong with it, where that was asked and it does not agree with the reference
    diagnosis: str | None = None
    #: AP of "box" and "mask" minus the reference's, where there is ground truth
    ap_difference: dict[str, Interval] = field(default_factory=dict)
    #: None where nobody asked
    roofline: Roofline | None = None

    def to_json(self) -> dict[str, Any]:
        samples = [round(sample, _SAMPLE_DECIMALS) for sample in self.latency.samples]
        return {
            **dataclasses.asdict(self),
            "latency": {**self.latency.to_json(), "samples_ms": samples},
            "memory": self.memory.to_json() if self.memory else None,
            "energy": self.energy.to_json() if self.energy else None,
            "warnings": list(self.warnings),
        }


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
    """Everything a benchmark found.

    Attributes:
        reference: names the row to which the others are compared
        conditions: what the machine told while latency was measured
        limits: of each device that a roofline was measured of
        yardstick: how fast the machine was meanwhile
    """

    environment: dict[str, Any]
    dataset: dict[str, Any]
    settings: dict[str, Any]
    reference: str
    rows: tuple[EngineRow, ...]
    worst: tuple[WorstImage, ...]
    conditions: Conditions | None = None
    limits: dict[str, MachineLimits] = field(default_factory=dict)
    yardstick: YardstickTimes | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "dataset": self.dataset,
            "settings": self.settings,
            "reference": self.reference,
            "engines": [row.to_json() for row in self.rows],
            "worst_images": [worst.to_json() for worst in self.worst],
            "conditions": self.conditions.to_json() if self.conditions else None,
            "limits": {device: limits.to_json() for device, limits in self.limits.items()},
            "yardstick": self.yardstick.to_json() if self.yardstick else None,
        }


def run_bench(
    sources: Sequence[EngineSource],
    images: CocoImages,
    *,
    warmup: int = 3,
    repeats: int = 1,
    score_threshold: float = SCORE_THRESHOLD,
    keep_worst: int = 4,
    energy_seconds: float | None = None,
    find_mistakes: bool = False,
    with_roofline: bool = False,
    progress: Progress = SILENT,
) -> BenchResult:
    """Measure models on the same images, in turns; the first is the reference (the eager model, if there is one).

    Args:
        warmup: calls of each model before the measurement, at least one
        repeats: rounds over all images for the latency; accuracy takes the first
        score_threshold: of the detections that agreement judges
        keep_worst: images to keep for the report
        energy_seconds: run each model alone for so long, after the latency, and tell its energy
        with_roofline: measure what the machine can do at best, and tell each network's share of it
        find_mistakes: try out what is wrong with a model that does not agree with the reference

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
        memory: dict[str, PeakMemory] = {}
        for source in sources:
            with PeakMemoryMeter() as meter:
                predictor = predictors[source.name] = stack.enter_context(source.load())
                warm_up(predictor, images.paths, warmup)
            memory[source.name] = meter.peak
            check_same_classes(names[0], predictors[names[0]], source.name, predictor)
        images.check_classes(predictors[names[0]].config)
        collector = _Collector(images, names, predictors[names[0]].config.category_ids, score_threshold, keep_worst)
        with Yardstick(repeats * len(images)) as yardstick, ConditionsMeter() as watched:
            latencies = measure_interleaved(
                predictors,
                images.paths,
                warmup=0,
                repeats=repeats,
                on_result=collector.add,
                after_step=yardstick.after,
                each=lambda steps: progress.track(steps, "measuring"),
            )
        energy = {
            name: measure_energy(predictor, images.paths, seconds=energy_seconds)
            for name, predictor in predictors.items()
            if energy_seconds is not None
        }
        agreement = {name: collector.agreement(name) for name in names}
        rooflines, limits = _rooflines(sources, predictors, latencies) if with_roofline else ({}, {})
        rows = tuple(
            EngineRow(
                name=source.name,
                backend=predictor.backend.name,
                precision=predictor.backend.precision,
                image_size=predictor.config.image_size,
                runtime=_runtime(predictor),
                file_mib=source.file_bytes / MEBIBYTE,
                memory_mib=memory[source.name].host_growth_mib,
                memory=memory[source.name],
                latency=latencies[source.name],
                speedup=latencies[names[0]].p50 / latencies[source.name].p50,
                accuracy=collector.accuracy(source.name),
                agreement=agreement[source.name],
                warnings=_warnings(sources[0], source, predictors[names[0]], predictor),
                file_sha256=sha256_file(source.path) if source.path else None,
                weights_sha256=_weights_sha256(source, predictor) or None,
                energy=energy.get(source.name),
                ap_difference=collector.ap_difference(source.name),
                roofline=rooflines.get(source.name),
                diagnosis=_diagnosis(predictors[names[0]], predictor, collector.worst_of(source.name), score_threshold)
                if find_mistakes and _differs(agreement[source.name])
                else None,
            )
            for source, predictor in zip(sources, predictors.values(), strict=True)
        )
    settings = {
        "warmup": warmup,
        "repeats": repeats,
        "batch": 1,
        "score_threshold": 0.0,
        "agreement_score_threshold": score_threshold,
        "cores_used_by_others": round(watched.conditions.other_cores or 0.0, 2),
        "measured": "picture file to pasted masks, models in turns on each image",
    }
    dataset = {**images.to_json(), "fingerprint": fingerprint(images)}
    return BenchResult(
        environment(),
        dataset,
        settings,
        names[0],
        rows,
        collector.worst(),
        watched.conditions,
        limits,
        yardstick.times,
    )


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
        self._scores: dict[str, tuple[Accuracy, dict[str, Matches]]] = {}
        #: of the reference, by "box" and "mask"
        self._bootstraps: dict[str, PairedBootstrap] = {}

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
        scored = self._scored(name)
        return None if scored is None else scored[0]

    def ap_difference(self, name: str) -> dict[str, Interval]:
        """Of "box" and "mask"; empty for the reference, and without objects to find."""
        ours, theirs = self._scored(self._reference), self._scored(name)
        if name == self._reference or ours is None or theirs is None:
            return {}
        if not self._bootstraps:
            scored = {kind: matches for kind, matches in ours[1].items() if matches.objects[:, 0].any()}
            self._bootstraps = {kind: PairedBootstrap(matches) for kind, matches in scored.items()}
        return {kind: bootstrap.difference(theirs[1][kind]) for kind, bootstrap in self._bootstraps.items()}

    def _scored(self, name: str) -> tuple[Accuracy, dict[str, Matches]] | None:
        """Accuracy and what hit what, of one model; computed once."""
        if self._images.content is None:
            return None
        if name not in self._scores:
            meter = AccuracyMeter(self._images.content, self._images.image_ids)
            for image_id, found in by_image(self._results[name]).items():
                meter.add(image_id, found)
            self._scores[name] = meter.result(), meter.matches()
        return self._scores[name]

    def agreement(self, name: str) -> Agreement | None:
        if name == self._reference:
            return None
        return self._meters[name].result(self._results[self._reference], self._results[name])

    def worst(self) -> tuple[WorstImage, ...]:
        return tuple(image for _, _, image in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))

    def worst_of(self, name: str) -> list[CocoImage]:
        """The kept images on which one model differs, the worst first."""
        found = [(image.agreement[name].badness, image.image) for image in self.worst()]
        return [image for badness, image in sorted(found, key=lambda entry: entry[0], reverse=True) if badness]


def _differs(agreement: Agreement | None) -> bool:
    return agreement is not None and agreement.agreed_share is not None and agreement.agreed_share < _AGREES


def _diagnosis(
    reference: Predictor, engine: Predictor, images: Sequence[CocoImage], score_threshold: float
) -> str | None:
    pictures = [read_image(image.path) for image in images[:_DIAGNOSED]]
    if not pictures:
        return None
    found = diagnose(reference, engine, pictures, score_threshold=score_threshold)
    return None if found.kind == "agree" else found.sentence


def _warnings(
    reference_source: EngineSource, source: EngineSource, reference: Predictor, predictor: Predictor
) -> tuple[str, ...]:
    """What makes the comparison with the reference unfair."""
    found = []
    expected = _weights_sha256(reference_source, reference)
    actual = _weights_sha256(source, predictor)
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


def _weights_sha256(source: EngineSource, predictor: Predictor) -> str:
    """Of the checkpoint; empty where nobody knows it."""
    return source.weights_sha256 or predictor.backend.metadata.weights_sha256


def _runtime(predictor: Predictor) -> dict[str, Any]:
    """What the backend tells, but for where the file lies."""
    return {key: value for key, value in predictor.backend.describe().items() if key != "engine"}


# -- roofline -------------------------------------------------------------------------------------------------------


def _rooflines(
    sources: Sequence[EngineSource], predictors: Mapping[str, Predictor], latencies: Mapping[str, Latency]
) -> tuple[dict[str, Roofline], dict[str, MachineLimits]]:
    """Of each model whose precision the counting knows, and the limits of the devices that they run on.

    The time is that of the stage that has the network in it, which may do more: then the share is too low.
    """
    limits: dict[str, MachineLimits] = {}
    found: dict[str, Roofline] = {}
    for source in sources:
        predictor, stages = predictors[source.name], latencies[source.name].stages_p50
        stage = stage_with("network", stages)
        precision = predictor.backend.precision
        if stage is None or not stages[stage] > 0 or precision not in ELEMENT_BYTES:
            continue
        device = str(predictor.backend.describe().get("device", "cpu"))
        if device not in limits:
            limits[device] = machine_limits(device)
        found[source.name] = roofline(_macs(source, predictor), stages[stage], precision, limits[device])
    return found, limits


def _macs(source: EngineSource, predictor: Predictor) -> Macs:
    """Counted from the file where it is an ONNX file, else from the configuration that it was made from."""
    if source.path is not None and source.path.suffix == ".onnx":
        return count_macs(source.path)
    import_optional("torch", "export", "Counting a checkpoint")
    from yolact_deploy.model.model_macs import count_model_macs

    return count_model_macs(predictor.config)

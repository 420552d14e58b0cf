"""`run_bench` measures several models on the same images: accuracy, agreement with the first model, speed and memory.

It keeps only COCO results (masks as RLE), sums and the few worst images, so thousands of images fit into memory.
"""

from __future__ import annotations

import contextlib
import heapq
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from yolact_deploy.artifact import sha256_file
from yolact_deploy.benchmarks.latency import MEBIBYTE, measure_interleaved, warm_up
from yolact_deploy.benchmarks.limits import MachineLimits, Roofline, roofline
from yolact_deploy.benchmarks.machine_limits import machine_limits
from yolact_deploy.benchmarks.model_energy import measure_energy
from yolact_deploy.benchmarks.record import (
    BenchSettings,
    EngineRecord,
    Environment,
    ImageErrors,
    Latency,
    MeasuredImages,
    Record,
    WorstImage,
)
from yolact_deploy.config import size_text
from yolact_deploy.datasets.image_sets import CocoImages, fingerprint
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.evaluation.accuracy import Accuracy, AccuracyMeter, Result, by_image, scoring_limit
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD, Agreement, AgreementMeter
from yolact_deploy.evaluation.bootstrap import Interval, PairedBootstrap
from yolact_deploy.evaluation.diagnosis import diagnose
from yolact_deploy.evaluation.engines import EngineSource, check_same_classes
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.graph.macs import ELEMENT_BYTES, Macs, count_macs
from yolact_deploy.machine.conditions import Conditions, ConditionsMeter
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.machine.energy import Energy
from yolact_deploy.machine.environment import environment
from yolact_deploy.machine.peak_memory import PeakMemory, PeakMemoryMeter
from yolact_deploy.machine.yardstick import Yardstick, YardstickTimes
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import stage_with

#: below this share of agreeing detections, known mistakes are tried
_AGREES = 0.95
#: images on which known mistakes are tried
_DIAGNOSED = 2


@dataclass(frozen=True)
class WorstPicture:
    """An image on which the models disagree, with what each detected above the score threshold."""

    path: Path
    errors: WorstImage
    detections: dict[str, Detections]


@dataclass(frozen=True)
class BenchRun:
    """A run just measured: its record, and the worst images, whose pixels and detections no record holds."""

    record: Record
    pictures: tuple[WorstPicture, ...]


@dataclass(frozen=True)
class _Model:
    """A loaded model, and the memory that loading and warming up took."""

    source: EngineSource
    predictor: Predictor
    memory: PeakMemory

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def weights_sha256(self) -> str:
        """Hash of the checkpoint; empty where it is not known."""
        return self.source.weights_sha256 or self.predictor.backend.metadata.weights_sha256


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
) -> BenchRun:
    """Measure models on the same images, in turns; the first is the reference (the eager model, if there is one).

    Args:
        warmup: calls of each model before the measurement, at least one
        repeats: rounds over all images for the latency; accuracy uses the first
        score_threshold: agreement judges detections above it
        keep_worst: images to keep for the report
        energy_seconds: run each model alone for this long, after the latency, and measure its energy
        find_mistakes: try known mistakes on a model that disagrees with the reference
        with_roofline: measure what the machine can do at best, and each network's share of it

    Raises:
        InputError, DatasetError, BackendError, ...: models or images that cannot be used, or do not fit each other.
    """
    if repeats < 1:
        raise InputError(f"expected warmup >= 0 and repeats >= 1, got {warmup} and {repeats}")
    warmup = max(1, warmup)
    with contextlib.ExitStack() as stack:
        models = _load(sources, images, warmup, stack, progress)
        collector = _Collector(images, models, score_threshold, keep_worst)
        clocked = _clock(models, images, repeats, collector, progress)
        rooflines, limits = _rooflines(models, clocked.latencies, progress) if with_roofline else ({}, {})
        energies = _energies(models, images, energy_seconds, progress)
        diagnoses = {model.name: _diagnosis(models[0], model, collector) for model in models if find_mistakes}
        engines = [_engine_record(m, models[0], clocked, collector, rooflines, energies, diagnoses) for m in models]
    return _run(images, engines, clocked, limits, collector, warmup, repeats)


@dataclass(frozen=True)
class _Clocked:
    """Times of all models, and what the machine did meanwhile."""

    latencies: dict[str, Latency]
    conditions: Conditions
    yardstick: YardstickTimes


def _load(
    sources: Sequence[EngineSource],
    images: CocoImages,
    warmup: int,
    stack: contextlib.ExitStack,
    progress: Progress,
) -> list[_Model]:
    """The models, warm; ``stack`` closes them."""
    names = [source.name for source in sources]
    if not names:
        raise InputError("nothing to measure: give --weights, --engine, or both")
    if len(set(names)) < len(names):
        raise InputError(f"two models have the same name among {', '.join(names)}: give each once")
    models: list[_Model] = []
    for source in progress.track(sources, "loading", unit="models"):
        with PeakMemoryMeter() as meter:
            predictor = stack.enter_context(source.load())
            warm_up(predictor, images.paths, warmup)
        models.append(_Model(source, predictor, meter.peak))
        check_same_classes(models[0].name, models[0].predictor, source.name, predictor)
    return models


def _clock(
    models: Sequence[_Model], images: CocoImages, repeats: int, collector: _Collector, progress: Progress
) -> _Clocked:
    with Yardstick(repeats * len(images)) as yardstick, ConditionsMeter() as meter:
        latencies = measure_interleaved(
            {model.name: model.predictor for model in models},
            images.paths,
            warmup=0,
            repeats=repeats,
            on_result=collector.add,
            after_step=yardstick.after,
            each=lambda steps: progress.track(steps, "measuring"),
        )
    return _Clocked(latencies, meter.conditions, yardstick.times)


def _energies(
    models: Sequence[_Model], images: CocoImages, seconds: float | None, progress: Progress
) -> dict[str, Energy]:
    if seconds is None:
        return {}
    alone = progress.track(models, "measuring energy", unit="models")
    return {model.name: measure_energy(model.predictor, images.paths, seconds=seconds) for model in alone}


def _engine_record(
    model: _Model,
    reference: _Model,
    clocked: _Clocked,
    collector: _Collector,
    rooflines: Mapping[str, Roofline],
    energies: Mapping[str, Energy],
    diagnoses: Mapping[str, str | None],
) -> EngineRecord:
    backend, source, latency = model.predictor.backend, model.source, clocked.latencies[model.name]
    return EngineRecord(
        name=model.name,
        backend=backend.name,
        precision=backend.precision,
        image_size=model.predictor.config.image_size,
        runtime=_runtime(backend),
        file_mib=source.file_bytes / MEBIBYTE,
        memory_mib=model.memory.host_growth_mib,
        latency=latency,
        speedup=clocked.latencies[reference.name].p50_ms / latency.p50_ms,
        accuracy=collector.accuracy(model.name),
        agreement=collector.agreement(model.name),
        warnings=_warnings(reference, model),
        file_sha256=sha256_file(source.path) if source.path else None,
        weights_sha256=model.weights_sha256 or None,
        memory=model.memory,
        energy=energies.get(model.name),
        diagnosis=diagnoses.get(model.name),
        ap_difference=collector.ap_difference(model.name),
        roofline=rooflines.get(model.name),
    )


def _runtime(backend: Backend) -> dict[str, Any]:
    """What the backend reports, without the path of the file, as it comes back from JSON (tuples become lists)."""
    runtime: dict[str, Any] = json.loads(json.dumps(backend.describe()))
    runtime.pop("engine", None)
    return runtime


def _run(
    images: CocoImages,
    engines: Sequence[EngineRecord],
    clocked: _Clocked,
    limits: dict[str, MachineLimits],
    collector: _Collector,
    warmup: int,
    repeats: int,
) -> BenchRun:
    pictures = collector.worst()
    record = Record(
        environment=cast(Environment, environment()),
        dataset=MeasuredImages(
            annotations=images.annotations.name if images.annotations else None,
            images=len(images),
            available=images.available,
            image_ids=tuple(images.image_ids) if images.annotations else None,
            fingerprint=fingerprint(images),
        ),
        settings=BenchSettings(
            warmup=warmup,
            repeats=repeats,
            agreement_score_threshold=collector.score_threshold,
            cores_used_by_others=round(clocked.conditions.other_cores or 0.0, 2),
        ),
        reference=engines[0].name,
        engines=tuple(engines),
        worst_images=tuple(picture.errors for picture in pictures),
        conditions=clocked.conditions,
        limits=limits,
        yardstick=clocked.yardstick,
    )
    return BenchRun(record, pictures)


class _Collector:
    """Takes the detections of each image and keeps what the record and the report need."""

    def __init__(self, images: CocoImages, models: Sequence[_Model], score_threshold: float, keep_worst: int) -> None:
        self._images = images
        self._reference, *self._others = names = [model.name for model in models]
        first = models[0].predictor.config
        self._category_ids = images.category_ids(first, models[0].name)
        for model in models:  # the first may have no names
            if model.predictor.config.class_names != first.class_names:
                images.category_ids(model.predictor.config, model.name)
        self._limit = max(scoring_limit(model.predictor.config) for model in models)
        self.score_threshold = score_threshold
        self._keep_worst = keep_worst
        self._results: dict[str, list[Result]] = {name: [] for name in names}
        self._meters = {name: AgreementMeter(score_threshold) for name in self._others}
        self._worst: list[tuple[float, int, WorstPicture]] = []
        self._agreements: dict[str, Agreement] = {}
        self._scores: dict[str, tuple[Accuracy, dict[str, Matches]]] = {}

    def add(self, index: int, detections: Mapping[str, Detections]) -> None:
        """Take what each model detects on one image."""
        image = self._images.images[index]
        for name, of_model in detections.items():
            self._results[name] += of_model.to_coco(image.image_id, self._category_ids)
        reference = detections[self._reference]
        errors = {}
        for name in self._others:
            a = self._meters[name].add(reference, detections[name])
            errors[name] = ImageErrors(a.missed, a.extra, a.label_flips, a.badness)
        entry = (max((e.badness for e in errors.values()), default=0.0), -index)  # of equally bad images the first stay
        if len(self._worst) < self._keep_worst or (self._worst and entry > self._worst[0][:2]):
            # The models take turns; the pictures are always in their order.
            shown = {name: detections[name].above(self.score_threshold) for name in (self._reference, *self._others)}
            worst = WorstImage(image.image_id, image.path.name, errors)
            heapq.heappush(self._worst, (*entry, WorstPicture(image.path, worst, shown)))
            if len(self._worst) > self._keep_worst:
                heapq.heappop(self._worst)

    def accuracy(self, name: str) -> Accuracy | None:
        scored = self._scored(name)
        return None if scored is None else scored[0]

    def ap_difference(self, name: str) -> dict[str, Interval]:
        """By "box" and "mask"; empty for the reference, and without annotated objects."""
        return {} if name == self._reference else self._differences[name]

    @cached_property
    def _differences(self) -> dict[str, dict[str, Interval]]:
        """Of all models but the reference; NumPy works outside the interpreter's lock, so threads share the cores."""
        scored = {name: self._scored(name) for name in (self._reference, *self._others)}
        matches = {name: of_model[1] for name, of_model in scored.items() if of_model is not None}
        if not matches:
            return {name: {} for name in self._others}
        reference = {kind: ours for kind, ours in matches[self._reference].items() if ours.objects[:, 0].any()}
        with ThreadPoolExecutor(usable_cores()) as pool:
            bootstraps = dict(zip(reference, pool.map(PairedBootstrap, reference.values()), strict=True))
            jobs = {
                name: {kind: pool.submit(own.difference, matches[name][kind]) for kind, own in bootstraps.items()}
                for name in self._others
            }
            return {name: {kind: job.result() for kind, job in of_kind.items()} for name, of_kind in jobs.items()}

    def _scored(self, name: str) -> tuple[Accuracy, dict[str, Matches]] | None:
        """Accuracy and matches of one model, computed once."""
        if self._images.content is None:
            return None
        if name not in self._scores:
            meter = AccuracyMeter(self._images.content, self._images.image_ids, max_detections=self._limit)
            for image_id, results in by_image(self._results[name]).items():
                meter.add(image_id, results)
            self._scores[name] = meter.result(), meter.matches()
        return self._scores[name]

    def agreement(self, name: str) -> Agreement | None:
        """With the reference, computed once; None for the reference itself."""
        if name not in self._agreements and name != self._reference:
            result = self._meters[name].result(self._results[self._reference], self._results[name])
            self._agreements[name] = result
        return self._agreements.get(name)

    def worst(self) -> tuple[WorstPicture, ...]:
        return tuple(picture for _, _, picture in sorted(self._worst, key=lambda entry: entry[:2], reverse=True))

    def worst_of(self, name: str) -> list[Path]:
        """The kept images on which one model differs, worst first."""
        pictures = [picture for picture in self.worst() if picture.errors.engines[name].badness]
        pictures.sort(key=lambda picture: picture.errors.engines[name].badness, reverse=True)
        return [picture.path for picture in pictures]


def _diagnosis(reference: _Model, model: _Model, collector: _Collector) -> str | None:
    """The known mistake that explains why a model disagrees with the reference."""
    agreement = collector.agreement(model.name)
    if agreement is None or agreement.agreed_share is None or agreement.agreed_share >= _AGREES:
        return None
    pictures = [read_image(path) for path in collector.worst_of(model.name)[:_DIAGNOSED]]
    if not pictures:
        return None
    diagnosis = diagnose(reference.predictor, model.predictor, pictures, score_threshold=collector.score_threshold)
    return None if diagnosis.kind == "agree" else diagnosis.sentence


def _warnings(reference: _Model, model: _Model) -> tuple[str, ...]:
    """What makes the comparison with the reference unfair."""
    warnings = []
    expected, actual = reference.weights_sha256, model.weights_sha256
    if expected and actual and expected != actual:
        warnings.append(f"made from other weights ({actual[:12]}) than {reference.name} ({expected[:12]})")
    elif expected and not actual:
        warnings.append("does not record which weights it was made from")
    a, b = reference.predictor, model.predictor
    for what, ours, theirs in (
        ("input size", size_text(a.config.image_size), size_text(b.config.image_size)),
        ("fit", a.config.fit, b.config.fit),
        ("input dtype", a.backend.metadata.input_dtype, b.backend.metadata.input_dtype),
        ("NMS", a.nms, b.nms),
    ):
        if ours != theirs:
            warnings.append(f"{what} {theirs}, {reference.name} has {ours}")
    return tuple(warnings)


def _rooflines(
    models: Sequence[_Model], latencies: Mapping[str, Latency], progress: Progress
) -> tuple[dict[str, Roofline], dict[str, MachineLimits]]:
    """Of each model whose precision can be counted, and the limits of the devices that they run on.

    The time is that of the stage that contains the network. If that stage does more, the share is too low.
    """
    limits: dict[str, MachineLimits] = {}
    rooflines: dict[str, Roofline] = {}
    for model in progress.track(models, "measuring the roofline", unit="models"):
        backend, stages = model.predictor.backend, latencies[model.name].stages_p50_ms
        stage = stage_with("network", stages)
        if stage is None or not stages[stage] > 0 or backend.precision not in ELEMENT_BYTES:
            continue
        device = str(backend.describe().get("device", "cpu"))
        if device not in limits:
            limits[device] = machine_limits(device)
        rooflines[model.name] = roofline(_macs(model), stages[stage], backend.precision, limits[device])
    return rooflines, limits


def _macs(model: _Model) -> Macs:
    """Counted from an ONNX file; for other files, from the configuration that the model was made from."""
    path = model.source.path
    if path is not None and path.suffix == ".onnx":
        return count_macs(path)
    import_optional("torch", "export", "Counting a checkpoint")
    from yolact_deploy.model.model_macs import count_model_macs

    return count_model_macs(model.predictor.config)

"""`evaluate`: the COCO average precision of one model, image by image, and where the time goes.

The detections of each image are written to the cache file (if any), matched with the ground truth, and dropped, so that
thousands of images need no more memory than a few. Only faster-coco-eval keeps them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from yolact_deploy.artifact import sha256_file
from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.image_sets import CocoImage, CocoImages, fingerprint
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.accuracy import Accuracy, AccuracyMeter, Result, scoring_limit
from yolact_deploy.evaluation.detection_cache import DetectionCache
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.inspection import inspect_file
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.predictor_pool import PredictorPool
from yolact_deploy.runtime.sliced_predictor import SlicedPredictor
from yolact_deploy.runtime.stage_timer import StageTimer, stage_with
from yolact_deploy.version import __version__
from yolact_deploy.vocabulary import EVALUATORS

#: stages of an evaluation in addition to the predictor's
EVAL_STAGES = {
    "encode": "masks to COCO RLE",
    "store": "detections into the cache file",
    "read": "detections out of the cache file",
    "match": "detections with ground truth",
    "accumulate": "average precision of the matches",
}


@dataclass(frozen=True)
class EvalTime:
    """Where the time went, in seconds.

    Attributes:
        ran: number of images run through the model
        stored: number of images whose detections came from the cache
        load_s: time to load the model, not part of ``whole_s``
        whole_s: time from the first image to the figures
        stages_s: time of the predictor's stages and of :data:`EVAL_STAGES`, added up over all processes
        workers: predictors that ran at the same time; if several, each in a process of its own
    """

    ran: int
    stored: int
    load_s: float
    whole_s: float
    stages_s: dict[str, float]
    workers: int = 1

    @property
    def processes_s(self) -> float:
        """Time of all processes: those of the workers, and with several the one that matches."""
        return self.whole_s * (self.workers + (self.workers > 1))

    @property
    def unaccounted_s(self) -> float:
        """Time outside all stages, of all processes."""
        return self.processes_s - sum(self.stages_s.values())

    @property
    def network_stage(self) -> str | None:
        """The stage that includes the network, possibly with other work; None if no image was run."""
        return stage_with("network", self.stages_s)

    @property
    def outside_network(self) -> float | None:
        """Share of the workers' time, 0..1, outside :attr:`network_stage`; None if no image was run."""
        stage = self.network_stage
        return 1 - self.stages_s[stage] / (self.whole_s * self.workers) if stage and self.ran else None

    def to_json(self) -> dict[str, Any]:
        return {
            "images_run": self.ran,
            "images_stored": self.stored,
            "load_s": self.load_s,
            "whole_s": self.whole_s,
            "workers": self.workers,
            "stages_s": self.stages_s,
            "unaccounted_s": self.unaccounted_s,
            "network_stage": self.network_stage,
            "outside_network": self.outside_network,
        }


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes:
        matches: of "box" and "mask", for ``bootstrap.PairedBootstrap``; empty with faster-coco-eval
    """

    accuracy: Accuracy
    time: EvalTime
    matches: dict[str, Matches] = field(default_factory=dict)


def evaluate(
    model: Predictor | EngineSource,
    images: CocoImages,
    *,
    evaluator: str = EVALUATORS[0],
    cache: DetectionCache | None = None,
    on_results: Callable[[Sequence[Result]], None] | None = None,
    workers: int = 1,
    progress: Progress = SILENT,
) -> Evaluation:
    """Run a model with score threshold 0 over annotated images, and score its detections.

    Args:
        model: a source is loaded only if there are images left to run, and closed afterwards
        cache: has the detections of the first images and receives those of the others
        on_results: called with the COCO results of each image
        workers: predictors to run at the same time, each in a process with one thread, or with the threads that the
            source names; more than one requires a source. The figures are the same

    Raises:
        DatasetError: the images have no annotations, or classes that the model does not have.
    """
    if images.content is None:
        raise DatasetError("these images have no annotations: use --coco DIR with instances_*.json, or --annotations")
    stored = cache.stored if cache else 0
    start = time.perf_counter()
    load_s = 0.0
    with contextlib.ExitStack() as stack:
        running = None
        if stored < len(images):
            running = _open(model, workers, stack, progress)
            load_s = time.perf_counter() - start
            name = model.name if isinstance(model, EngineSource) else None
            own, ids = running.config.category_ids, images.category_ids(running.config, name)
            renumber = {} if own == ids else dict(zip(own, ids, strict=True))
        config = running.config if running else _stored_config(model)
        limit = scoring_limit(config, sliced=model.slicing is not None)
        meter = AccuracyMeter(images.content, images.image_ids, evaluator=evaluator, max_detections=limit)
        run = _Run(meter, on_results)
        if cache and stored:
            run.read(cache, progress)
        if running:
            run.predict(running.results, images.images[stored:], renumber, cache, progress)
    accuracy, matches = run.score()
    whole_s = time.perf_counter() - start - load_s
    spent = {stage: ms / 1e3 for stage, ms in run.timer.spent.items()}
    return Evaluation(accuracy, EvalTime(len(images) - stored, stored, load_s, whole_s, spent, workers), matches)


def _stored_config(model: Predictor | EngineSource) -> YolactConfig:
    """The configuration of a model that need not be loaded, since all its detections are in the cache."""
    if isinstance(model, Predictor):
        return model.config
    facts = inspect_file(model.path) if model.path else {}
    stored = (facts.get("metadata") or {}).get("config") or facts.get("inferred_config")
    return YolactConfig.from_dict(stored) if stored else YolactConfig()


class ImageResults(NamedTuple):
    """What a model detects on one image, and the milliseconds of each stage."""

    results: list[Result]
    spent_ms: dict[str, float]


#: runs images, in their order
_Results = Callable[[Iterable[CocoImage]], Iterator[ImageResults]]


class _Running(NamedTuple):
    """A loaded model."""

    config: YolactConfig
    results: _Results


def _open(model: Predictor | EngineSource, workers: int, stack: contextlib.ExitStack, progress: Progress) -> _Running:
    """Load a model once, or once in each of several processes; ``stack`` closes what is opened here."""
    if workers == 1:
        predictor = stack.enter_context(model.load()) if isinstance(model, EngineSource) else model
        predictor.stage_times = True  # the report has the time of each stage
        if isinstance(predictor, SlicedPredictor):
            predictor.progress = progress
        return _Running(predictor.config, partial(map, partial(coco_results, predictor)))
    if not isinstance(model, EngineSource) or model.spec is None:
        raise InputError(f"{workers} workers load the model themselves: pass an EngineSource of a file")
    threads = model.spec.threads or 1
    pool = stack.enter_context(PredictorPool(partial(model.load, threads=threads), coco_results, workers, threads))
    return _Running(pool.config, pool.map)


def coco_results(predictor: Predictor, image: CocoImage) -> ImageResults:
    """Run one image."""
    timer = StageTimer()
    detections = predictor(image.path)
    timer.add(predictor.timings)
    with timer.stage("encode"):
        results = detections.to_coco(image.image_id, predictor.config.category_ids)
    return ImageResults(results, timer.spent)


class _Run:
    """One evaluation in progress."""

    def __init__(self, meter: AccuracyMeter, on_results: Callable[[Sequence[Result]], None] | None) -> None:
        self.timer = StageTimer()
        self._meter, self._on_results = meter, on_results

    def read(self, cache: DetectionCache, progress: Progress) -> None:
        """Score the detections that are already in the cache."""
        stored = iter(cache)
        for _ in progress.track(range(cache.stored), f"reading {cache.path.name}"):
            with self.timer.stage("read"):
                image_id, results = next(stored)
            self._take(image_id, results)

    def predict(
        self,
        results: _Results,
        images: Sequence[CocoImage],
        renumber: Mapping[int, int],
        cache: DetectionCache | None,
        progress: Progress,
    ) -> None:
        """Run and score the images; ``renumber`` has the dataset's category ids by the model's, if they differ."""
        done = progress.track(results(images), "evaluating", len(images))
        for image, of_image in zip(images, done, strict=True):
            self.timer.add(of_image.spent_ms)
            of_dataset = of_image.results
            if renumber:
                of_dataset = [{**r, "category_id": renumber[r["category_id"]]} for r in of_dataset]
            if cache:
                with self.timer.stage("store"):
                    cache.add(image.image_id, of_dataset)
            self._take(image.image_id, of_dataset)

    def _take(self, image_id: int, results: Sequence[Result]) -> None:
        with self.timer.stage("match"):
            self._meter.add(image_id, results)
        if self._on_results:
            self._on_results(results)

    def score(self) -> tuple[Accuracy, dict[str, Matches]]:
        with self.timer.stage("match"):
            matches = self._meter.matches()
        with self.timer.stage("accumulate"):
            return self._meter.result(), matches


def cache_key(source: EngineSource, choice: Mapping[str, Any], images: CocoImages) -> dict[str, Any]:
    """Everything the detections of a model file depend on, for :class:`DetectionCache`.

    Args:
        choice: how the file is run: backend and options
    """
    if source.path is None:
        raise InputError(f"{source.name} is no file and may change while it is evaluated: leave out --cache")
    return {
        "yolact_deploy": __version__,
        "model_sha256": " ".join(map(sha256_file, source.spec.files if source.spec else [source.path])),
        **choice,
        "images": len(images),
        "image_list_sha256": fingerprint(images),
        "classes_sha256": _classes_digest(images),
    }


def _classes_digest(images: CocoImages) -> str:
    """Of what a model's classes are checked against, which a complete cache is not checked against again."""
    names = sorted((category["id"], category["name"]) for category in (images.content or {}).get("categories", ()))
    return hashlib.sha256(json.dumps([names, images.match_classes]).encode()).hexdigest()

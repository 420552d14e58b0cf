"""`evaluate`: the COCO average precision of one model, image by image, and where the time goes.

Of each image, the detections are put into the cache file where there is one, matched with the ground truth, and
forgotten, so that thousands of images need no more memory than a few (faster-coco-eval keeps them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from yolact_deploy.artifact import sha256_file
from yolact_deploy.datasets.image_sets import CocoImages, fingerprint
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.accuracy import EVALUATORS, Accuracy, AccuracyMeter, Result
from yolact_deploy.evaluation.detection_cache import DetectionCache
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import StageTimer, stage_with
from yolact_deploy.version import __version__

#: what an evaluation does beside the predictor's own stages
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
        ran: images that went through the model
        stored: images whose detections were there already
        load_s: to load the model, not in ``whole_s``
        whole_s: from the first image to the figures
        stages_s: of the predictor's stages and :data:`EVAL_STAGES`
    """

    ran: int
    stored: int
    load_s: float
    whole_s: float
    stages_s: dict[str, float]

    @property
    def unaccounted_s(self) -> float:
        """What no stage accounts for."""
        return self.whole_s - sum(self.stages_s.values())

    @property
    def network_stage(self) -> str | None:
        """The stage that the network is in, maybe together with others; None where nothing was run."""
        return stage_with("network", self.stages_s)

    @property
    def outside_network(self) -> float | None:
        """Share of the whole, 0..1, that is not in :attr:`network_stage`; None where no image was run."""
        stage = self.network_stage
        return 1 - self.stages_s[stage] / self.whole_s if stage and self.ran else None

    def to_json(self) -> dict[str, Any]:
        return {
            "images_run": self.ran,
            "images_stored": self.stored,
            "load_s": self.load_s,
            "whole_s": self.whole_s,
            "stages_s": self.stages_s,
            "unaccounted_s": self.unaccounted_s,
            "network_stage": self.network_stage,
            "outside_network": self.outside_network,
        }


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        matches: what hit what, of "box" and "mask", for ``bootstrap.PairedBootstrap``; empty with faster-coco-eval
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
    progress: Progress = SILENT,
) -> Evaluation:
    """Run a model with score threshold 0 over annotated images, and score what it finds.

    Args:
        model: a source is loaded when there are images left to run, and closed afterwards
        cache: has the detections of the first images, and gets those of the others
        on_results: gets the COCO results of each image

    Raises:
        DatasetError: images without annotations, or of classes that the model does not have.
    """
    if images.content is None:
        raise DatasetError("these images have no annotations: give --coco DIR with instances_*.json, or --annotations")
    run = _Run(AccuracyMeter(images.content, images.image_ids, evaluator=evaluator), on_results)
    stored = cache.stored if cache else 0
    start = time.perf_counter()
    if cache and stored:
        run.read(cache, progress)
    load_s = 0.0
    if stored < len(images):
        loading = time.perf_counter()
        predictor = model.load() if isinstance(model, EngineSource) else model
        load_s = time.perf_counter() - loading
        try:
            images.check_classes(predictor.config)
            run.predict(predictor, images, stored, cache, progress)
        finally:
            if isinstance(model, EngineSource):
                predictor.close()
    accuracy, matches = run.score()
    whole_s = time.perf_counter() - start - load_s
    spent = {stage: ms / 1e3 for stage, ms in run.timer.spent.items()}
    return Evaluation(accuracy, EvalTime(len(images) - stored, stored, load_s, whole_s, spent), matches)


class _Run:
    """One evaluation under way."""

    def __init__(self, meter: AccuracyMeter, on_results: Callable[[Sequence[Result]], None] | None) -> None:
        self.timer = StageTimer()
        self._meter, self._on_results = meter, on_results

    def read(self, cache: DetectionCache, progress: Progress) -> None:
        """Take the detections that were there already."""
        stored = iter(cache)
        for _ in progress.track(range(cache.stored), f"reading {cache.path.name}"):
            with self.timer.stage("read"):
                image_id, results = next(stored)
            self._take(image_id, results)

    def predict(
        self, predictor: Predictor, images: CocoImages, first: int, cache: DetectionCache | None, progress: Progress
    ) -> None:
        """Run the images from number ``first`` on."""
        ids = predictor.config.category_ids
        for image in progress.track(images.images[first:], "evaluating"):
            found = predictor(image.path)
            self.timer.add(predictor.timings)
            with self.timer.stage("encode"):
                results = found.to_coco(image.image_id, ids)
            if cache:
                with self.timer.stage("store"):
                    cache.add(image.image_id, results)
            self._take(image.image_id, results)

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
    """What the detections of a model file depend on, for :class:`DetectionCache`.

    Args:
        choice: how the file is run: backend and its options
    """
    assert source.path is not None
    return {
        "yolact_deploy": __version__,
        "model_sha256": sha256_file(source.path),
        **choice,
        "images": len(images),
        "image_list_sha256": fingerprint(images),
    }

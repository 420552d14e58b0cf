"""COCO average precision of boxes and masks, by pycocotools or faster-coco-eval.

Results have COCO's form: a list of ``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" RLE}``.
Average precisions are 0..1, averaged over IoU 0.50:0.95 unless the name says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.coco_results import Result as Result
from yolact_deploy.datasets.coco_results import read_results
from yolact_deploy.datasets.image_sets import open_truth
from yolact_deploy.evaluation.coco_rules import AREAS, COCO_LIMIT, IOU_THRESHOLDS
from yolact_deploy.evaluation.faster_eval import FasterMatcher
from yolact_deploy.evaluation.matches import Floats, Matcher, Matches
from yolact_deploy.vocabulary import EVALUATORS, check_word

#: COCO's names of the kinds, and ours
KINDS = {"bbox": "box", "segm": "mask"}

IMAGES_AT_ONCE = 64
_CURVE_DECIMALS = 5
#: detections that count where a picture may have any number of them
_ALL = 100_000


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, 0..1; None without ground truth (of that size).

    Attributes:
        per_class: ``ap`` of each category by name
        per_iou: AP at each of the ten IoU thresholds, by "0.50" to "0.95"
        ar: average recall over the thresholds and classes, of all detections that count
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: dict[str, float | None] = field(default_factory=dict)
    per_iou: dict[str, float | None] = field(default_factory=dict)
    ar: float | None = None


@dataclass(frozen=True)
class Curves:
    """Precision at recall 0, 0.01, ... 1 for drawing: 101 values, averaged over the classes with ground truth."""

    iou50: tuple[float, ...]  #: at an IoU threshold of 0.5
    iou75: tuple[float, ...]  #: at 0.75


@dataclass(frozen=True)
class Accuracy:
    """Average precisions over ``images`` images; None for a kind missing from the results.

    Attributes:
        curves: for "box" and "mask", if there is ground truth
        max_detections: detections per image and class that count (COCO's maxDets)
    """

    box: AveragePrecision | None
    mask: AveragePrecision | None
    images: int
    detections: int
    curves: dict[str, Curves] = field(default_factory=dict)
    max_detections: int = COCO_LIMIT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def scoring_limit(config: YolactConfig, *, sliced: bool = False) -> int:
    """How many detections per image and class count for a model: COCO's 100, or more if the model reports more.

    Args:
        sliced: whether pictures are cut into tiles, each of which has as many; then practically all count
    """
    return _ALL if sliced else max(COCO_LIMIT, config.max_detections)


class AccuracyMeter:
    """Accuracy of results that arrive image by image. With pycocotools, only a few bytes per detection are kept.

    Args:
        content: checked content of a COCO instances file; not modified
        image_ids: the images to score; images that are never added count as having no detections
        evaluator: one of :data:`EVALUATORS`
        kinds: keys of :data:`KINDS` that the results have
        max_detections: detections per image and class that count; see :func:`scoring_limit`

    Raises:
        InputError: an unknown evaluator.
        MissingDependencyError: the evaluator is not installed.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        image_ids: Iterable[int],
        *,
        evaluator: str = EVALUATORS[0],
        kinds: Sequence[str] = tuple(KINDS),
        max_detections: int = COCO_LIMIT,
    ) -> None:
        check_word("evaluator", evaluator, EVALUATORS)
        self._image_ids = frozenset(image_ids)
        self._names = _class_names(content["categories"])
        matcher: type[Matcher | FasterMatcher] = Matcher if evaluator == EVALUATORS[0] else FasterMatcher
        self._max_detections = max_detections
        self._matchers = {k: matcher(content, self._image_ids, k, max_detections=max_detections) for k in kinds}
        self._waiting: dict[int, Sequence[Result]] = {}
        self._detections = 0

    def add(self, image_id: int, results: Sequence[Result]) -> None:
        """Add all results of one image.

        Raises:
            DatasetError: the annotations have an unreadable segmentation.
        """
        self._waiting[image_id] = results
        self._detections += len(results)
        if len(self._waiting) == IMAGES_AT_ONCE:
            self._match()

    def _match(self) -> None:
        for matcher in self._matchers.values():
            if self._waiting:
                matcher.add(self._waiting)
        self._waiting = {}

    def matches(self) -> dict[str, Matches]:
        """Matches of "box" and "mask"; empty with faster-coco-eval, which does not expose them."""
        self._match()
        return {KINDS[k]: matcher.matches() for k, matcher in self._matchers.items() if isinstance(matcher, Matcher)}

    def result(self) -> Accuracy:
        """The accuracy of everything added so far."""
        self._match()
        figures: dict[str, AveragePrecision] = {}
        curves: dict[str, Curves] = {}
        for kind, matcher in self._matchers.items():
            precision = matcher.precision()
            figures[KINDS[kind]] = average_precision(precision, self._names, matcher.recall())
            kind_curves = precision_curves(precision)
            if kind_curves:
                curves[KINDS[kind]] = kind_curves
        box, mask, images = figures.get("box"), figures.get("mask"), len(self._image_ids)
        return Accuracy(box, mask, images, self._detections, curves, self._max_detections)


def average_precision(precision: Floats, names: Sequence[str] = (), recall: Floats | None = None) -> AveragePrecision:
    """COCO's figures from interpolated precision [T, R, K, A], as ``COCOeval.summarize`` computes them.

    Args:
        names: of the K categories; if given, the result has figures per class
        recall: [T, K, A]; if given, the result has the average recall
    """

    def mean(values: NDArray[np.float64]) -> float | None:
        valid = values[values > -1]
        return float(np.mean(valid)) if valid.size else None

    small, medium, large = (mean(precision[..., area]) for area in range(1, len(AREAS)))
    return AveragePrecision(
        ap=mean(precision[..., 0]),
        ap50=mean(precision[_at_iou(0.5), ..., 0]),
        ap75=mean(precision[_at_iou(0.75), ..., 0]),
        small=small,
        medium=medium,
        large=large,
        per_iou={f"{iou:.2f}": mean(precision[place, ..., 0]) for place, iou in enumerate(IOU_THRESHOLDS)},
        ar=None if recall is None else mean(recall[..., 0]),
        per_class={name: mean(precision[:, :, category, 0]) for category, name in enumerate(names)},
    )


def precision_curves(precision: Floats) -> Curves | None:
    """Precision at each recall from interpolated precision [T, R, K, A]; None without ground truth."""
    has_truth = precision[0, 0, :, 0] > -1
    if not has_truth.any():
        return None
    iou50, iou75 = (
        tuple(precision[_at_iou(iou)][:, has_truth, 0].mean(axis=1).round(_CURVE_DECIMALS).tolist())
        for iou in (0.5, 0.75)
    )
    return Curves(iou50, iou75)


def accuracy(
    content: Mapping[str, Any],
    results: Iterable[Result],
    image_ids: Iterable[int],
    evaluator: str = EVALUATORS[0],
    kinds: Sequence[str] | None = None,
    max_detections: int = COCO_LIMIT,
) -> Accuracy:
    """Score checked results against checked annotations; see :class:`AccuracyMeter`.

    Args:
        results: may be empty (AP 0); those of other images are ignored
        kinds: by default those that all results have
        max_detections: detections per image and class that count; see :func:`scoring_limit`

    Raises:
        DatasetError: the annotations have an unreadable segmentation.
    """
    results, ids = list(results), set(image_ids)
    kinds = result_kinds(results) if kinds is None else kinds
    meter = AccuracyMeter(content, ids, evaluator=evaluator, kinds=kinds, max_detections=max_detections)
    for image_id, of_image in by_image(results).items():
        if image_id in ids:
            meter.add(image_id, of_image)
    return meter.result()


def result_kinds(results: Sequence[Result]) -> tuple[str, ...]:
    """Keys of :data:`KINDS` that all results have."""
    keys = {"bbox": "bbox", "segm": "segmentation"}
    return tuple(kind for kind, key in keys.items() if all(key in result for result in results))


def score_results(
    annotations: str | os.PathLike[str],
    results: str | os.PathLike[str],
    image_ids: Sequence[int] | None = None,
    evaluator: str = EVALUATORS[0],
    max_detections: int = COCO_LIMIT,
) -> Accuracy:
    """Score a COCO results file.

    Args:
        image_ids: images to score; by default all annotated ones, including those without results
        max_detections: detections per image and class that count

    Raises:
        DatasetError: either file is malformed, the two do not match, or there are no objects.
    """
    truth = open_truth(coco=None, annotations=annotations).select(image_ids)
    truth.require_objects()
    assert truth.content is not None
    scored = read_results(results, truth.content)
    return accuracy(truth.content, scored, truth.image_ids, evaluator, max_detections=max_detections)


def by_image(results: Iterable[Result]) -> dict[int, list[Result]]:
    """Results grouped by image, in their order."""
    grouped: dict[int, list[Result]] = {}
    for result in results:
        grouped.setdefault(result["image_id"], []).append(result)
    return grouped


def _at_iou(threshold: float) -> int:
    return int(np.argmin(np.abs(IOU_THRESHOLDS - threshold)))


def _class_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names in the order of the ids; the id replaces a missing name and is appended to a repeated one."""
    given = [str(category.get("name", category["id"])) for category in categories]
    unique = {
        c["id"]: name if given.count(name) == 1 else f"{name} ({c['id']})"
        for c, name in zip(categories, given, strict=True)
    }
    return [unique[number] for number in sorted(unique)]

"""COCO average precision of boxes and masks, by pycocotools or faster-coco-eval.

Results are in COCO's form: a list of ``{"image_id", "category_id", "bbox" [x, y, w, h], "score", "segmentation" RLE}``.
Average precisions are 0..1, averaged over IoU 0.50:0.95 unless their name says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.datasets.coco_results import Result as Result
from yolact_deploy.datasets.coco_results import read_results
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.faster_eval import FasterMatcher
from yolact_deploy.evaluation.matches import AREAS, IOU_THRESHOLDS, Floats, Matcher, Matches

EVALUATORS = ("pycocotools", "faster-coco-eval")
#: what COCO calls the kinds, and how they are called here
KINDS = {"bbox": "box", "segm": "mask"}

_IMAGES_AT_ONCE = 64
_CURVE_DECIMALS = 5


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's figures, 0..1; None where there is no ground truth (of that size).

    Attributes:
        per_class: ``ap`` of each category, by name (by id where two have the same name)
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """Precision at recall 0, 0.01, ... 1: the mean over the classes with ground truth; 101 values for drawing.

    Attributes:
        iou50: where an IoU of 0.5 makes a hit
        iou75: where it takes 0.75
    """

    iou50: tuple[float, ...]
    iou75: tuple[float, ...]


@dataclass(frozen=True)
class Accuracy:
    """Average precisions over ``images`` images; None for a kind that the results do not have.

    Attributes:
        curves: of "box" and "mask", where they have ground truth
    """

    box: AveragePrecision | None
    mask: AveragePrecision | None
    images: int
    detections: int
    curves: dict[str, Curves] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class AccuracyMeter:
    """Accuracy of results that come image by image; by pycocotools, only a few bytes of each detection are kept.

    Args:
        content: a COCO instances file's checked content; it is not changed
        image_ids: the images to score; those that are not added count as without detections
        evaluator: one of :data:`EVALUATORS`
        kinds: of :data:`KINDS`, those that the results have

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
    ) -> None:
        if evaluator not in EVALUATORS:
            raise InputError(f"evaluator: expected one of {', '.join(EVALUATORS)}, got {evaluator!r}")
        self._image_ids = frozenset(image_ids)
        self._names = _class_names(content["categories"])
        self._matchers: dict[str, Matcher | FasterMatcher] = {
            kind: Matcher(content, self._image_ids, kind)
            if evaluator == EVALUATORS[0]
            else FasterMatcher(content, self._image_ids, kind)
            for kind in kinds
        }
        self._waiting: dict[int, Sequence[Result]] = {}
        self._detections = 0

    def add(self, image_id: int, results: Sequence[Result]) -> None:
        """All results of one of the images.

        Raises:
            DatasetError: a segmentation of the annotations that cannot be read.
        """
        self._waiting[image_id] = results
        self._detections += len(results)
        if len(self._waiting) == _IMAGES_AT_ONCE:
            self._match()

    def _match(self) -> None:
        for matcher in self._matchers.values():
            if self._waiting:
                matcher.add(self._waiting)
        self._waiting = {}

    def matches(self) -> dict[str, Matches]:
        """What hit what, of "box" and "mask"; empty with faster-coco-eval, which does not tell."""
        self._match()
        return {KINDS[k]: matcher.matches() for k, matcher in self._matchers.items() if isinstance(matcher, Matcher)}

    def result(self) -> Accuracy:
        """The accuracy of all that was added."""
        self._match()
        figures: dict[str, AveragePrecision] = {}
        curves: dict[str, Curves] = {}
        for kind, matcher in self._matchers.items():
            precision = matcher.precision()
            figures[KINDS[kind]] = average_precision(precision, self._names)
            drawn = precision_curves(precision)
            if drawn:
                curves[KINDS[kind]] = drawn
        return Accuracy(figures.get("box"), figures.get("mask"), len(self._image_ids), self._detections, curves)


def average_precision(precision: Floats, names: Sequence[str] = ()) -> AveragePrecision:
    """COCO's figures of interpolated precision [T, R, K, A], as ``COCOeval.summarize`` takes them.

    Args:
        names: of the K categories, where figures of each are wanted
    """

    def mean(values: NDArray[np.float64]) -> float | None:
        there = values[values > -1]
        return float(np.mean(there)) if there.size else None

    small, medium, large = (mean(precision[..., area]) for area in range(1, len(AREAS)))
    return AveragePrecision(
        ap=mean(precision[..., 0]),
        ap50=mean(precision[_at_iou(0.5), ..., 0]),
        ap75=mean(precision[_at_iou(0.75), ..., 0]),
        small=small,
        medium=medium,
        large=large,
        per_class={name: mean(precision[:, :, category, 0]) for category, name in enumerate(names)},
    )


def precision_curves(precision: Floats) -> Curves | None:
    """Precision at each recall of interpolated precision [T, R, K, A]; None without ground truth."""
    there = precision[0, 0, :, 0] > -1
    if not there.any():
        return None
    iou50, iou75 = (
        tuple(precision[_at_iou(iou)][:, there, 0].mean(axis=1).round(_CURVE_DECIMALS).tolist()) for iou in (0.5, 0.75)
    )
    return Curves(iou50, iou75)


def coco_ap(
    content: Mapping[str, Any],
    results: Sequence[Result],
    image_ids: Iterable[int],
    kind: str,
    evaluator: str = EVALUATORS[0],
) -> AveragePrecision:
    """COCO AP of checked results against checked annotations.

    Args:
        content: a COCO instances file's content; it is not changed
        results: may be empty (AP 0) or speak of other images (left out)
        kind: "bbox" or "segm"
        evaluator: one of :data:`EVALUATORS`

    Raises:
        DatasetError: a segmentation of the annotations that cannot be read.
    """
    scored = _score(content, results, image_ids, evaluator, (kind,))
    figures = scored.box or scored.mask
    assert figures is not None
    return figures


def accuracy(
    content: Mapping[str, Any], results: Sequence[Result], image_ids: Iterable[int], evaluator: str = EVALUATORS[0]
) -> Accuracy:
    """Box and mask AP of results that have both (as ``Detections.to_coco`` gives them) or are empty."""
    return _score(content, results, image_ids, evaluator, result_kinds(results))


def result_kinds(results: Sequence[Result]) -> tuple[str, ...]:
    """Which of :data:`KINDS` can be told of the results."""
    keys = {"bbox": "bbox", "segm": "segmentation"}
    return tuple(kind for kind, key in keys.items() if all(key in result for result in results))


def score_results(
    annotations: str | os.PathLike[str],
    results: str | os.PathLike[str],
    image_ids: Sequence[int] | None = None,
    evaluator: str = EVALUATORS[0],
) -> Accuracy:
    """Score a COCO results file.

    Args:
        image_ids: images to score; by default all of the annotations, also those without results

    Raises:
        DatasetError: either file is malformed, or they do not fit each other.
    """
    content = read_annotations(annotations)
    known = [image["id"] for image in content["images"]]
    if image_ids is not None and (strange := sorted(set(image_ids) - set(known))):
        raise DatasetError(f"{annotations} has no image {strange[0]}: score images of that file only")
    return accuracy(content, read_results(results, content), known if image_ids is None else image_ids, evaluator)


def by_image(results: Iterable[Result]) -> dict[int, list[Result]]:
    """Results of each image, in their order."""
    found: dict[int, list[Result]] = {}
    for result in results:
        found.setdefault(result["image_id"], []).append(result)
    return found


def _score(
    content: Mapping[str, Any],
    results: Sequence[Result],
    image_ids: Iterable[int],
    evaluator: str,
    kinds: Sequence[str],
) -> Accuracy:
    ids = set(image_ids)
    meter = AccuracyMeter(content, ids, evaluator=evaluator, kinds=kinds)
    for image_id, found in by_image(results).items():
        if image_id in ids:
            meter.add(image_id, found)
    return meter.result()


def _at_iou(threshold: float) -> int:
    return int(np.argmin(np.abs(IOU_THRESHOLDS - threshold)))


def _class_names(categories: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names in the order of the ids; a name that is there twice, or not at all, is told by its id."""
    given = [str(category.get("name", category["id"])) for category in categories]
    unique = {
        c["id"]: name if given.count(name) == 1 else f"{name} ({c['id']})"
        for c, name in zip(categories, given, strict=True)
    }
    return [unique[number] for number in sorted(unique)]

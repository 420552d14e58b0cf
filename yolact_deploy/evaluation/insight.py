"""All that a report of one evaluation shows: accuracy, errors by kind, operating points, strata, telling pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.evaluation.accuracy import KINDS, Accuracy
from yolact_deploy.evaluation.coco_rules import AREAS, in_range
from yolact_deploy.evaluation.confusion import count_confusions
from yolact_deploy.evaluation.error_kinds import ErrorCosts, JudgedImage, KindMeter, error_costs
from yolact_deploy.evaluation.matches import Matches
from yolact_deploy.evaluation.operating_points import BestThresholds, Counts

#: pictures of each sort
PICTURES = 6
#: detections that score less are not kept for pictures
_SHOWN_SCORE = 0.01
#: most detections of an image that are judged
_MOST_JUDGED = 1000
#: strata of pictures by their number of objects, and of objects by their largest box IoU with another
_OBJECTS = ((1, 1), (2, 4), (5, 9), (10, 19), (20, 49), (50, 10**9))
_CROWDING = ((0.0, 0.0), (0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 1.0))


@dataclass(frozen=True)
class Stratum:
    """A part of the pictures or objects.

    Attributes:
        objects: number of objects to detect
        recall: share of them that is detected at the best thresholds, 0..1
        ap: average precision on these pictures, 0..1; None for parts of pictures
    """

    name: str
    pictures: int
    objects: int
    recall: float | None
    ap: float | None = None


@dataclass(frozen=True)
class ImageScore:
    """One picture at the best thresholds."""

    image_id: int
    right: int
    wrong: int
    objects: int

    @property
    def f1(self) -> float:
        """0..1; 1 if there is nothing to detect and nothing detected."""
        total = self.right + self.right + self.wrong + (self.objects - self.right)
        return 2 * self.right / total if total else 1.0


@dataclass(frozen=True, eq=False)
class Insight:
    """See the module.

    Attributes:
        kind: "box" or "mask": what everything but the accuracy is about
        names: of the classes, in ascending order of the category ids
        confusion: int64 [C + 1, C + 1], rows are true classes and the background
        shown: results of the pictures to show, by image id
    """

    kind: str
    accuracy: Accuracy
    names: tuple[str, ...]
    errors: ErrorCosts
    counts: Counts
    thresholds: BestThresholds
    confusion: NDArray[np.int64]
    sizes: tuple[Stratum, ...]
    crowding: tuple[Stratum, ...]
    pictures: tuple[Stratum, ...]
    worst: tuple[ImageScore, ...]
    best: tuple[ImageScore, ...]
    shown: Mapping[int, Sequence[Result]]


class InsightMeter:
    """Collects the results of an evaluation, image by image.

    Args:
        content: checked content of a COCO instances file
        kind: "bbox" or "segm"
        max_detections: the best so many of each image count, up to 1000
    """

    def __init__(self, content: Mapping[str, Any], image_ids: Iterable[int], kind: str, max_detections: int) -> None:
        self._ids, self._content, self._kind = set(image_ids), content, kind
        self._categories = {category["id"] for category in content["categories"]}
        self._errors = KindMeter(content, self._ids, kind, min(max_detections, _MOST_JUDGED))
        self._kept: dict[int, list[Result]] = {}

    def add(self, results: Sequence[Result]) -> None:
        """All results of one image."""
        if results and (image_id := results[0]["image_id"]) in self._ids:
            self._errors.add(image_id, results)
            known = (result for result in results if result["category_id"] in self._categories)
            self._kept[image_id] = [result for result in known if score_of(result, self._kind) >= _SHOWN_SCORE]

    def result(self, accuracy: Accuracy, matches: Matches) -> Insight:
        """The report's content.

        Args:
            matches: of the kind, for the average precision of strata
        """
        categories = sorted(self._content["categories"], key=lambda category: category["id"])
        names = tuple(str(category.get("name", category["id"])) for category in categories)
        images = self._errors.images()
        counts = Counts.of(images, len(names))
        thresholds = BestThresholds.of(counts)
        each = thresholds.each()
        scored = [_at(image, each) for image in images]
        with_objects = [score for score in scored if score.objects or score.wrong]
        worst = sorted(with_objects, key=lambda s: (s.f1, -(s.wrong + s.objects - s.right)))[:PICTURES]
        best = sorted(with_objects, key=lambda s: (-s.f1, -s.right))[:PICTURES]
        best = [score for score in best if score not in worst]
        return Insight(
            KINDS[self._kind],
            accuracy,
            names,
            error_costs(images, len(names)),
            counts,
            thresholds,
            count_confusions(images, each),
            tuple(_by_size(images, each)),
            tuple(_by_crowding(images, each)),
            tuple(_by_objects(images, each, matches)),
            tuple(worst),
            tuple(best),
            {score.image_id: self._kept.get(score.image_id, []) for score in (*worst, *best)},
        )


def _shown(image: JudgedImage, thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    shown: NDArray[np.bool_] = image.scores.astype(np.float32) > thresholds.astype(np.float32)[image.labels]
    return shown


def _hit(image: JudgedImage, thresholds: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which objects are detected [G]."""
    partners = image.partner[_shown(image, thresholds)]
    hit = np.zeros(len(image.truth_labels), np.bool_)
    hit[partners[partners >= 0]] = True
    return hit


def _at(image: JudgedImage, thresholds: NDArray[np.float64]) -> ImageScore:
    shown, hit = _shown(image, thresholds), image.partner >= 0
    wrong = int((shown & ~hit & ~image.ignored).sum())
    return ImageScore(image.image_id, int((shown & hit).sum()), wrong, len(image.truth_labels))


def _stratum(
    name: str, images: Sequence[JudgedImage], thresholds: NDArray[np.float64], chosen: Sequence[NDArray[np.bool_]]
) -> Stratum:
    """Of some objects, [G] for each image."""
    objects = sum(int(rows.sum()) for rows in chosen)
    hit = sum(int((_hit(image, thresholds) & rows).sum()) for image, rows in zip(images, chosen, strict=True))
    return Stratum(name, sum(bool(rows.any()) for rows in chosen), objects, hit / objects if objects else None)


def _by_size(images: Sequence[JudgedImage], thresholds: NDArray[np.float64]) -> Iterable[Stratum]:
    for number, name in enumerate(AREAS[1:], 1):
        chosen = [np.array([in_range(area, number) for area in image.truth_areas], np.bool_) for image in images]
        yield _stratum(name, images, thresholds, chosen)


def _by_crowding(images: Sequence[JudgedImage], thresholds: NDArray[np.float64]) -> Iterable[Stratum]:
    for low, high in _CROWDING:
        name = "no overlap" if high == 0 else f"IoU up to {high:g}"
        chosen = [(i.crowding > low) & (i.crowding <= high) if high else i.crowding == 0 for i in images]
        stratum = _stratum(name, images, thresholds, chosen)
        if stratum.objects:
            yield stratum


def _by_objects(images: Sequence[JudgedImage], thresholds: NDArray[np.float64], matches: Matches) -> Iterable[Stratum]:
    for low, high in _OBJECTS:
        inside = np.array([low <= len(image.truth_labels) <= high for image in images])
        if not inside.any():
            continue
        name = f"{low}" if low == high else f"{low} to {high}" if high < 10**9 else f"{low} or more"
        chosen = [np.full(len(i.truth_labels), bool(is_in)) for i, is_in in zip(images, inside, strict=True)]
        part = _stratum(name, images, thresholds, chosen)
        value = float(matches.average_precision(inside.astype(np.int32)[None])[0])
        yield Stratum(name, int(inside.sum()), part.objects, part.recall, None if np.isnan(value) else value)

"""Errors of detection by kind, and the AP that each kind costs, as TIDE defines them (Bolya et al., ECCV 2020).

At an IoU of 0.5 a detection is right or wrong; below 0.1 it lies on background. A wrong one is, in this order: badly
located (right class, IoU 0.1 to 0.5), of the wrong class (IoU 0.5 with an object of another class), a duplicate (of an
object that is taken), on background, or both badly located and of the wrong class. An object is missed if no detection
is right and none would be with its class or place corrected. The cost of a kind is the AP at IoU 0.5 that would be
gained if all its errors were corrected and nothing else: a wrong class or place becomes right (the best one of each
object; others go), the rest goes, and missed objects no longer count.

The figures equal those of the package ``tidecv``. Its AP counts classes without objects that are detected as 0.

Legend: D detections, G objects to detect, C crowds of one image; n detections of all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.evaluation.coco_rules import cocotools, outline
from yolact_deploy.evaluation.matches import Truth, scoring

#: kinds of wrong detections, in the order in which they are tried (the last: what is none of them), and of objects
KINDS = ("localization", "classification", "duplicate", "background", "both", "missed")
RIGHT_IOU, BACKGROUND_IOU = 0.5, 0.1

_LOCALIZATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND, _BOTH, _MISSED = range(len(KINDS))
_RECALLS = np.arange(101) / 100

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class JudgedImage:
    """The detections of one image, best first, and its objects.

    Attributes:
        scores: float64 [D]
        labels: int64 [D], place of each category in ascending order of the ids
        partner: int64 [D], the object that a right detection hits, else -1
        ignored: bool [D], wrong, but on a crowd of its class
        kind: int64 [D], index into :data:`KINDS` of a wrong detection, -1 of a right one
        fixed_by: int64 [D], the object that would be hit if class or place were right; -1 if it is not this
            detection that would hit it
        iou: float64 [D, G]
        truth_labels: int64 [G]
        truth_areas: float64 [G], pixels
        missed: bool [G]
        crowding: float64 [G], largest box IoU with another object of the image
    """

    image_id: int
    scores: Floats
    labels: Integers
    partner: Integers
    ignored: Bools
    kind: Integers
    fixed_by: Integers
    iou: Floats
    truth_labels: Integers
    truth_areas: Floats
    missed: Bools
    crowding: Floats


class KindMeter:
    """Judges the detections of images one by one.

    Args:
        content: checked content of a COCO instances file
        kind: "bbox" or "segm"
        max_detections: the best so many of an image count, of all classes together
    """

    def __init__(
        self, content: Mapping[str, Any], image_ids: Iterable[int], kind: str, max_detections: int = 100
    ) -> None:
        self._truth = Truth(content, image_ids)
        self._kind, self._most = kind, max_detections
        self._place = {category: place for place, category in enumerate(self._truth.category_ids)}
        self._judged: dict[int, JudgedImage] = {}

    def add(self, image_id: int, results: Sequence[Result]) -> None:
        """Judge all results of an image; those of classes without a category do not count.

        Raises:
            DatasetError: the annotations have an unreadable segmentation.
        """
        known = (result for result in results if result["category_id"] in self._place)
        best = sorted(known, key=lambda result: -score_of(result, self._kind))[: self._most]
        with scoring("pycocotools"):
            self._judged[image_id] = self._judge(image_id, best)

    def images(self) -> list[JudgedImage]:
        """Every image, in ascending order of the ids; those never added have no detections."""
        for image_id in self._truth.image_ids:
            if image_id not in self._judged:
                self.add(image_id, [])
        return [self._judged[image_id] for image_id in self._truth.image_ids]

    def _judge(self, image_id: int, best: Sequence[Result]) -> JudgedImage:
        annotations = self._truth.of_image(image_id)
        truth = [a for a in annotations if not a["iscrowd"]]
        crowds = [a for a in annotations if a["iscrowd"]]
        labels = np.array([self._place[result["category_id"]] for result in best], np.int64)
        scores = np.array([score_of(result, self._kind) for result in best], np.float64)
        truth_labels = np.array([self._place[a["category_id"]] for a in truth], np.int64)
        iou = self._overlaps(best, truth, image_id, crowd=False)
        same = labels[:, None] == truth_labels
        partner = _matched(iou * same)
        on_crowd = self._overlaps(best, crowds, image_id, crowd=True) > RIGHT_IOU
        crowd_labels = np.array([self._place[a["category_id"]] for a in crowds], np.int64)
        ignored = (partner < 0) & (on_crowd & (labels[:, None] == crowd_labels)).any(axis=1)
        kind, wanted = _kinds(iou, same, partner)
        fixed_by, usable = _fixes(wanted, partner, len(truth))
        taken = np.isin(np.arange(len(truth)), partner)
        areas = np.array([a["area"] for a in truth], np.float64)
        missed = ~taken & ~usable
        return JudgedImage(
            image_id, scores, labels, partner, ignored, kind, fixed_by, iou, truth_labels, areas, missed,
            _crowding([a["bbox"] for a in truth]),
        )  # fmt: skip

    def _overlaps(self, best: Sequence[Result], truth: Sequence[Any], image_id: int, *, crowd: bool) -> Floats:
        if not best or not truth:
            return np.zeros((len(best), len(truth)))
        name = "bbox" if self._kind == "bbox" else "segmentation"
        outlines = [outline(annotation, self._kind, self._truth.records[image_id]) for annotation in truth]
        found = [result[name] for result in best]
        return np.asarray(cocotools("pycocotools.mask").iou(found, outlines, [crowd] * len(truth)), np.float64)


def _matched(overlaps: Floats) -> Integers:
    """Partner of each detection [D], best first, given overlaps [D, G] with objects of its class."""
    partner = np.full(len(overlaps), -1, np.int64)
    if overlaps.size:
        left = overlaps.copy()
        for row in np.flatnonzero((overlaps >= RIGHT_IOU).any(axis=1)).tolist():
            column = int(left[row].argmax())
            if left[row, column] >= RIGHT_IOU:
                partner[row] = column
                left[:, column] = 0
    return partner


def _kinds(iou: Floats, same: Bools, partner: Integers) -> tuple[Integers, Integers]:
    """Kind of each wrong detection [D], and the object it would hit if class or place were right, else -1."""
    wrong = partner < 0
    kind, wanted = np.full(len(iou), -1, np.int64), np.full(len(iou), -1, np.int64)
    if not iou.shape[1]:
        return np.where(wrong, _BACKGROUND, kind), wanted
    taken = np.isin(np.arange(iou.shape[1]), partner)
    own, other = iou * same, iou * ~same
    located = (own.max(axis=1) >= BACKGROUND_IOU) & (own.max(axis=1) <= RIGHT_IOU)
    rules = (
        (_LOCALIZATION, located),
        (_CLASSIFICATION, other.max(axis=1) >= RIGHT_IOU),
        (_DUPLICATE, (own * taken).max(axis=1) >= RIGHT_IOU),
        (_BACKGROUND, iou.max(axis=1) <= BACKGROUND_IOU),
        (_BOTH, wrong),
    )
    for number, holds in rules:
        kind[wrong & holds & (kind < 0)] = number
    wanted = np.where(kind == _LOCALIZATION, own.argmax(axis=1), wanted)
    wanted = np.where(kind == _CLASSIFICATION, other.argmax(axis=1), wanted)
    return kind, wanted


def _fixes(wanted: Integers, partner: Integers, objects: int) -> tuple[Integers, Bools]:
    """The object that each detection would hit [D], and which objects would be hit [G]: the best detection gets it."""
    fixed_by, usable = np.full(len(wanted), -1, np.int64), np.zeros(objects, np.bool_)
    taken = set(partner.tolist())
    for row, number in enumerate(wanted.tolist()):
        if number >= 0 and number not in taken and not usable[number]:
            usable[number] = True
            fixed_by[row] = number
    return fixed_by, usable


def _crowding(boxes: Sequence[Sequence[float]]) -> Floats:
    """Largest IoU of each box [x, y, w, h] with another one."""
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    iou = np.asarray(cocotools("pycocotools.mask").iou(list(boxes), list(boxes), [False] * len(boxes)), np.float64)
    np.fill_diagonal(iou, 0)
    largest: Floats = iou.max(axis=1)
    return largest


# -- what each kind costs -------------------------------------------------------------------------------------------


class ErrorCosts(NamedTuple):
    """AP at IoU 0.5 in points of 100, and what each kind costs of it.

    Attributes:
        counts: of each of :data:`KINDS`
        costs: points that its correction would gain, for each of :data:`KINDS`
        false_positives: points that would be gained if all wrong detections scored below the right ones
        false_negatives: points that would be gained if objects that are not hit did not count
    """

    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]
    false_positives: float
    false_negatives: float


class _Points(NamedTuple):
    """Detections of all images: class, score, whether right; arrays [n], in the order in which equal scores stay."""

    label: Integers
    score: Floats
    right: Bools


def error_costs(images: Sequence[JudgedImage], classes: int) -> ErrorCosts:
    """Errors by kind, over all images."""
    label, score = (np.concatenate([getattr(image, n) for image in images]) for n in ("labels", "scores"))
    kind, ignored = (np.concatenate([getattr(image, n) for image in images]) for n in ("kind", "ignored"))
    partner = np.concatenate([image.partner for image in images])
    fixed = [image.truth_labels[image.fixed_by] if image.truth_labels.size else image.fixed_by for image in images]
    fixes = np.concatenate([image.fixed_by for image in images]) >= 0
    fixed_label = np.concatenate(fixed)
    truth = np.bincount(np.concatenate([image.truth_labels for image in images]), minlength=classes)
    missed = np.bincount(np.concatenate([i.truth_labels[i.missed] for i in images]), minlength=classes)
    hit = np.bincount(label[partner >= 0], minlength=classes)
    right = partner >= 0
    # As in tidecv, wrong detections come before right ones of the same score once anything is corrected.
    order = np.concatenate([np.flatnonzero(~right), np.flatnonzero(right)])
    base = _mean_ap(_Points(label, score, right), ~ignored, truth)
    counts, costs = {}, {}
    for number, name in enumerate(KINDS):
        of_kind = kind == number
        kept = np.where(of_kind, fixes & (number in (_LOCALIZATION, _CLASSIFICATION)), ~ignored)
        points = _Points(np.where(of_kind, fixed_label, label)[order], score[order], (right | of_kind)[order])
        objects = truth - missed if number == _MISSED else truth
        counts[name] = int(missed.sum()) if number == _MISSED else int(of_kind.sum())
        costs[name] = max(_mean_ap(points, kept[order], objects) - base, 0.0)
    ordered = _Points(label[order], score[order], right[order])
    ideal = _Points(label[order], right[order].astype(np.float64), right[order])
    return ErrorCosts(
        base,
        counts,
        costs,
        _mean_ap(ideal, ~ignored[order], truth) - base,
        _mean_ap(ordered, ~ignored[order], hit) - base,
    )


def _mean_ap(points: _Points, kept: Bools, objects: Integers) -> float:
    """Mean over the classes that have objects or detections, in points of 100."""
    values = []
    for label in range(len(objects)):
        rows = np.flatnonzero(kept & (points.label == label))
        if rows.size or objects[label]:
            rows = rows[np.argsort(-points.score[rows], kind="stable")]
            values.append(_ap(points.right[rows], int(objects[label])))
    return float(np.mean(values)) if values else 0.0


def _ap(right: Bools, objects: int) -> float:
    if not objects or not right.size:
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / objects, _RECALLS, side="left")
    reached = places < len(right)
    return float(100 * np.where(reached, precision[np.minimum(places, len(right) - 1)], 0.0).mean())

"""Matches of detections with objects, image by image, and the precision that follows from them.

Matching follows pycocotools' rules (`coco_rules`). It runs once per image and keeps only a few bytes per detection, so
that thousands of images need little memory. `Matches.precision` equals that of `COCOeval` bit for bit. It can also
weight the images, as a bootstrap over images requires: weight 2 counts an image twice, weight 0 not at all.

Legend: T IoU thresholds (10), R recall thresholds (101), K categories, A area ranges (all, small, medium, large),
I images, n detections, S weightings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.coco_rules import (
    AREAS,
    COCO_LIMIT,
    EVERY_THRESHOLD,
    IOU_THRESHOLDS,
    areas_of,
    best_first,
    cocotools,
    hits_and_misses,
    ignored_in,
    in_range,
    outline,
    thresholds_reached,
)

RECALLS = np.linspace(0.0, 1.0, 101)
_VALUES_AT_ONCE = 1 << 20

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Hits and misses, sorted by category and area range and then by descending score.

    Attributes:
        image_ids: the images, in ascending order [I]
        category_ids: the categories, in ascending order [K]
        objects: int32 [K, A, I] number of objects to detect in each image
        starts: int64 [K * A + 1] first index of each category and area range in the following three arrays
        images: int32 [n] index of each detection's image
        hits: uint16 [n], bit t is set if the detection hits an object at IoU threshold t
        misses: uint16 [n], bit t is set if it hits none; neither bit is set if COCO ignores the detection
    """

    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    objects: NDArray[np.int32]
    starts: Integers
    images: NDArray[np.int32]
    hits: NDArray[np.uint16]
    misses: NDArray[np.uint16]

    def precision(self) -> Floats:
        """Interpolated precision [T, R, K, A], -1 without objects: ``COCOeval.eval["precision"]`` for the largest
        number of detections per image."""
        shape = (len(IOU_THRESHOLDS), len(RECALLS), len(self.category_ids), len(AREAS))
        precision = np.full(shape, -1.0)
        once = np.ones((1, len(self.image_ids)), np.int32)
        for category in range(shape[2]):
            for area in range(shape[3]):
                if self.objects[category, area].any():
                    precision[:, :, category, area] = self._interpolated(category, area, once)[0]
        return precision

    def recall(self) -> Floats:
        """Recall of all detections that count [T, K, A], -1 without objects: ``COCOeval.eval["recall"]``."""
        recall = np.full((len(IOU_THRESHOLDS), len(self.category_ids), len(AREAS)), -1.0)
        for cell, (category, area) in enumerate(np.ndindex(recall.shape[1:])):
            objects = int(self.objects[category, area].sum())
            if objects:
                hits = self.hits[self.starts[cell] : self.starts[cell + 1]]
                found = [int((hits >> threshold & 1).sum()) for threshold in range(len(IOU_THRESHOLDS))]
                recall[:, category, area] = np.array(found) / objects
        return recall

    def average_precision(self, weights: NDArray[np.int32]) -> Floats:
        """AP over all thresholds and categories, of all areas [S]; NaN if no object is left.

        Args:
            weights: int32 [S, I], how many times each image counts
        """
        total, categories = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
        for category in range(len(self.category_ids)):
            count = self.starts[category * len(AREAS) + 1] - self.starts[category * len(AREAS)]
            step = max(1, _VALUES_AT_ONCE // max(1, int(count)))
            for first in range(0, len(weights), step):
                part = slice(first, first + step)
                has_objects = weights[part] @ self.objects[category, 0] > 0
                if not has_objects.any():
                    continue
                precision = self._interpolated(category, 0, weights[part][has_objects])
                total[part][has_objects] += precision.mean(axis=(1, 2))
                categories[part] += has_objects
        with np.errstate(invalid="ignore"):
            mean: Floats = total / categories  # 0 / 0 is NaN
        return mean

    def _interpolated(self, category: int, area: int, weights: NDArray[np.int32]) -> Floats:
        """Interpolated precision [S, T, R] for weightings [S, I] that leave at least one object.

        Between two hits, precision only falls and recall is constant, so it suffices to evaluate it at the hits.
        Detections that miss at every threshold (most do) are counted once for all thresholds.
        """
        cell = category * len(AREAS) + area
        part = slice(self.starts[cell], self.starts[cell + 1])
        hits, misses, images = self.hits[part], self.misses[part], self.images[part]
        interpolated = np.zeros((len(weights), len(IOU_THRESHOLDS), len(RECALLS)))
        relevant = np.flatnonzero(misses != EVERY_THRESHOLD)
        if not relevant.size:
            return interpolated
        hits, misses = hits[relevant], misses[relevant]
        weight = weights[:, images[: int(relevant[-1]) + 1]]
        own = weight[:, relevant]
        weight[:, relevant] = 0
        missed = np.cumsum(weight, axis=1, dtype=np.int32)[:, relevant]
        needed = _needed(weights @ self.objects[category, area])
        sums: dict[bytes, NDArray[np.int32]] = {}  # most thresholds count the same detections
        alike: dict[tuple[bytes, bytes], int] = {}  # and with few objects, many have the same hits
        for threshold in range(len(IOU_THRESHOLDS)):
            hit, counted = (bits >> threshold & 1 for bits in (hits, hits | misses))
            places = np.flatnonzero(hit)
            if not places.size:
                continue
            first = alike.setdefault((hit.tobytes(), counted.tobytes()), threshold)
            if first != threshold:
                interpolated[:, threshold] = interpolated[:, first]
                continue
            if (key := counted.tobytes()) not in sums:
                sums = {key: missed + np.cumsum(own * counted.astype(np.int32), axis=1, dtype=np.int32)}
            reported = sums[key][:, places]
            right = np.cumsum(own[:, places], axis=1, dtype=np.int64)
            interpolated[:, threshold] = _precision_at(needed, right, reported)
        return interpolated


def _precision_at(needed: Integers, right: Integers, reported: NDArray[np.int32]) -> Floats:
    """Interpolated precision [S, R] where ``needed`` [S, R] hits are reached; 0 where they never are.

    Args:
        right: hits so far [S, H] at each hit
        reported: detections so far [S, H]
    """
    precision = right / (reported + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = _first_at_least(right, needed)
    hits = right.shape[1]
    return np.where(reached < hits, np.take_along_axis(envelope, np.minimum(reached, hits - 1), axis=1), 0.0)


def _needed(objects: Integers) -> Integers:
    """Hits needed to reach each recall [S, R] given the number of objects [S]: the least h with h / objects >= recall.

    As in pycocotools, the rounding of the quotient decides, not that of the product.
    """
    total = objects[:, None].astype(np.float64)
    needed = np.ceil(RECALLS * total)
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    return np.maximum(needed, 0).astype(np.int64)


def _first_at_least(rows: Integers, wanted: Integers) -> Integers:
    """First index in each ascending row [S, m] whose value is at least the wanted one [S, R]; m if there is none."""
    apart = (np.arange(len(rows)) * (max(int(rows.max()), int(wanted.max())) + 1))[:, None]
    places = np.searchsorted((rows + apart).ravel(), (wanted + apart).ravel()).reshape(wanted.shape)
    first: Integers = places - np.arange(len(rows))[:, None] * rows.shape[1]
    return first


#: as :data:`_KEPT`
_Row = tuple[int, int, float, int, int]
_KEPT = np.dtype([("cell", "i4"), ("image", "i4"), ("score", "f8"), ("hits", "u2"), ("misses", "u2")])


class Matcher:
    """Matches detections with objects, a few images at a time.

    Args:
        content: checked content of a COCO instances file; not modified
        image_ids: all images to score
        kind: "bbox" or "segm"
        areas: how many of :data:`AREAS` to match, from the first on; the others have no objects
        max_detections: detections per image and class that count
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        image_ids: Iterable[int],
        kind: str,
        *,
        areas: int = len(AREAS),
        max_detections: int = COCO_LIMIT,
    ) -> None:
        self.kind, self._areas, self._max_detections = kind, areas, max_detections
        self._truth = Truth(content, image_ids)
        self._number = {image_id: number for number, image_id in enumerate(self._truth.image_ids)}
        self._category = {category_id: place for place, category_id in enumerate(self._truth.category_ids)}
        shape = (len(self._truth.category_ids), len(AREAS), len(self._number))
        self._objects = np.zeros(shape, np.int32)
        self._kept: list[NDArray[Any]] = []
        self._added: set[int] = set()
        self._matches: Matches | None = None

    def add(self, results: Mapping[int, Sequence[Result]]) -> None:
        """Match the results of some images, by image id; each image is added at most once.

        Raises:
            DatasetError: the annotations have an unreadable segmentation.
        """
        assert not self._added.intersection(results)
        self._added.update(results)
        self._matches = None
        rows: list[_Row] = []
        with scoring("pycocotools"):
            for image_id, of_image in results.items():
                self._add_image(image_id, of_image, rows)
        if rows:
            self._kept.append(np.array(rows, _KEPT))

    def _add_image(self, image_id: int, results: Sequence[Result], rows: list[_Row]) -> None:
        objects, detections = self._by_category(self._truth.of_image(image_id)), self._by_category(results)
        number = self._number[image_id]
        for category in sorted({*objects, *detections}):
            truth = objects.get(category, [])
            ignored = [ignored_in(area, truth) for area in range(self._areas)]
            self._objects[category, : self._areas, number] = [of_area.count(False) for of_area in ignored]
            best = best_first(detections.get(category, []), self.kind)[: self._max_detections]
            if not best:
                continue
            outlines = [outline(annotation, self.kind, self._truth.records[image_id]) for annotation in truth]
            reached = thresholds_reached(best, outlines, truth, self.kind)
            sizes = areas_of(best, self.kind)
            crowd = [bool(annotation["iscrowd"]) for annotation in truth]
            for area, of_area in enumerate(ignored):
                outside = [not in_range(size, area) for size in sizes]
                bits = hits_and_misses(reached, of_area, crowd, outside)
                cell = category * len(AREAS) + area
                for result, (hits, misses) in zip(best, bits, strict=True):
                    if hits | misses:
                        rows.append((cell, number, score_of(result, self.kind), hits, misses))

    def _by_category(self, records: Iterable[Result]) -> dict[int, list[Result]]:
        """Objects or detections by the place of their category; those of unknown categories are left out."""
        grouped: dict[int, list[Result]] = {}
        for record in records:
            place = self._category.get(record["category_id"])
            if place is not None:
                grouped.setdefault(place, []).append(record)
        return grouped

    def matches(self) -> Matches:
        """Matches of everything added; other images count as having no detections, but their objects count."""
        left = [image_id for image_id in self._truth.image_ids if image_id not in self._added]
        if left:
            self.add({image_id: [] for image_id in left})
        if self._matches is None:
            self._matches = self._sorted(np.concatenate(self._kept) if self._kept else np.zeros(0, _KEPT))
        return self._matches

    def _sorted(self, kept: NDArray[Any]) -> Matches:
        # As in COCOeval, equal scores stay in the order of the images and of the detections within an image.
        kept = kept[np.lexsort((kept["image"], -kept["score"], kept["cell"]))]
        cells = np.arange(len(self._truth.category_ids) * len(AREAS) + 1)
        return Matches(
            self._truth.image_ids,
            self._truth.category_ids,
            self._objects,
            np.searchsorted(kept["cell"], cells).astype(np.int64),
            kept["image"].copy(),
            kept["hits"].copy(),
            kept["misses"].copy(),
        )

    def precision(self) -> Floats:
        """:meth:`Matches.precision` of everything added."""
        return self.matches().precision()

    def recall(self) -> Floats:
        """:meth:`Matches.recall` of everything added."""
        return self.matches().recall()


class Truth:
    """Annotations by image, in the form COCO's tools expect.

    Attributes:
        image_ids: the images to score, in ascending order
        category_ids: of all categories, in ascending order
        records: of the images, by id
    """

    def __init__(self, content: Mapping[str, Any], image_ids: Iterable[int]) -> None:
        self.image_ids = tuple(sorted(set(image_ids)))
        self.category_ids = tuple(sorted({category["id"] for category in content["categories"]}))
        self._categories = content["categories"]
        self.records = {image["id"]: image for image in content["images"]}
        self._annotations: dict[int, list[Result]] = {image_id: [] for image_id in self.image_ids}
        for annotation in content["annotations"]:
            if annotation["image_id"] in self._annotations:
                self._annotations[annotation["image_id"]].append(annotation)

    def of_image(self, image_id: int) -> Sequence[Result]:
        """The annotations of one image, in the order of the file."""
        return self._annotations[image_id]

    def parts(self, image_ids: Iterable[int], detections: list[Result]) -> Iterator[dict[str, Any]]:
        """Two COCO datasets of some images: the objects and the detections.

        New ids are assigned (to ``detections`` in place), because COCO's tools read id 0 as "not matched".
        """
        ids = list(image_ids)
        images = [self.records[image_id] for image_id in ids if image_id in self.records]
        truth = [dict(annotation) for image_id in ids for annotation in self._annotations[image_id]]
        for records in (truth, detections):
            for number, record in enumerate(records, 1):
                record["id"] = number
            yield {"images": images, "categories": self._categories, "annotations": records}


def detection(result: Result, kind: str) -> Result:
    """A result in the form COCO's tools expect; the area is that of the scored kind, so for masks their pixels."""
    common = {key: result[key] for key in ("image_id", "category_id")}
    common |= {"score": score_of(result, kind), "iscrowd": 0}
    if kind == "bbox":
        box = result["bbox"]
        return {**common, "bbox": box, "area": box[2] * box[3]}
    rle = result["segmentation"]
    return {**common, "segmentation": rle, "area": float(cocotools("pycocotools.mask").area(rle))}


def coco_index(coco: Any, dataset: dict[str, Any]) -> Any:
    index = coco()
    index.dataset = dataset
    index.createIndex()
    return index


@contextlib.contextmanager
def scoring(tool: str) -> Iterator[None]:
    """Turn whatever COCO's tools raise at an unreadable segmentation (no common base class) into a DatasetError."""
    try:
        yield
    except (ImportError, DatasetError):
        raise
    except Exception as error:
        raise DatasetError(f"{tool} cannot score these annotations: a malformed segmentation ({error})") from error

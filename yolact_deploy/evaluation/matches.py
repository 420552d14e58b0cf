"""Which detections hit which objects, told image by image, and the precision that follows from it.

Matching is pycocotools' own (`COCOeval.evaluateImg`). It is done once per image, for some images at a time, and only a
few bytes of each detection are kept, so that thousands of images need little memory. `Matches.precision` then does what
`COCOeval.accumulate` does, to the last bit. It can also weigh the images: one of weight 2 counts as if it were there
twice, one of weight 0 not at all, which is what a bootstrap over images needs.

Legend: T IoU thresholds (10), R recall thresholds (101), K categories, A ranges of area (all, small, medium, large),
I images, n detections, S weightings.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.errors import DatasetError, import_optional

#: ranges of area, in the order of their axis
AREAS = ("all", "small", "medium", "large")
#: COCO's IoU thresholds, as pycocotools makes them
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_EVERY_THRESHOLD = (1 << len(IOU_THRESHOLDS)) - 1
_VALUES_AT_ONCE = 1 << 20

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Matches:
    """What detections hit, those of each category and range of area in falling order of their scores.

    Attributes:
        image_ids: the images, in rising order [I]
        category_ids: the categories, in rising order [K]
        objects: int32 [K, A, I] objects to find in each image
        starts: int64 [K * A + 1] where the detections of each category and range begin in the following three
        images: int32 [n] number of the image of each detection
        hits: uint16 [n], bit t is set where the detection hits an object at IoU threshold t
        misses: uint16 [n], bit t is set where it hits nothing; neither is set where it is to be ignored
    """

    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    objects: NDArray[np.int32]
    starts: Integers
    images: NDArray[np.int32]
    hits: NDArray[np.uint16]
    misses: NDArray[np.uint16]

    def precision(self) -> Floats:
        """Interpolated precision [T, R, K, A], -1 where there is no object: ``COCOeval.eval["precision"]`` for at most
        100 detections an image."""
        shape = (len(IOU_THRESHOLDS), len(RECALLS), len(self.category_ids), len(AREAS))
        found = np.full(shape, -1.0)
        once = np.ones((1, len(self.image_ids)), np.int32)
        for category in range(shape[2]):
            for area in range(shape[3]):
                if self.objects[category, area].any():
                    found[:, :, category, area] = self._interpolated(category, area, once)[0]
        return found

    def average_precision(self, weights: NDArray[np.int32]) -> Floats:
        """AP over all thresholds, categories and areas [S]; NaN where no object is left.

        Args:
            weights: int32 [S, I], how many times each image counts
        """
        total, categories = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
        for category in range(len(self.category_ids)):
            count = self.starts[category * len(AREAS) + 1] - self.starts[category * len(AREAS)]
            step = max(1, _VALUES_AT_ONCE // max(1, int(count)))
            for first in range(0, len(weights), step):
                part = slice(first, first + step)
                there = weights[part] @ self.objects[category, 0] > 0
                if not there.any():
                    continue
                precision = self._interpolated(category, 0, weights[part][there])
                total[part][there] += precision.mean(axis=(1, 2))
                categories[part] += there
        with np.errstate(invalid="ignore"):
            mean: Floats = total / categories  # 0 / 0 is NaN
        return mean

    def _interpolated(self, category: int, area: int, weights: NDArray[np.int32]) -> Floats:
        """Interpolated precision [S, T, R] of weightings [S, I] that leave some object.

        Between two hits precision only falls and recall stays, so that hits alone need to be looked at; and what misses
        at every threshold, which is most, is counted once for all of them.
        """
        cell = category * len(AREAS) + area
        part = slice(self.starts[cell], self.starts[cell + 1])
        hits, misses, images = self.hits[part], self.misses[part], self.images[part]
        found = np.zeros((len(weights), len(IOU_THRESHOLDS), len(RECALLS)))
        looked_at = np.flatnonzero(misses != _EVERY_THRESHOLD)
        if not looked_at.size:
            return found
        hits, misses = hits[looked_at], misses[looked_at]
        weight = weights[:, images[: int(looked_at[-1]) + 1]]
        own = weight[:, looked_at]
        weight[:, looked_at] = 0
        missed = np.cumsum(weight, axis=1, dtype=np.int32)[:, looked_at]
        needed = _needed(weights @ self.objects[category, area])
        for threshold in range(len(IOU_THRESHOLDS)):
            hit, counted = (bits >> threshold & 1 for bits in (hits, hits | misses))
            places = np.flatnonzero(hit)
            if not places.size:
                continue
            told = (missed + np.cumsum(own * counted.astype(np.int32), axis=1, dtype=np.int32))[:, places]
            right = np.cumsum(own[:, places], axis=1, dtype=np.int64)
            precision = right / (told + np.spacing(1))
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = _first_at_least(right, needed)
            inside = reached < places.size
            values = np.take_along_axis(envelope, np.minimum(reached, places.size - 1), axis=1)
            found[:, threshold] = np.where(inside, values, 0.0)
        return found


def _needed(objects: Integers) -> Integers:
    """How many hits reach each recall [S, R], of so many objects [S]: the least h with h / objects >= recall.

    The division decides, as it does in pycocotools, not the product.
    """
    total = objects[:, None].astype(np.float64)
    needed = np.ceil(RECALLS * total)
    needed -= (needed - 1) / total >= RECALLS
    needed += needed / total < RECALLS
    return np.maximum(needed, 0).astype(np.int64)


def _first_at_least(rows: Integers, wanted: Integers) -> Integers:
    """Of rising rows [S, m], the first place with a value of at least each one that is wanted [S, R]; m if none."""
    apart = (np.arange(len(rows)) * (max(int(rows.max()), int(wanted.max())) + 1))[:, None]
    places = np.searchsorted((rows + apart).ravel(), (wanted + apart).ravel()).reshape(wanted.shape)
    first: Integers = places - np.arange(len(rows))[:, None] * rows.shape[1]
    return first


_KEPT = np.dtype([("cell", "i4"), ("image", "i4"), ("score", "f8"), ("hits", "u2"), ("misses", "u2")])


class Matcher:
    """Matches detections with objects, some images at a time.

    Args:
        content: a COCO instances file's checked content; it is not changed
        image_ids: all images that will be scored
        kind: "bbox" or "segm"
    """

    def __init__(self, content: Mapping[str, Any], image_ids: Iterable[int], kind: str) -> None:
        self.kind = kind
        self._truth = Truth(content, image_ids)
        self._number = {image_id: number for number, image_id in enumerate(self._truth.image_ids)}
        shape = (len(self._truth.category_ids), len(AREAS), len(self._number))
        self._objects = np.zeros(shape, np.int32)
        self._kept: list[NDArray[Any]] = []
        self._added: set[int] = set()
        self._matches: Matches | None = None

    def add(self, results: Mapping[int, Sequence[Result]]) -> None:
        """Match the results of some images, told by the images' ids; each image is added at most once.

        Raises:
            DatasetError: a segmentation of the annotations that cannot be read.
        """
        assert not self._added.intersection(results)
        self._added.update(results)
        self._matches = None
        found = [detection(result, self.kind) for image_id in results for result in results[image_id]]
        with scoring("pycocotools"), contextlib.redirect_stdout(io.StringIO()):
            tools = cocotools("pycocotools.cocoeval")
            coco = cocotools("pycocotools.coco").COCO
            evaluation = tools.COCOeval(
                *(coco_index(coco, part) for part in self._truth.parts(results, found)), self.kind
            )
            evaluation.params.imgIds = list(results)
            evaluation.params.catIds = list(self._truth.category_ids)
            evaluation.evaluate()
        self._keep(evaluation.evalImgs, len(results))

    def _keep(self, evaluated: Sequence[dict[str, Any] | None], images: int) -> None:
        """Take what is needed of COCOeval's records, which lie in the order of category, area and image."""
        rows, hits, ignored = [], [], []
        for place, record in enumerate(evaluated):
            if record is None:
                continue
            cell, number = place // images, self._number[record["image_id"]]
            self._objects[cell // len(AREAS), cell % len(AREAS), number] = np.count_nonzero(record["gtIgnore"] == 0)
            rows += [(cell, number, score, 0, 0) for score in record["dtScores"]]
            hits.append(record["dtMatches"] != 0)
            ignored.append(record["dtIgnore"] != 0)
        if not rows:
            return
        kept = np.array(rows, _KEPT)
        hit, counted = np.concatenate(hits, axis=1), ~np.concatenate(ignored, axis=1)
        bits = 1 << np.arange(len(IOU_THRESHOLDS))
        kept["hits"], kept["misses"] = bits @ (hit & counted), bits @ (~hit & counted)
        self._kept.append(kept[(kept["hits"] | kept["misses"]) != 0])

    def matches(self) -> Matches:
        """Of all that was added; images that were not are taken as without detections, but their objects count."""
        left = [image_id for image_id in self._truth.image_ids if image_id not in self._added]
        if left:
            self.add({image_id: [] for image_id in left})
        if self._matches is None:
            self._matches = self._sorted(np.concatenate(self._kept) if self._kept else np.zeros(0, _KEPT))
        return self._matches

    def _sorted(self, kept: NDArray[Any]) -> Matches:
        # As COCOeval does: equal scores in the order of the images, and in an image as they were.
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
        """:meth:`Matches.precision` of all that was added."""
        return self.matches().precision()


class Truth:
    """Annotations by image, and what COCO's tools want of them.

    Attributes:
        image_ids: the images to score, in rising order
        category_ids: of all categories, in rising order
    """

    def __init__(self, content: Mapping[str, Any], image_ids: Iterable[int]) -> None:
        self.image_ids = tuple(sorted(set(image_ids)))
        self.category_ids = tuple(sorted({category["id"] for category in content["categories"]}))
        self._categories = content["categories"]
        self._records = {image["id"]: image for image in content["images"]}
        self._annotations: dict[int, list[Result]] = {image_id: [] for image_id in self.image_ids}
        for annotation in content["annotations"]:
            if annotation["image_id"] in self._annotations:
                self._annotations[annotation["image_id"]].append(annotation)

    def parts(self, image_ids: Iterable[int], found: list[Result]) -> Iterator[dict[str, Any]]:
        """Two COCO datasets of some images: of the objects, and of detections.

        Ids are given anew, to ``found`` in place: COCO's tools take id 0 for "not matched".
        """
        ids = list(image_ids)
        images = [self._records[image_id] for image_id in ids if image_id in self._records]
        truth = [dict(annotation) for image_id in ids for annotation in self._annotations[image_id]]
        for records in (truth, found):
            for number, record in enumerate(records, 1):
                record["id"] = number
            yield {"images": images, "categories": self._categories, "annotations": records}


def detection(result: Result, kind: str) -> Result:
    """A result as COCO's tools keep it; sizes are told by what is scored, so for masks by their pixels."""
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
    """What COCO's tools raise at a segmentation they cannot read has no common base: make it a DatasetError."""
    try:
        yield
    except (ImportError, DatasetError):
        raise
    except Exception as error:
        raise DatasetError(f"{tool} cannot score these annotations: a malformed segmentation ({error})") from error


def cocotools(module: str) -> ModuleType:
    return import_optional(module, "bench", "COCO average precision")

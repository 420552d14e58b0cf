"""Which classes a model takes for which: a matrix of true against detected classes, with background."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.coco_results import Result
from yolact_deploy.evaluation.coco_rules import cocotools, outline

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Counts of objects.

    Attributes:
        names: of the classes
        counts: int64 [C + 1, C + 1]: rows are true classes, columns detected ones, the last of both is background
        score: detections below it do not count
        iou: a detection belongs to an object whose mask it overlaps at least so much
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    score: float
    iou: float


def confusion(
    content: Mapping[str, Any],
    results: Sequence[Result],
    image_ids: Collection[int],
    *,
    score: float = 0.3,
    iou: float = 0.5,
) -> Confusion:
    """Match detections to objects of any class, the pairs that overlap most first, and count.

    Crowds are neither objects nor mistakes: what lies in one, by half of its pixels, does not count.

    Args:
        content: of a checked COCO file
        results: COCO results with masks
        image_ids: of the images that were evaluated
    """
    names = {record["id"]: record["name"] for record in sorted(content["categories"], key=lambda r: r["id"])}
    label = {number: index for index, number in enumerate(names)}
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    truth: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    found: dict[int, list[Result]] = defaultdict(list)
    for record in content["annotations"]:
        truth[record["image_id"]].append(record)
    for result in results:
        if result["score"] >= score and "segmentation" in result:
            found[result["image_id"]].append(result)
    images = {record["id"]: record for record in content["images"]}
    for image_id in image_ids:
        _count(truth[image_id], found[image_id], images[image_id], label, counts, iou)
    return Confusion(tuple(names.values()), counts, score, iou)


def _count(
    objects: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    image: Mapping[str, Any],
    label: Mapping[int, int],
    counts: NDArray[np.int64],
    least: float,
) -> None:
    crowds = [bool(o["iscrowd"]) for o in objects]
    overlaps = np.zeros((len(results), len(objects)))
    if objects and results:
        outlines = [outline(o, "segm", image) for o in objects]
        masks = [result["segmentation"] for result in results]
        overlaps = np.asarray(cocotools("pycocotools.mask").iou(masks, outlines, [int(crowd) for crowd in crowds]))
    missed, wrong = set(range(len(objects))), set(range(len(results)))
    pairs = np.argwhere(overlaps >= least).tolist()
    for row, column in sorted(pairs, key=lambda pair: -overlaps[pair[0], pair[1]]):
        if row in wrong and column in missed and not crowds[column]:
            wrong.remove(row)
            missed.remove(column)
            counts[label[objects[column]["category_id"]], label[results[row]["category_id"]]] += 1
    for column in missed:
        if not crowds[column]:
            counts[label[objects[column]["category_id"]], -1] += 1
    for row in wrong:
        if not any(overlaps[row, column] >= least for column in range(len(objects)) if crowds[column]):
            counts[-1, label[results[row]["category_id"]]] += 1

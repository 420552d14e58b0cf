"""COCO's rules for one image and one category: which detections hit an object, and which count at all.

The rules are those of pycocotools (`COCOeval.evaluateImg`), and the overlaps are computed by it. Here the thresholds
are the bits of one number: a detection and an object meet at the first few thresholds, so what a Python loop over
thresholds decides is decided by a few operations on integers. The results are equal bit for bit.

Legend: D detections, G objects. Bit t of a number is IoU threshold t of :data:`IOU_THRESHOLDS`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from yolact_deploy.datasets.coco_results import Result, score_of
from yolact_deploy.errors import import_optional

#: area ranges, in the order of their axis, and the pixels that each includes
AREAS = ("all", "small", "medium", "large")
_RANGES = ((0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2))
#: COCO's IoU thresholds, computed as pycocotools does
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_THRESHOLDS = IOU_THRESHOLDS.tolist()
EVERY_THRESHOLD = (1 << len(_THRESHOLDS)) - 1
#: COCO's limit of the detections per image and class that count
COCO_LIMIT = 100


def best_first(results: Sequence[Result], kind: str) -> list[Result]:
    """Detections in the order in which they choose an object; equal scores keep their order."""
    return sorted(results, key=lambda result: -score_of(result, kind))


def in_range(size: float, area: int) -> bool:
    """Whether an area in pixels is in the range of :data:`AREAS` number ``area``; both ends are inside."""
    low, high = _RANGES[area]
    return low <= size <= high


def ignored_in(area: int, objects: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each object, whether it is a crowd or of another size, so that nobody has to detect it."""
    return [bool(annotation["iscrowd"]) or not in_range(annotation["area"], area) for annotation in objects]


def outline(annotation: Mapping[str, Any], kind: str, image: Mapping[str, Any]) -> Any:
    """The box [x, y, w, h] or the mask of an object, as COCO's tools compare it."""
    if kind == "bbox":
        return annotation["bbox"]
    tools, segmentation = cocotools("pycocotools.mask"), annotation["segmentation"]
    size = image["height"], image["width"]
    if isinstance(segmentation, list):
        return tools.merge(tools.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return tools.frPyObjects(segmentation, *size)
    return segmentation


def areas_of(results: Sequence[Result], kind: str) -> list[float]:
    """Pixels of each detection: of its box, or of its mask."""
    if kind == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in results]
    area = cocotools("pycocotools.mask").area
    masks = [result["segmentation"] for result in results]
    # pycocotools 2.0.11 keeps the number of masks in 8 bits: 256 wrap around or fail, depending on NumPy.
    groups = (masks[start : start + 255] for start in range(0, len(masks), 255))
    return [float(pixels) for group in groups for pixels in area(group)]


def thresholds_reached(
    results: Sequence[Result], outlines: Sequence[Any], objects: Sequence[Mapping[str, Any]], kind: str
) -> list[list[tuple[int, int]]]:
    """Of each detection the objects that it overlaps enough, in the order in which it prefers them.

    Args:
        outlines: of the objects, from :func:`outline`

    Returns:
        for each of D detections pairs of the object's index and the thresholds that the IoU reaches
    """
    if not results or not outlines:
        return [[] for _ in results]
    name = "bbox" if kind == "bbox" else "segmentation"
    crowd = [int(annotation["iscrowd"]) for annotation in objects]
    overlaps = cocotools("pycocotools.mask").iou([result[name] for result in results], list(outlines), crowd)
    near: list[list[tuple[int, int]]] = [[] for _ in results]
    for detection in np.flatnonzero((overlaps >= _THRESHOLDS[0]).any(axis=1)).tolist():
        row = overlaps[detection].tolist()
        # Of equal overlaps, the later object is taken.
        preferred = sorted((g for g, iou in enumerate(row) if iou >= _THRESHOLDS[0]), key=lambda g: (-row[g], -g))
        near[detection] = [(g, (1 << bisect_right(_THRESHOLDS, row[g])) - 1) for g in preferred]
    return near


def hits_and_misses(
    near: Sequence[Sequence[tuple[int, int]]], ignored: Sequence[bool], crowd: Sequence[bool], outside: Sequence[bool]
) -> list[tuple[int, int]]:
    """The thresholds at which each of D detections hits an object, and those at which it hits nothing.

    Detections choose in their order, each the object with the largest overlap that is still free at the threshold.
    Objects to detect come before ignored ones, and a crowd is always free. A detection that takes an ignored object
    does not count, nor does one of another size that takes none.

    Args:
        near: from :func:`thresholds_reached`
        ignored, crowd: of the G objects
        outside: of the detections, whether their area is out of the range
    """
    taken = [0] * len(ignored)
    bits = []
    for objects, is_outside in zip(near, outside, strict=True):
        left, hits = EVERY_THRESHOLD, 0
        for of_ignored in (False, True):
            for index, reached in objects:
                if ignored[index] is not of_ignored:
                    continue
                own = reached & left & (EVERY_THRESHOLD if crowd[index] else ~taken[index])
                taken[index] |= own
                left &= ~own
                hits |= 0 if of_ignored else own
        bits.append((hits, 0 if is_outside else left))
    return bits


def cocotools(module: str) -> ModuleType:
    return import_optional(module, "bench", "COCO average precision")

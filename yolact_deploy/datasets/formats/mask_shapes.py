"""Masks between their forms: rings of polygons, pixels, run lengths, and one closed outline for parts and holes.

Legend: H x W image, k points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.formats.read_set import ReadObject, ReadPicture, ReadSet, Segmentation
from yolact_deploy.datasets.rle import decode
from yolact_deploy.errors import import_optional
from yolact_deploy.mask_forms import MaskCrops

Bools = NDArray[np.bool_]
Points = NDArray[Any]

#: pairs of points whose distances are computed at once when two rings are joined
_MOST_PAIRS = 4_000_000
_SAME = 0.999


def mask_rle(mask: Bools) -> dict[str, Any]:
    """COCO's run lengths of a mask bool [H, W]."""
    return crops_of_masks([mask]).rle()[0]


def crops_of_masks(masks: Sequence[Bools]) -> MaskCrops:
    """Masks bool [H, W] of one picture, each where it has pixels."""
    crops, offsets = [], []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y, x = (int(rows[0]), int(columns[0])) if len(rows) else (0, 0)
        stop_y, stop_x = (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)
        offsets.append((x, y))
        crops.append(np.ascontiguousarray(mask[y:stop_y, x:stop_x]))
    height, width = masks[0].shape if len(masks) else (0, 0)
    return MaskCrops(height, width, np.array(offsets, np.int64).reshape(-1, 2), tuple(crops))


def pixels(mask: Segmentation, height: int, width: int) -> Bools:
    """The pixels of a mask by COCO's rule, bool [H, W]."""
    if isinstance(mask, list):
        coco = import_optional("pycocotools.mask", extra="train", purpose="drawing polygons")
        counts = coco.merge(coco.frPyObjects(mask, height, width))["counts"]
    else:
        counts = mask["counts"]
    return decode(counts, height, width).astype(np.bool_)


def add_parts(
    dataset: ReadSet, picture: ReadPicture, name: str, parts: Sequence[list[float] | Bools], iscrowd: bool = False
) -> None:
    """Add one object of rings and masks bool [H, W]; with a mask among its parts, all become pixels."""
    rings = [part for part in parts if isinstance(part, list)]
    if len(rings) == len(parts):
        dataset.add_rings(picture, name, rings, iscrowd)
        return
    dataset.check_outlines(picture, name, rings)
    size = picture.height, picture.width
    mask = np.logical_or.reduce([pixels([part], *size) if isinstance(part, list) else part for part in parts])
    if mask.any():
        picture.objects.append(ReadObject(dataset.add_class(name), mask_rle(mask), iscrowd))
    else:
        dataset.notes["mask without pixels left out"] += 1


def picture_crops(picture: ReadPicture) -> MaskCrops:
    """The masks of all objects of a picture."""
    crops = crops_of_masks([pixels(o.mask, picture.height, picture.width) for o in picture.objects])
    return MaskCrops(picture.height, picture.width, crops.offsets, crops.crops)


def one_outline(mask: Segmentation, height: int, width: int) -> NDArray[np.float64]:
    """One closed outline [k, 2] around the same pixels: parts and holes are joined by lines of no width."""
    if isinstance(mask, list):
        rings = [np.array(ring, np.float64).reshape(-1, 2) for ring in mask]
        if len(rings) == 1:
            return rings[0]
        joined = join_rings(rings)
        expected, actual = pixels(mask, height, width), pixels([joined.ravel().tolist()], height, width)
        if (expected & actual).sum() >= _SAME * (expected | actual).sum():  # parts that overlap would cancel out
            return joined
    rings = [ring.astype(np.float64) for ring in pixel_rings(pixels(mask, height, width))]
    return join_rings(rings) if rings else np.zeros((0, 2))


def join_rings(rings: Sequence[Points]) -> Points:
    """Rings [k, 2] as one, the longest first: each is entered and left at the point that is nearest."""
    ordered = sorted(rings, key=len, reverse=True)
    joined = ordered[0]
    for ring in ordered[1:]:
        step = max(1, len(joined) * len(ring) // _MOST_PAIRS)
        apart = ((joined[::step, None] - ring[None]) ** 2).sum(axis=2)
        row, there = np.unravel_index(apart.argmin(), apart.shape)
        here = int(row) * step
        around = np.concatenate([ring[there:], ring[: there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined


def pixel_rings(mask: Bools) -> list[NDArray[np.int64]]:
    """The borders of a mask along the edges of its pixels: int64 [k, 2] corners (x, y), of parts and of holes."""
    padded = np.pad(mask, 1).astype(np.int8)
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    down, right = np.diff(padded[:, 1:-1], axis=0), np.diff(padded[1:-1], axis=1)
    for change, first, second in ((down, (0, 0), (1, 0)), (right, (0, 1), (0, 0))):
        for y, x in np.argwhere(change).tolist():
            a, b = (x + first[0], y + first[1]), (x + second[0], y + second[1])
            start, end = (a, b) if change[y, x] > 0 else (b, a)  # the inside is on the right
            ends.setdefault(start, []).append(end)
    rings = []
    while ends:
        rings.append(_corners(_walk(ends)))
    return rings


def _walk(ends: dict[tuple[int, int], list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Take one closed way out of the edges; where two ways cross, it turns right, so that parts stay apart."""
    start = here = next(iter(ends))
    way, before = [start], start
    while True:
        options = ends[here]
        choice = 0
        if len(options) > 1 and before != here:
            dx, dy = here[0] - before[0], here[1] - before[1]
            right = (here[0] - dy, here[1] + dx)
            choice = options.index(right) if right in options else 0
        before, here = here, options.pop(choice)
        if not options:
            del ends[before]
        if here == start:
            return way
        way.append(here)


def _corners(way: list[tuple[int, int]]) -> NDArray[np.int64]:
    points = np.array(way, np.int64)
    turns = ((points - np.roll(points, 1, axis=0)) != (np.roll(points, -1, axis=0) - points)).any(axis=1)
    return np.asarray(points[turns])

"""The check of one annotated mask and box: what is sound comes back in one form, the rest becomes a finding.

What passes, pycocotools and our own drawing can take: finite coordinates near the image, polygons that are not absurdly
long, and run lengths that fill the image.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.rle import image_runs, mask_bounds, without_empty_runs
from yolact_deploy.mask_forms import compress_counts
from yolact_deploy.untrusted import shown

Rings = list[list[float]]
Box = list[float]

#: largest coordinate and side of a box, in pixels; COCO's tools count in fifths of a pixel with 32 bits
MOST_COORDINATE = 1e7
_OUTLINE = 10_000.0  # length in pixels that the rings of a mask may have in the smallest image
_SLACK = 2.0  # pixels by which a box may leave its image, or a mask its box, without a finding
_ROOM = 0.1  # share of its side by which a box may exceed its mask, in addition


def is_number(value: object) -> TypeGuard[float]:
    """True for a finite int or float that is not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_box(value: object) -> bool:
    """True for four numbers [x, y, width, height] that an image can have, the last two not negative."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(is_number(v) and abs(v) <= MOST_COORDINATE for v in value) and bool(value[2] >= 0 and value[3] >= 0)


def inner_box(xywh: Sequence[float], height: int, width: int, name: str, findings: Findings) -> Box | None:
    """The box as xyxy within the image; None, with the finding, if nothing of it is left."""
    x, y, w, h = xywh
    if w == 0 or h == 0:
        findings.add("box without area", name)
        return None
    box = [max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)]
    if box[0] >= box[2] or box[1] >= box[3]:
        findings.add("box outside its image", name)
        return None
    if max(a - b for a, b in zip((w, h), (box[2] - box[0], box[3] - box[1]), strict=True)) > _SLACK:
        findings.add("box partly outside its image", name)
    return box


class CheckedMask:
    """A sound mask.

    Attributes:
        segmentation: polygon rings [x, y, x, y, ...] of three points or more, or {"size", "counts"} as text
        area: in pixels; that of polygons is exact, as in COCO's own files
        bounds: the smallest box xyxy around it, in pixels
    """

    __slots__ = ("area", "bounds", "segmentation")

    def __init__(self, segmentation: Rings | dict[str, Any], area: float, bounds: Box) -> None:
        self.segmentation, self.area, self.bounds = segmentation, area, bounds

    def fits(self, box: Box, height: int, width: int) -> bool:
        """Whether a box xyxy within the image is about the smallest around the mask."""
        x0, y0, x1, y1 = self.bounds
        beyond = (box[0] - max(x0, 0), box[1] - max(y0, 0), min(x1, width) - box[2], min(y1, height) - box[3])
        room = (_SLACK + _ROOM * (box[2] - box[0]), _SLACK + _ROOM * (box[3] - box[1])) * 2
        return all(-most <= exceeds <= _SLACK for exceeds, most in zip(beyond, room, strict=True))

    @classmethod
    def of(cls, value: Any, height: int, width: int, name: str, findings: Findings) -> CheckedMask | None:
        """The mask of a ``segmentation``; None, with the finding, if it is none."""
        if isinstance(value, dict):
            return cls._of_runs(value, height, width, name, findings)
        if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
            flat = isinstance(value, list) and all(map(is_number, value)) and len(value) > 0
            text = "a flat list; put each polygon into a list of its own" if flat else shown(value)
            findings.add("malformed mask" if value != [] else "empty mask", f"{name}: segmentation is {text}")
            return None
        if not any(value):
            findings.add("empty mask", f"{name}: segmentation is {shown(value)}")
            return None
        rings = []
        for ring in value:
            points = _points(ring)
            if isinstance(points, str):
                findings.add("malformed mask", f"{name}: segmentation has {points}")
                return None
            rings.append(points)
        return cls._of_rings(rings, value, height, width, name, findings)

    @classmethod
    def _of_rings(
        cls, rings: Sequence[NDArray[Any]], value: Rings, height: int, width: int, name: str, findings: Findings
    ) -> CheckedMask | None:
        keep = [len(points) >= 3 for points in rings]
        if not all(keep):
            kind = "polygon of fewer than three points" if any(keep) else "empty mask"
            findings.add(kind, f"{name}: segmentation")
            rings = [points for points, kept in zip(rings, keep, strict=True) if kept]
            value = [ring for ring, kept in zip(value, keep, strict=True) if kept]
        if not rings:
            return None
        if is_too_long(rings, height, width):
            findings.add("malformed mask", f"{name}: segmentation has an outline far longer than its image allows")
            return None
        areas = list(map(_polygon_area, rings))
        if max(areas) <= 0:
            findings.add("mask without area", f"{name}: segmentation")
        points = np.concatenate(rings)
        return cls(value, sum(areas), [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()])

    @classmethod
    def _of_runs(
        cls, value: Mapping[str, Any], height: int, width: int, name: str, findings: Findings
    ) -> CheckedMask | None:
        size = [height, width]
        if value.get("size") != size:
            found = f"{name}: segmentation has the size {shown(value.get('size'))}, its image {size} (height, width)"
            findings.add("malformed mask", found)
            return None
        runs = image_runs(value.get("counts"), *size)
        if runs is None:
            text = f"{name}: segmentation counts {shown(value.get('counts'))} are no runs that fill {height} x {width}"
            findings.add("malformed mask", text)
            return None
        area = float(runs[1::2].sum())
        if not area:
            findings.add("empty mask", f"{name}: segmentation")
            return None
        counts, plain = value["counts"], without_empty_runs(runs)
        text = counts if isinstance(counts, str) and plain is runs else compress_counts(plain)
        return cls({"size": size, "counts": text}, area, mask_bounds(plain, height))


def _points(ring: list[Any]) -> NDArray[Any] | str:
    """The points [n, 2] of a polygon ring, or what is wrong with it."""
    try:
        values = np.array(ring)
    except ValueError:  # lists of different lengths in it
        values = np.array("")
    if values.dtype.kind not in "iuf" or values.ndim != 1:
        return "a polygon with a value that is no number"
    if len(ring) % 2:
        return f"a polygon of {len(ring)} values: x and y must alternate"
    if not (np.abs(values) <= MOST_COORDINATE).all():  # NaN, too
        return f"a polygon with the coordinate {ring[int(np.argmin(np.abs(values) <= MOST_COORDINATE))]}"
    return values.reshape(-1, 2).astype(np.float64)


def is_too_long(rings: Sequence[NDArray[Any]], height: int, width: int) -> bool:
    """Whether drawing polygon rings [n, 2] of an image would take more memory than its pixels explain."""
    return sum(map(_most_outline, rings)) > _OUTLINE and sum(map(_outline, rings)) > _OUTLINE + 4 * height * width


def _most_outline(points: NDArray[Any]) -> float:
    """A quick upper bound of :func:`_outline`."""
    return float(np.ptp(points, axis=0).max()) * len(points)


def _outline(points: NDArray[Any]) -> float:
    """The length of the outline in steps of COCO's drawing, which takes 80 bytes for each."""
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _polygon_area(points: NDArray[Any]) -> float:
    x, y = points.T
    last = x[-1] * y[0] - x[0] * y[-1]
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]) + last)) / 2

"""Counting tracked objects: those that cross a line, and those that are in a zone.

An object is where the middle of the lower side of its box is, which for people and cars is on the ground.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_scale, draw_text
from yolact_deploy.errors import InputError

Point = tuple[float, float]

#: tracks that counters remember; ids of lost ones do not come back
_REMEMBERED = 10_000
_YELLOW = (0, 255, 255)


class LineCounter:
    """Counts crossings of the line from ``start`` to ``end``, in pixels, each object once a crossing.

    ``right`` are those that end on the right of someone who goes from start to end, ``left`` the others.

    Raises:
        InputError: start and end are the same point.
    """

    def __init__(self, start: Point, end: Point) -> None:
        if start == end:
            raise InputError(f"line: expected two different points, got {start} twice")
        self.start, self.end = start, end
        self.left = self.right = 0
        self._last: dict[int, NDArray[np.float64]] = {}

    def update(self, detections: Detections) -> None:
        """Take the next frame's detections, which have track ids."""
        for track, place in _places(detections):
            before = self._last.pop(track, None)
            self._last[track] = place
            _forget(self._last)
            if before is None or not _crosses(before, place, np.array(self.start), np.array(self.end)):
                continue
            # The y axis points down, so a positive side is on the right.
            if _side(np.array(self.start), np.array(self.end), place) > 0:
                self.right += 1
            else:
                self.left += 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready counts."""
        return {"line": [*self.start, *self.end], "left": self.left, "right": self.right}

    def draw(self, image: NDArray[np.uint8]) -> None:
        """Draw the line and the counts in place."""
        a, b = ((round(x), round(y)) for x, y in (self.start, self.end))
        cv2.line(image, a, b, _YELLOW, 2)
        draw_text(image, f"left {self.left}  right {self.right}", a, _YELLOW, draw_scale(image))


class ZoneCounter:
    """Counts the objects inside a polygon: now, and all that have been in it.

    Args:
        corners: at least three (x, y) in pixels

    Raises:
        InputError: fewer corners.
    """

    def __init__(self, corners: Sequence[Point]) -> None:
        if len(corners) < 3:
            raise InputError(f"zone: expected at least three corners, got {len(corners)}")
        self.corners = np.array(corners, np.float32)
        self.inside = 0
        self.total = 0  #: different objects that have been inside
        self._seen: dict[int, None] = {}

    def update(self, detections: Detections) -> None:
        """Take the next frame's detections, which have track ids."""
        inside = {
            track
            for track, (x, y) in _places(detections)
            if cv2.pointPolygonTest(self.corners, (float(x), float(y)), False) >= 0
        }
        self.inside = len(inside)
        for track in sorted(inside):
            self.total += track not in self._seen
            self._seen.pop(track, None)
            self._seen[track] = None
            _forget(self._seen)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready counts."""
        return {"zone": self.corners.tolist(), "inside": self.inside, "total": self.total}

    def draw(self, image: NDArray[np.uint8]) -> None:
        """Draw the outline and the counts in place."""
        corners = self.corners.round().astype(np.int32)
        cv2.polylines(image, [corners], True, _YELLOW, 2)
        x, y = corners[0].tolist()
        draw_text(image, f"inside {self.inside}  total {self.total}", (x, y), _YELLOW, draw_scale(image))


def _forget(tracks: dict[int, Any]) -> None:
    """Drop the track that was seen longest ago if there are many; a camera may run for months."""
    if len(tracks) > _REMEMBERED:
        del tracks[next(iter(tracks))]


def _places(detections: Detections) -> list[tuple[int, NDArray[np.float64]]]:
    if detections.track_ids is None:
        raise InputError("counting needs track ids: pass detections of ByteTracker.track")
    x1, _, x2, y2 = detections.boxes.astype(np.float64).T
    places = np.stack([(x1 + x2) / 2, y2], axis=1)
    return [(track, place) for track, place in zip(detections.track_ids.tolist(), places, strict=True) if track > 0]


def _side(a: NDArray[Any], b: NDArray[Any], point: NDArray[Any]) -> float:
    return float((b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]))


def _crosses(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any], d: NDArray[Any]) -> bool:
    """Whether the way from a to b crosses the line from c to d; a point on the line is on its left."""
    apart = (_side(c, d, a) > 0) != (_side(c, d, b) > 0)
    return apart and _side(a, b, c) * _side(a, b, d) <= 0

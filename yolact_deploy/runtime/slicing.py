"""How large pictures are cut into tiles: sizes, overlap, and the rules by which detections of several tiles are merged.

Options have the names of SAHI (https://github.com/obss/sahi), where they mean the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from yolact_deploy.config import Size, both_sides, size_text
from yolact_deploy.errors import InputError
from yolact_deploy.untrusted import shown
from yolact_deploy.vocabulary import MATCH_METRICS, check_word

#: smallest side of a tile: with less there is nothing to see
#: of one picture
MOST_TILES = 100_000
_LEAST_SIDE = 16


class Tile(NamedTuple):
    """A rectangle of a picture, in pixels; the last row and column are those before ``bottom`` and ``right``."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """Tiles, and how their detections are merged.

    Attributes:
        size: (height, width) of a tile in pixels of the picture; one number for a square
        overlap: share of a tile that the next one covers as well, 0 <= overlap < 1
        standard_prediction: also run the whole picture, for objects that are larger than a tile
        match_metric: "ios" (intersection over the smaller of two masks) or "iou"; only pixels that both tiles see count
        match_threshold: least value of the metric at which two detections are one object, 0 < threshold <= 1
        class_agnostic: also merge detections of different classes
    """

    size: Size
    overlap: float = 0.2
    standard_prediction: bool = True
    match_metric: str = "iou"
    match_threshold: float = 0.5
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        if len(sides) > 2 or not all(type(side) is int and side >= _LEAST_SIDE for side in sides):
            raise InputError(
                f"slice: expected a side, or (height, width), of {_LEAST_SIDE} pixels or more, got {shown(self.size)}"
            )
        check_word("match_metric", self.match_metric, MATCH_METRICS)
        for name, low, inside in (
            ("overlap", "0 <= value < 1", _number(self.overlap) and 0 <= self.overlap < 1),
            ("match_threshold", "0 < value <= 1", _number(self.match_threshold) and 0 < self.match_threshold <= 1),
        ):
            if not inside:
                raise InputError(f"{name}: expected {low}, got {shown(getattr(self, name))}")

    @classmethod
    def of(cls, value: Slicing | Size | None) -> Slicing | None:
        """From what a caller gives: a size alone takes the defaults."""
        return value if value is None or isinstance(value, Slicing) else cls(size=value)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return both_sides(self.size)

    def tiles(self, height: int, width: int) -> list[Tile]:
        """The tiles of a picture, row by row; the last of a row or column is moved back to end where the picture does.

        A picture that is no larger than a tile has one, which is the picture.

        Raises:
            InputError: more than :data:`MOST_TILES`.
        """
        rows, columns = (_starts(n, side, self.overlap) for n, side in zip((height, width), self.sides, strict=True))
        if (count := len(rows) * len(columns)) > MOST_TILES:
            raise InputError(
                f"slice: a picture of {width} x {height} has {count:,} tiles of {size_text(self.size)} with an overlap "
                f"of {self.overlap:g}, more than {MOST_TILES:,}: take larger tiles or less overlap"
            )
        high, wide = min(height, self.sides[0]), min(width, self.sides[1])
        return [Tile(x, y, x + wide, y + high) for y in rows for x in columns]

    def describe(self) -> str:
        """One line, equal for equal values."""
        whole = "with" if self.standard_prediction else "without"
        classes = ", across classes" if self.class_agnostic else ""
        return (
            f"tiles of {size_text(self.size)}, overlap {self.overlap:g}, {whole} the whole picture, "
            f"{self.match_metric} >= {self.match_threshold:g}{classes}"
        )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """First pixel of each tile along one axis."""
    step = max(1, side - int(overlap * side))
    starts = list(range(0, max(1, length - side), step))
    if length > side:
        starts.append(length - side)
    return starts

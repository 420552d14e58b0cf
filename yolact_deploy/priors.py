"""The geometry of a network's input: where a picture lies in it, its prior boxes, and the SSD code of boxes.

A picture is part of a canvas, and the canvas is stretched to the network's input. With ``fit="stretch"`` the canvas is
the picture itself, as in the original. Otherwise it is the smallest one of the network's ratio that holds the picture:
with "letterbox" the picture is in its middle, with "pad" at its upper left. All numbers are whole pixels of the
picture, so every part of the package computes the same positions.

Legend: P priors, N images, n boxes, h x w the network's input. Boxes are normalized to 0..1 of the input; priors are
(cx, cy, w, h), boxes xyxy.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Array, Float, Float32, Floats
from yolact_deploy.config import YolactConfig

_ZERO = np.zeros((), np.float32)  # NumPy converts a number of Python in every call
#: SSD encoding variances of the center and of the size
VARIANCES = (0.1, 0.2)


class Placement(NamedTuple):
    """A picture on its canvas, in pixels of the picture."""

    height: int  #: of the picture
    width: int
    canvas_height: int
    canvas_width: int
    top: int  #: first row of the picture on the canvas
    left: int

    @classmethod
    def whole(cls, height: int, width: int) -> Placement:
        """A picture that fills its canvas."""
        return cls(height, width, height, width, 0, 0)

    @property
    def is_padded(self) -> bool:
        """Whether the canvas is larger than the picture."""
        return self[:2] != self[2:4]

    def pixel_boxes(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalized boxes in pixels of the picture: corners sorted, clamped to 0 below and to its size above.

        Works on long rows, which NumPy does several times as fast as on four columns.

        Args:
            boxes: xyxy float32 [n, 4], normalized to the network's input
        """
        canvas, origin, size = _as_columns(self)
        corners = np.empty((2, 2, len(boxes)), np.float32)
        np.multiply(boxes.T.reshape(2, 2, -1), canvas, out=corners)
        if self.is_padded:
            np.subtract(corners, origin, out=corners)
        first, second = corners
        pixels = np.empty_like(corners)
        low, high = pixels
        np.maximum(np.minimum(first, second, out=low), _ZERO, out=low)
        np.minimum(np.maximum(first, second, out=high), size, out=high)
        if self.is_padded:  # a box in the padding has no pixels; boxes beyond a whole image stay as they were
            np.minimum(low, size, out=low)
            np.maximum(high, _ZERO, out=high)
        return np.ascontiguousarray(pixels.reshape(4, -1).T)


@lru_cache(maxsize=64)
def _as_columns(where: Placement) -> tuple[NDArray[np.float32], ...]:
    """(x, y) of the canvas's size, of the picture's corner and of its size, [2, 1] each; kept, as frames are alike."""
    pairs = (where.canvas_width, where.canvas_height), (where.left, where.top), (where.width, where.height)
    return tuple(np.array(pair, np.float32)[:, None] for pair in pairs)


def place(height: int, width: int, config: YolactConfig) -> Placement:
    """Where a picture of this height and width lies for a network.

    Args:
        config: its input and its ``fit``
    """
    return place_in(height, width, config.input_shape, config.fit)


@lru_cache(maxsize=256)  # the frames of a stream are alike
def place_in(height: int, width: int, shape: tuple[int, int], fit: str) -> Placement:
    """:func:`place` for an input of ``shape`` (h, w)."""
    if fit == "stretch":
        return Placement.whole(height, width)
    rows, columns = shape
    canvas_height = max(height, (width * rows + columns // 2) // columns)
    canvas_width = max(width, (height * columns + rows // 2) // rows)
    if fit == "pad":
        return Placement(height, width, canvas_height, canvas_width, 0, 0)
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    return Placement(height, width, canvas_height, canvas_width, top, left)


def prior_shapes(config: YolactConfig) -> list[list[tuple[float, float]]]:
    """Width and height of the priors of a cell on each level, normalized, in the order of :func:`make_priors`."""
    full_height, full_width = config.prior_shape
    levels = []
    for scales in config.prior_scales:
        shapes = []
        for scale in scales:
            for ratio in config.aspect_ratios:
                root = math.sqrt(ratio)
                height = scale * root if config.square_priors else scale / root
                shapes.append((scale * root / full_width, height / full_height))
        levels.append(shapes)
    return levels


@lru_cache(maxsize=16)
def make_priors(config: YolactConfig) -> Float32[Floats, "P 4"]:
    """Prior boxes, float32 [P, 4] as (cx, cy, w, h), normalized; read-only, cached.

    Order: level, row, column, scale, ratio. Computed in float64 and rounded once, as the original does.
    """
    rows: list[tuple[float, float, float, float]] = []
    for (level_height, level_width), shapes in zip(config.level_shapes, prior_shapes(config), strict=True):
        for y in range(level_height):
            for x in range(level_width):
                rows.extend(((x + 0.5) / level_width, (y + 0.5) / level_height, w, h) for w, h in shapes)
    priors = np.array(rows, dtype=np.float64).astype(np.float32)
    priors.flags.writeable = False
    return priors


def decode_boxes(loc: Float[Array, "*N P 4"], priors: Float[Array, "P 4"]) -> Float32[Floats, "*N P 4"]:
    """Boxes xyxy normalized [..., P, 4] from regression [..., P, 4] and priors [P, 4] (SSD, arXiv:1512.02325)."""
    loc = np.asarray(loc, dtype=np.float32)
    center = priors[:, :2] + loc[..., :2] * np.float32(VARIANCES[0]) * priors[:, 2:]
    with np.errstate(over="ignore", invalid="ignore"):  # an absurd regression yields an infinite size and a NaN corner
        size = priors[:, 2:] * np.exp(loc[..., 2:] * np.float32(VARIANCES[1]))
        top_left = center - size / 2
        bottom_right = top_left + size
    return np.concatenate([top_left, bottom_right], axis=-1).astype(np.float32, copy=False)

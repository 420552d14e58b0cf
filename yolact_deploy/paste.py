"""Masks from prototype resolution to image pixels in NumPy.

Bilinear interpolation (align_corners False) crosses the threshold only in cells between four neighboring prototype
pixels of which some are inside and some outside. So only those cells are interpolated; all others are filled. No
full-size float mask is ever made.

Legend: n masks, h x w prototype resolution, H x W the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Array, Bools, Float
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, lazy_property, sigmoid
from yolact_deploy.priors import Placement


class _Axis(NamedTuple):
    """The output pixels of one axis in each cell between source pixels."""

    cell: NDArray[np.intp]  #: [out] the cell of each output pixel
    start: NDArray[np.intp]  #: [in + 1] first output pixel of each cell
    pixel: NDArray[np.intp]  #: [k, in] the output pixels of each cell, the last one repeated
    weight: NDArray[np.float32]  #: [k, in] their weights of the cell's far end


@lru_cache(maxsize=64)
def _axis(source: int, target: int, canvas: int, first: int) -> _Axis:
    """The axis of an image whose ``target`` pixels begin at ``first`` of the canvas that the source covers."""
    scale = np.float32(source) / np.float32(canvas)
    pixels = np.arange(first, first + target, dtype=np.float32)
    position = np.maximum((pixels + np.float32(0.5)) * scale - np.float32(0.5), 0)
    cell = np.minimum(position.astype(np.intp), source - 1)
    start = np.searchsorted(cell, np.arange(source + 1))
    most = int(np.diff(start).max())
    pixel = np.minimum(start[:-1] + np.arange(most)[:, None], start[1:] - 1)
    weight = (position[pixel] - cell[pixel]).astype(np.float32)
    return _Axis(cell, start, pixel, weight)


def paste_masks(masks: Float[Array, "n h w"], height: int, width: int, *, logits: bool = False) -> MaskCrops:
    """Binary masks at image size from cropped masks [n, h, w] at prototype resolution.

    A pixel is inside if the bilinearly interpolated probability is above 0.5.

    Args:
        masks: probabilities, or logits if ``logits`` is True; any float dtype
    """
    return paste_windows(MaskWindows.from_dense(masks, logits=logits), height, width)


def paste_windows(masks: MaskWindows, height: int, width: int) -> MaskCrops:
    """:func:`paste_masks` for masks that are stored only inside their boxes, where ``masks.placement`` puts them."""
    if len(masks) == 0:
        return MaskCrops(height, width, np.empty((0, 2), np.int64), ())
    cells = _Cells.of(masks)
    where = masks.placement or Placement.whole(height, width)
    down = _axis(masks.height, height, where.canvas_height, where.top)
    across = _axis(masks.width, width, where.canvas_width, where.left)
    whole, touched = cells.classify(0.0 if masks.logits else 0.5)

    # One crop for each mask: the output pixels of the cells it touches.
    used = np.flatnonzero(touched)
    mask, x, y = cells.locate(used)
    (x1, x2), (y1, y2) = (_extent(mask, position, len(masks)) for position in (x, y))
    left, top = across.start[x1], down.start[y1]
    crop_w, crop_h = across.start[x2] - left, down.start[y2] - top
    # One buffer for all crops, so that the boundary cells of all masks are handled together.
    first = np.concatenate([[0], np.cumsum(crop_h * crop_w)])
    buffer = np.empty(first[-1], dtype=np.bool_)
    crops = []
    for i, (begin, w, h, x0, y0) in enumerate(np.stack([first[:-1], crop_w, crop_h, left, top], axis=1).tolist()):
        crop = buffer[begin : begin + w * h].reshape(h, w)
        if crop.size:
            columns = across.cell[x0 : x0 + w] - cells.left[i]
            rows = down.cell[y0 : y0 + h] - cells.top[i]
            cells.plane(whole, i).take(columns, axis=1).take(rows, axis=0, out=crop, mode="clip")
        crops.append(crop)

    mixed = ~whole[used]
    origin = first[:-1] - left - top * crop_w
    boundary = _Boundary(used[mixed], x[mixed], y[mixed], origin[mask[mixed]], crop_w[mask[mixed]])
    _interpolate(buffer, cells, boundary, (down, across), masks.logits)
    return MaskCrops(height, width, np.stack([left, top], axis=1).astype(np.int64), tuple(crops))


class _Boundary(NamedTuple):
    """Cells with pixels inside and outside; output pixel (x, y) of their mask is at origin + y * stride + x."""

    cell: NDArray[np.intp]  #: number of the cell
    x: NDArray[np.intp]  #: column at prototype resolution
    y: NDArray[np.intp]  #: row
    origin: NDArray[np.intp]
    stride: NDArray[np.intp]


@dataclass(frozen=True)
class _Cells:
    """The prototype pixels of all windows in one list, mask by mask, row by row.

    A cell lies between a pixel and its right and lower neighbors. A ring of outside pixels surrounds each window; at
    the right and lower edges of the prototype the last pixels are repeated instead. So a cell's neighbors are one
    pixel and one row further on, and the last column and row of a window are not cells.
    """

    value: NDArray[np.float32]  #: [total]
    left: list[int]  #: per mask, column of its first pixel
    top: list[int]
    shape: list[tuple[int, int]]  #: per mask, rows and columns
    first: list[int]  #: per mask, index of its first pixel in ``value``

    @classmethod
    def of(cls, masks: MaskWindows) -> _Cells:
        shapes = np.array([window.shape for window in masks.windows], dtype=np.intp)
        x, y = masks.offsets.T
        left, top = np.maximum(x - 1, 0), np.maximum(y - 1, 0)
        columns, rows = x + shapes[:, 1] + 1 - left, y + shapes[:, 0] + 1 - top
        first = np.concatenate([[0], np.cumsum(rows * columns)])
        value = np.full(first[-1], masks.outside, dtype=np.float32)
        shape = list(zip(rows.tolist(), columns.tolist(), strict=True))
        cells = cls(value, left.tolist(), top.tolist(), shape, first.tolist())
        at_right, at_bottom = (x + shapes[:, 1] == masks.width).tolist(), (y + shapes[:, 0] == masks.height).tolist()
        for i, (window, begin_x, begin_y) in enumerate(zip(masks.windows, x - left, y - top, strict=True)):
            plane = cells.plane(value, i)
            plane[begin_y : begin_y + len(window), begin_x : begin_x + window.shape[1]] = window
            if at_right[i]:
                plane[:, -1] = plane[:, -2]
            if at_bottom[i]:
                plane[-1] = plane[-2]
        return cells

    def plane(self, values: NDArray[Any], i: int) -> NDArray[Any]:
        """Mask ``i`` of a list with one value per pixel, [rows, columns]."""
        rows, columns = self.shape[i]
        return values[self.first[i] : self.first[i] + rows * columns].reshape(rows, columns)

    @lazy_property
    def _rows(self) -> tuple[NDArray[np.intp], ...]:
        """For each row of each window: its mask, its y, its length, and the index of its cells minus their x."""
        rows, columns = np.array(self.shape, dtype=np.intp).T
        mask = np.repeat(np.arange(len(rows)), rows)
        begin = np.cumsum(rows) - rows
        y = np.arange(len(mask)) - (begin - np.array(self.top))[mask]
        length = columns[mask]
        base = np.cumsum(length) - length - np.array(self.left)[mask]
        return mask, y, length, base

    @lazy_property
    def _length(self) -> NDArray[np.intp]:
        """Row length of each pixel's window."""
        rows, columns = np.array(self.shape, dtype=np.intp).T
        return np.repeat(columns, rows * columns)

    def classify(self, threshold: float) -> tuple[Bools, Bools]:
        """Which cells have all four pixels above the threshold, and which have any."""
        inside = np.append(self.value > threshold, False)
        both, either = inside[:-1] & inside[1:], inside[:-1] | inside[1:]
        below = np.arange(len(both)) + self._length
        whole = both & both.take(below, mode="clip")
        touched = either | either.take(below, mode="clip")
        _, _, length, _ = self._rows
        touched[np.cumsum(length) - 1] = False
        for begin, (rows, columns) in zip(self.first, self.shape, strict=False):
            touched[begin + (rows - 1) * columns : begin + rows * columns] = False
        return whole, touched

    def locate(self, cell: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
        """Mask, column and row of cells, the latter two at prototype resolution."""
        mask, y, length, base = self._rows
        row = np.repeat(np.arange(len(length)), length)[cell]
        return mask[row], cell - base[row], y[row]

    def corners(self, cell: NDArray[np.intp]) -> NDArray[np.float32]:
        """Values of the cells' pixels [4, n]: upper left, upper right, lower left, lower right."""
        below = cell + self._length[cell]
        return self.value.take(np.stack([cell, cell + 1, below, below + 1]))


def _extent(
    owner: NDArray[np.intp], position: NDArray[np.intp], count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Least and one past the largest position of each of ``count`` owners (sorted); 0 and 0 without positions."""
    low, high = np.zeros(count, np.intp), np.zeros(count, np.intp)
    if owner.size:
        begins = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        low[owner[begins]] = np.minimum.reduceat(position, begins)
        high[owner[begins]] = np.maximum.reduceat(position, begins) + 1
    return low, high


def _interpolate(buffer: Bools, cells: _Cells, where: _Boundary, axes: tuple[_Axis, _Axis], logits: bool) -> None:
    """Write the output pixels of the boundary cells of all masks. Legend: m cells of up to r x c pixels each."""
    down, across = axes
    has_pixels = (down.start[where.y + 1] > down.start[where.y]) & (across.start[where.x + 1] > across.start[where.x])
    if not has_pixels.all():  # a paste that shrinks skips cells
        where = _Boundary(*(values[has_pixels] for values in where))
    corners = cells.corners(where.cell)
    if logits:
        corners = sigmoid(corners)
    # The cells are the last axis, so that NumPy's inner loops are long.
    wx_cm, wy_rm = across.weight.take(where.x, axis=1), down.weight.take(where.y, axis=1)
    upper_cm = corners[0] * (1 - wx_cm) + corners[1] * wx_cm
    lower_cm = corners[2] * (1 - wx_cm) + corners[3] * wx_cm
    value_rcm = upper_cm * (1 - wy_rm)[:, None]
    value_rcm += lower_cm * wy_rm[:, None]
    row_rm = where.origin + down.pixel.take(where.y, axis=1) * where.stride
    pixel_rcm = row_rm[:, None] + across.pixel.take(where.x, axis=1)
    buffer[pixel_rcm] = value_rcm > 0.5

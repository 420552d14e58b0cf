"""Masks from prototype resolution to image pixels, and their packed forms, in NumPy.

Bilinear interpolation (align_corners False) followed by a threshold changes its mind only in the cells between four
neighbouring prototype pixels of which some are inside and some outside. So only those cells are interpolated; the
others are filled. No full-size float mask is ever made.

Legend: n masks, h x w prototype resolution, H x W the image. Run-length encodings are COCO's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.postprocess import sigmoid

Bools = NDArray[np.bool_]


class _Axis(NamedTuple):
    """How the output pixels of one axis fall into the cells between source pixels."""

    cell: NDArray[np.intp]  #: [out] the cell of each output pixel
    start: NDArray[np.intp]  #: [in + 1] first output pixel of each cell
    pixel: NDArray[np.intp]  #: [in, k] the output pixels of each cell, the last one repeated
    weight: NDArray[np.float32]  #: [in, k] their weights of the cell's far side


@lru_cache(maxsize=64)
def _axis(source: int, target: int) -> _Axis:
    scale = np.float32(source) / np.float32(target)
    position = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    cell = np.minimum(position.astype(np.intp), source - 1)
    start = np.searchsorted(cell, np.arange(source + 1))
    most = int(np.diff(start).max())
    pixel = np.minimum(start[:-1, None] + np.arange(most), start[1:, None] - 1)
    weight = (position[pixel] - cell[pixel]).astype(np.float32)
    return _Axis(cell, start, pixel, weight)


@dataclass(frozen=True)
class MaskCrops:
    """Binary masks of one image, each kept only where it has pixels."""

    height: int
    width: int
    #: [n, 2] column and row of each crop's first pixel
    offsets: NDArray[np.int64]
    #: n boolean arrays
    crops: tuple[Bools, ...]

    def __len__(self) -> int:
        return len(self.crops)

    def select(self, index: NDArray[np.intp]) -> MaskCrops:
        return MaskCrops(self.height, self.width, self.offsets[index], tuple(self.crops[i] for i in index))

    def full(self) -> Bools:
        """Masks at image size, bool [n, H, W]."""
        masks = np.zeros((len(self), self.height, self.width), dtype=np.bool_)
        for mask, (x, y), crop in zip(masks, self.offsets, self.crops, strict=True):
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return masks

    def packed(self) -> NDArray[np.uint8]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)], most significant bit first, as np.packbits makes them."""
        out = np.zeros((len(self), self.height, -(-self.width // 8)), dtype=np.uint8)
        for bits, (x, y), crop in zip(out, self.offsets, self.crops, strict=True):
            shift = int(x) % 8
            rows, columns = crop.shape
            if columns == 0:
                continue
            shifted = np.pad(crop, ((0, 0), (shift, 0)))
            packed = np.packbits(shifted, axis=1)
            bits[y : y + rows, x // 8 : x // 8 + packed.shape[1]] = packed
        return out

    def areas(self) -> NDArray[np.int64]:
        """Pixels in each mask, int64 [n]."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], dtype=np.int64)

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings: ``{"size": [H, W], "counts": str}``."""
        return [
            {"size": [self.height, self.width], "counts": compress_counts(self._counts(i))} for i in range(len(self))
        ]

    def _counts(self, index: int) -> NDArray[np.int64]:
        """Uncompressed COCO counts: lengths of the runs down the columns, first of zeros."""
        crop = self.crops[index]
        x, y = (int(v) for v in self.offsets[index])
        rows, columns = crop.shape
        edges = np.zeros((columns, rows + 1), dtype=np.int8)
        turned = crop.T.view(np.int8)
        edges[:, :-1] = turned
        edges[:, 1:] -= turned
        base = (np.arange(columns) + x) * self.height + y
        column, row = np.nonzero(edges == 1)
        starts = base[column] + row
        column, row = np.nonzero(edges == -1)
        ends = base[column] + row
        apart = starts[1:] != ends[:-1]  # a run that goes on at the top of the next column is one run
        starts, ends = (
            starts[np.r_[True, apart]] if len(starts) else starts,
            ends[np.r_[apart, True]] if len(ends) else ends,
        )
        bounds = np.empty(2 * len(starts) + 2, dtype=np.int64)
        bounds[0], bounds[-1] = 0, self.height * self.width
        bounds[1:-1:2], bounds[2:-1:2] = starts, ends
        counts = np.diff(bounds)
        return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def compress_counts(counts: NDArray[np.int64]) -> str:
    """COCO's text form of run lengths: differences to the last but one, 5 bits a character, low bits first."""
    values = counts.astype(np.int64).copy()
    values[3:] -= counts[1:-2]
    pieces = np.empty((len(values), 13), dtype=np.uint8)
    used = np.zeros(pieces.shape, dtype=np.bool_)
    active = np.ones(len(values), dtype=np.bool_)
    for position in range(pieces.shape[1]):
        low = values & 0x1F
        values >>= 5
        more = ~(((values == 0) & ((low & 0x10) == 0)) | ((values == -1) & ((low & 0x10) != 0)))
        pieces[:, position] = (low | np.where(more, 0x20, 0)) + 48
        used[:, position] = active
        active = active & more
        if not active.any():
            break
    return pieces[used].tobytes().decode("ascii")


def paste_masks(masks: NDArray[Any], height: int, width: int, *, logits: bool = False) -> MaskCrops:
    """Binary masks at image size from masks [n, h, w] at prototype resolution, cropped already.

    A pixel is inside where the bilinearly interpolated probability is above 0.5.

    Args:
        masks: probabilities, or their logits when ``logits`` is True; any float dtype.
    """
    num, rows, columns = masks.shape
    if num == 0:
        return MaskCrops(height, width, np.empty((0, 2), np.int64), ())
    down, across = _axis(rows, height), _axis(columns, width)

    inside = masks > (0.0 if logits else 0.5)
    below = np.concatenate([inside[:, 1:], inside[:, -1:]], axis=1)
    both, either = inside & below, inside | below
    whole = both & np.concatenate([both[:, :, 1:], both[:, :, -1:]], axis=2)
    touched = either | np.concatenate([either[:, :, 1:], either[:, :, -1:]], axis=2)

    y1, y2 = _extent(touched.any(axis=2))
    x1, x2 = _extent(touched.any(axis=1))
    top, left = down.start[y1], across.start[x1]
    crop_h, crop_w = down.start[y2] - top, across.start[x2] - left

    # One buffer for all crops, so that the boundary cells of all masks are handled together.
    first = np.concatenate([[0], np.cumsum(crop_h * crop_w)])
    buffer = np.empty(first[-1], dtype=np.bool_)
    crops = tuple(buffer[first[i] : first[i + 1]].reshape(crop_h[i], crop_w[i]) for i in range(num))
    for i, crop in enumerate(crops):
        if crop.size:
            part = whole[i, y1[i] : y2[i], x1[i] : x2[i]]
            wide = part.take(across.cell[left[i] : left[i] + crop_w[i]] - x1[i], axis=1)
            wide.take(down.cell[top[i] : top[i] + crop_h[i]] - y1[i], axis=0, out=crop)

    _interpolate_boundary(buffer, masks, touched & ~whole, (down, across), first, top, left, crop_w, logits)
    return MaskCrops(height, width, np.stack([left, top], axis=1).astype(np.int64), crops)


def _interpolate_boundary(
    buffer: Bools,
    masks: NDArray[Any],
    mixed: Bools,
    axes: tuple[_Axis, _Axis],
    first: NDArray[np.intp],
    top: NDArray[np.intp],
    left: NDArray[np.intp],
    crop_w: NDArray[np.intp],
    logits: bool,
) -> None:
    """Fill the pixels of the cells ``mixed`` [n, h, w] in the buffer of crops, those of all masks together."""
    down, across = axes
    _, rows, columns = masks.shape
    cell = np.flatnonzero(mixed)
    plane, x = np.divmod(cell, columns)
    mask, y = np.divmod(plane, rows)
    filled = (down.start[y + 1] > down.start[y]) & (across.start[x + 1] > across.start[x])
    if not filled.all():  # a shrinking paste passes over cells
        cell, mask, y, x = cell[filled], mask[filled], y[filled], x[filled]
    right = np.where(x + 1 < columns, cell + 1, cell)
    step = np.where(y + 1 < rows, columns, 0)
    flat = masks.reshape(-1)
    corners = flat.take(np.stack([cell, right, cell + step, right + step])).astype(np.float32, copy=False)
    if logits:
        corners = sigmoid(corners)
    wx, wy = across.weight[x], down.weight[y]
    upper = corners[0, :, None] * (1 - wx) + corners[1, :, None] * wx
    lower = corners[2, :, None] * (1 - wx) + corners[3, :, None] * wx
    value = upper[:, None, :] * (1 - wy)[:, :, None]
    value += lower[:, None, :] * wy[:, :, None]
    row = (first[mask] - left[mask])[:, None] + (down.pixel[y] - top[mask, None]) * crop_w[mask, None]
    buffer[row[:, :, None] + across.pixel[x][:, None, :]] = value > 0.5


def _extent(used: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and one past the last True of each row; 0 and 0 for a row without any."""
    any_used = used.any(axis=1)
    start = used.argmax(axis=1)
    stop = used.shape[1] - used[:, ::-1].argmax(axis=1)
    return np.where(any_used, start, 0), np.where(any_used, stop, 0)

"""The masks of one image in the three forms they take: at prototype resolution, pasted, and pasted and packed.

All three hold nothing but arrays and sizes, so they can be pickled and copied.

Legend: n masks, h x w prototype resolution, H x W the image. Run-length encodings are COCO's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Array, Bool, Bools, Float, Float32, Floats, Int64, Ints, Pixels, UInt8

#: logit of prototype pixels outside the box; in float32 its sigmoid is 0 next to any other value
OUTSIDE_LOGIT = np.float32(-80.0)


def sigmoid(x: Float32[Floats, "*N"]) -> Float32[Floats, "*N"]:
    """1 / (1 + exp(-x)) without overflow warnings."""
    with np.errstate(over="ignore"):
        result: Floats = np.reciprocal(1 + np.exp(-x))
    return result


@dataclass(frozen=True, eq=False)
class MaskWindows:
    """Masks at prototype resolution, each stored only where it may be inside; everything else is outside.

    Attributes:
        height: of the prototypes, in pixels
        width: of the prototypes, in pixels
        logits: whether the values are logits rather than probabilities
        offsets: int64 [n, 2], column and row of each window's first value
        windows: n float arrays
    """

    height: int
    width: int
    logits: bool
    offsets: Ints
    windows: tuple[NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def outside(self) -> float:
        """The value of everything outside the windows."""
        return float(OUTSIDE_LOGIT) if self.logits else 0.0

    @classmethod
    def from_dense(cls, masks: Float[Array, "n h w"], *, logits: bool = False) -> MaskWindows:
        """From masks [n, h, w] of any float dtype, cropped by zeros or :data:`OUTSIDE_LOGIT`; memory is shared."""
        _, height, width = masks.shape
        inside = masks > OUTSIDE_LOGIT if logits else masks != 0
        y1, y2 = _extent(inside.any(axis=2))
        x1, x2 = _extent(inside.any(axis=1))
        windows = tuple(mask[a:b, c:d] for mask, a, b, c, d in zip(masks, y1, y2, x1, x2, strict=True))
        return cls(height, width, logits, np.stack([x1, y1], axis=1).astype(np.int64), windows)

    def dense(self) -> Float32[Floats, "n h w"]:
        """Masks [n, h, w], float32."""
        masks = np.full((len(self), self.height, self.width), self.outside, dtype=np.float32)
        for mask, (x, y), window in zip(masks, self.offsets, self.windows, strict=True):
            mask[y : y + window.shape[0], x : x + window.shape[1]] = window
        return masks

    def probabilities(self) -> Float32[Floats, "n h w"]:
        """Masks [n, h, w] as probabilities, float32; 0 outside the windows."""
        return sigmoid(self.dense()) if self.logits else self.dense()

    def select(self, index: NDArray[np.intp]) -> MaskWindows:
        windows = tuple(self.windows[i] for i in index)
        return MaskWindows(self.height, self.width, self.logits, self.offsets[index], windows)


def _extent(used: Bools) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First and one past the last True of each row; 0 and 0 for a row without any."""
    any_used = used.any(axis=1)
    start = used.argmax(axis=1)
    stop = used.shape[1] - used[:, ::-1].argmax(axis=1)
    return np.where(any_used, start, 0), np.where(any_used, stop, 0)


@dataclass(frozen=True, eq=False)
class MaskCrops:
    """Binary masks at image size, each stored only where it has pixels.

    Attributes:
        height: of the image, in pixels
        width: of the image, in pixels
        offsets: int64 [n, 2], column and row of each crop's first pixel
        crops: n boolean arrays
    """

    height: int
    width: int
    offsets: Ints
    crops: tuple[Bools, ...]

    def __len__(self) -> int:
        return len(self.crops)

    def __reduce__(self) -> tuple[Any, ...]:
        bits = [(crop.shape, np.packbits(crop)) for crop in self.crops]  # an eighth of the bytes
        return _unpickle_crops, (self.height, self.width, self.offsets, bits)

    def select(self, index: NDArray[np.intp]) -> MaskCrops:
        return MaskCrops(self.height, self.width, self.offsets[index], tuple(self.crops[i] for i in index))

    def full(self) -> Bool[Bools, "n H W"]:
        """Masks at image size, bool [n, H, W]."""
        masks = np.zeros((len(self), self.height, self.width), dtype=np.bool_)
        for mask, (x, y), crop in zip(masks, self.offsets, self.crops, strict=True):
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return masks

    def packed(self) -> UInt8[Pixels, "n H bytes"]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)], most significant bit first, as np.packbits makes them."""
        out = np.zeros((len(self), self.height, -(-self.width // 8)), dtype=np.uint8)
        for bits, (x, y), crop in zip(out, self.offsets, self.crops, strict=True):
            if crop.size == 0:
                continue
            rows = np.packbits(np.pad(crop, ((0, 0), (int(x) % 8, 0))), axis=1)
            bits[y : y + len(rows), x // 8 : x // 8 + rows.shape[1]] = rows
        return out

    def areas(self) -> Int64[Ints, " n"]:
        """Pixels in each mask, int64 [n]."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], dtype=np.int64)

    def rle(self) -> list[dict[str, Any]]:
        """COCO run-length encodings: ``{"size": [H, W], "counts": str}``; encoded once, on first use."""
        return [{"size": [self.height, self.width], "counts": counts} for counts in self._compressed]

    @cached_property
    def _compressed(self) -> list[str]:
        return compress_masks([self._counts(i) for i in range(len(self))])

    def _counts(self, index: int) -> Ints:
        """Uncompressed COCO counts: lengths of the runs down the columns, zeros first."""
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
        if len(starts):  # a run that continues at the top of the next column is one run
            apart = starts[1:] != ends[:-1]
            starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
        bounds = np.empty(2 * len(starts) + 2, dtype=np.int64)
        bounds[0], bounds[-1] = 0, self.height * self.width
        bounds[1:-1:2], bounds[2:-1:2] = starts, ends
        counts = np.diff(bounds)
        return counts[:-1] if counts[-1] == 0 and len(counts) > 1 else counts


def _unpickle_crops(height: int, width: int, offsets: Ints, bits: list[tuple[tuple[int, int], Any]]) -> MaskCrops:
    crops = (
        np.unpackbits(packed, count=rows * columns).view(np.bool_).reshape(rows, columns)
        for (rows, columns), packed in bits
    )
    return MaskCrops(height, width, offsets, tuple(crops))


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Binary masks at image size as a GPU writes them: one bit per pixel, each mask only inside its box.

    Attributes:
        windows: int32 [n, 6]: x, y, width and height of each mask's part of the image, 32-bit words per row, and the
            index of its first word in ``bits``. x is a multiple of 8; a mask without pixels has width 0
        bits: uint32, rows of all masks; their bytes in memory order are those of np.packbits
        height: of the image, in pixels
        width: of the image, in pixels
    """

    windows: NDArray[np.int32]
    bits: NDArray[np.uint32]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.windows)

    def __reduce__(self) -> tuple[Any, ...]:
        # A selection shares the bits of all masks; a pickle carries only its own.
        words = self.windows[:, 3] * self.windows[:, 4]
        own = [self.bits[first : first + count] for first, count in zip(self.windows[:, 5], words, strict=True)]
        windows = self.windows.copy()
        windows[:, 5] = np.cumsum(words) - words
        return PackedMasks, (windows, np.concatenate([self.bits[:0], *own]), self.height, self.width)

    def select(self, index: NDArray[np.intp]) -> PackedMasks:
        return PackedMasks(self.windows[index], self.bits, self.height, self.width)

    def unpacked(self) -> MaskCrops:
        crops = (
            np.unpackbits(rows, axis=1, count=width).view(np.bool_)
            for rows, width in zip(self._rows(), self.windows[:, 2].tolist(), strict=True)
        )
        return MaskCrops(self.height, self.width, self.windows[:, :2].astype(np.int64), tuple(crops))

    def packed(self) -> UInt8[Pixels, "n H bytes"]:
        """Masks as bits, uint8 [n, H, ceil(W / 8)]; copies whole bytes and unpacks none."""
        out = np.zeros((len(self), self.height, -(-self.width // 8)), dtype=np.uint8)
        for bits, rows, (x, y) in zip(out, self._rows(), self.windows[:, :2].tolist(), strict=True):
            bits[y : y + len(rows), x // 8 : x // 8 + rows.shape[1]] = rows
        return out

    def _rows(self) -> Iterator[NDArray[np.uint8]]:
        """The bytes of each mask that hold pixels, [height, ceil(width / 8)]; memory is shared."""
        data = self.bits.view(np.uint8)
        for _, _, width, height, words, first in self.windows.tolist():
            rows = data[4 * first : 4 * (first + height * words)].reshape(height, 4 * words)
            yield rows[:, : -(-width // 8)]


def compress_counts(counts: Ints) -> str:
    """COCO's text form of the run lengths of a mask."""
    return compress_masks([counts])[0]


def compress_masks(masks: Sequence[Ints]) -> list[str]:
    """COCO's text form of the run lengths of each mask, of all at once.

    Each run is the difference to the last but one of its mask, in 5 bits per character, low first.
    """
    lengths = np.array([len(counts) for counts in masks], dtype=np.int64)
    counts = np.concatenate([np.zeros(0, np.int64), *masks]).astype(np.int64)
    place = np.arange(len(counts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = counts.copy()
    later = np.flatnonzero(place >= 3)
    values[later] -= counts[later - 2]
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
    text = pieces[used].tobytes().decode("ascii")
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])[np.cumsum([0, *lengths])]
    return [text[start:end] for start, end in itertools.pairwise(ends.tolist())]

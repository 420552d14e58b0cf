"""The masks of one image in the three forms they take: at prototype resolution, pasted, and pasted and packed.

All three hold nothing but arrays and sizes, so they can be pickled and copied.

Legend: n masks, h x w prototype resolution, H x W the image. Run-length encodings are COCO's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.array_types import Array, Bool, Bools, Float, Float32, Floats, Int64, Ints, Pixels, UInt8
from yolact_deploy.priors import Placement

#: logit of prototype pixels outside the box; in float32 its sigmoid is 0 next to any other value
OUTSIDE_LOGIT = np.float32(-80.0)

#: pixels of masks that are encoded together: few enough for the processor's cache
_PIXELS_AT_ONCE = 1 << 20

T = TypeVar("T")


class lazy_property(Generic[T]):  # noqa: N801  # a decorator, as property is
    """A value that is computed on first use and kept in the object's ``__dict__``.

    As `functools.cached_property`, without the lock that it has before Python 3.12. That lock belongs to the class:
    while one thread pastes the masks of a picture, no other thread can paste any. Here two threads that ask the same
    object at once may both compute its value.

    Args:
        compute: the method
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> lazy_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> T | lazy_property[T]:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._compute(instance)
        return value


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
        placement: where the image lies on the canvas that the masks cover; None means that it fills it
    """

    height: int
    width: int
    logits: bool
    offsets: Ints
    windows: tuple[NDArray[Any], ...]
    placement: Placement | None = None

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

    def placed(self, where: Placement) -> MaskWindows:
        """The same masks of an image that lies there."""
        return replace(self, placement=where if where.is_padded else None)

    def select(self, index: NDArray[np.intp]) -> MaskWindows:
        windows = tuple(self.windows[i] for i in index)
        return MaskWindows(self.height, self.width, self.logits, self.offsets[index], windows, self.placement)


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

    @lazy_property
    def _compressed(self) -> list[str]:
        texts: list[str] = []
        for first, last in self._groups():
            texts += compress_masks(*self._counts(first, last))
        return texts

    def _groups(self) -> Iterator[tuple[int, int]]:
        """First and one past the last index of masks that are encoded together, with a bound on their pixels."""
        first, pixels = 0, 0
        for index, crop in enumerate(self.crops):
            if pixels and pixels + crop.size > _PIXELS_AT_ONCE:
                yield first, index
                first, pixels = index, 0
            pixels += crop.size
        yield first, len(self.crops)

    def _counts(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Uncompressed COCO counts of some masks one after the other, and how many each has.

        The counts are the lengths of the runs down the columns, zeros first. In one line of all columns of all masks,
        each column followed by a zero, every second change of value starts a run and the next one ends it.
        """
        crops = self.crops[first:last]
        rows, columns = np.array([crop.shape for crop in crops], np.int64).reshape(-1, 2).T
        sizes = columns * (rows + 1)
        begins = np.cumsum(sizes) - sizes
        line = np.zeros(1 + int(sizes.sum()), np.bool_)  # the first zero lets a run start at the first pixel
        for crop, begin, size in zip(crops, (begins + 1).tolist(), sizes.tolist(), strict=True):
            if size:
                line[begin : begin + size].reshape(crop.shape[1], -1)[:, :-1] = crop.T
        place = np.flatnonzero(line[1:] != line[:-1])
        mask = np.repeat(np.arange(len(crops)), np.diff(np.searchsorted(place, np.append(begins, len(line)))))
        column, row = np.divmod(place - begins[mask], rows[mask] + 1)
        x, y = self.offsets[first:last].T
        edges = (column + x[mask]) * self.height + row + y[mask]
        # A run that continues at the top of the next column is one run.
        whole = np.ones(len(edges), np.bool_)
        joined = np.flatnonzero((edges[1:-1:2] == edges[2::2]) & (mask[1:-1:2] == mask[2::2]))
        whole[1 + 2 * joined] = whole[2 + 2 * joined] = False
        edges, mask = edges[whole], mask[whole]
        # Each mask's edges between 0 and the number of pixels of the image; a last run of no pixels is left out.
        found = np.bincount(mask, minlength=len(crops))
        bounds = np.zeros(len(edges) + 2 * len(crops), np.int64)
        ends = np.cumsum(found + 2) - 1
        bounds[np.arange(len(edges)) + 2 * mask + 1] = edges
        bounds[ends] = self.height * self.width
        counts = np.diff(bounds)
        kept = np.ones(len(counts), np.bool_)
        kept[ends[:-1]] = False  # from one mask to the next
        empty = (counts[ends - 1] == 0) & (found > 0)
        kept[ends[empty] - 1] = False
        return counts[kept], found + 1 - empty


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
    return compress_masks(counts, np.array([len(counts)], np.int64))[0]


def compress_masks(counts: Ints, lengths: Ints) -> list[str]:
    """COCO's text form of the run lengths of each mask, of all at once.

    Each run is the difference to the last but one of its mask, in 5 bits per character, low first.

    Args:
        counts: run lengths of all masks, one mask after the other
        lengths: how many runs each mask has
    """
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

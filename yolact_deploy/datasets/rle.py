"""Reads COCO's run-length encodings in NumPy.

Runs go down the columns of a mask, zeros first. As text, each run from the fourth on is the difference to the one two
places before, with 5 bits per character, low bits first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_CHARACTERS = 7  # of one run: 35 bits
_LONGEST_RUN = 1 << 32  # so that sums do not overflow


def run_lengths(counts: Any) -> NDArray[np.int64] | None:
    """Run lengths from a list of numbers or from their text (str or bytes); None if they are neither, or too large."""
    if isinstance(counts, list):
        whole = all(type(value) is int and abs(value) <= _LONGEST_RUN for value in counts)
        return np.array(counts, np.int64) if whole else None
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode()
    return _from_text(counts) if isinstance(counts, bytes) else None


def image_runs(counts: Any, height: int, width: int) -> NDArray[np.int64] | None:
    """The run lengths, if they are not negative and fill an image height x width; else None."""
    runs = run_lengths(counts)
    return None if runs is None or (runs < 0).any() or runs.sum() != height * width else runs


def without_empty_runs(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same mask with no empty run but the first, as pycocotools writes it; at others, its IoU stops early."""
    if not len(runs) or runs[1:].all():
        return runs
    places = np.flatnonzero(runs)
    inside = places & 1
    first = np.flatnonzero(np.diff(inside, prepend=-1))
    merged = np.add.reduceat(runs[places], first)
    return np.concatenate([[0], merged]) if inside[0] else merged


def mask_bounds(runs: NDArray[np.int64], height: int) -> list[float]:
    """The smallest box xyxy around the pixels of a mask that has some."""
    ends = np.cumsum(runs)
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    first, last = first[first <= last], last[first <= last]
    one_column = first // height == last // height
    top = np.where(one_column, first % height, 0).min()
    bottom = np.where(one_column, last % height, height - 1).max() + 1
    return [float(first[0] // height), float(top), float(last[-1] // height + 1), float(bottom)]


def _from_text(text: bytes) -> NDArray[np.int64] | None:
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 0x20) == 0)  # the character that ends each run
    if not len(last) or last[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    characters = last - first + 1
    if characters.max() > _MOST_CHARACTERS:
        return None
    place = np.arange(len(codes)) - np.repeat(first, characters)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    values -= np.where(codes[last] & 0x10, 1 << (5 * characters), 0)
    for turn in (1, 2):
        values[turn::2] = np.cumsum(values[turn::2])
    return values


def decode(counts: Any, height: int, width: int) -> NDArray[np.uint8]:
    """The mask uint8 [height, width], zero and one, of a valid encoding."""
    runs = run_lengths(counts)
    assert runs is not None
    inside = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.asarray(np.repeat(inside, runs).reshape(width, height).T)

"""Histograms of tensors, gathered image by image in bounded memory, and the range to quantize each tensor with.

A histogram covers [-limit, limit] with :data:`BINS` bins, where the limit is a power of two. A larger value doubles the
limit and merges bins in pairs. So the range need not be known in advance, and nothing is lost: the histogram is the
same as if the last limit had been used from the start.

A method chooses the largest absolute value to keep. Both ends of the range follow from it and from the smallest and
largest value seen, so graphs with and without a zero point can be made from one calibration.

Legend: T tensors, B bins, H = B / 2 bins of absolute values, w the width of a bin.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 8192
#: share of the values, in percent, that "percentile" keeps
PERCENTILE = 99.999
#: levels of one sign in int8
_LEVELS = 127
_CANDIDATES = 256


class Histograms:
    """Histograms of T tensors, by their index.

    Attributes:
        counts: int64 [T, B]
        limits: float64 [T], 0 if only zeros were seen
        lows, highs: float64 [T], smallest and largest value
    """

    def __init__(self, tensors: int) -> None:
        self.counts = np.zeros((tensors, BINS), np.int64)
        self.limits = np.zeros(tensors)
        self.lows = np.full(tensors, math.inf)
        self.highs = np.full(tensors, -math.inf)

    def add(self, tensor: int, low: float, high: float, values: NDArray[np.float32]) -> None:
        """Count ``values``, some or all values of a tensor; ``low`` and ``high`` are the ends of all of them."""
        self.lows[tensor] = min(self.lows[tensor], low)
        self.highs[tensor] = max(self.highs[tensor], high)
        largest = max(abs(low), abs(high))
        if not largest:
            if not self.limits[tensor]:
                self.counts[tensor, BINS // 2] += values.size  # the bin of zero, whatever the limit
                return
        elif largest > self.limits[tensor]:
            self._widen(tensor, 2.0 ** math.frexp(largest)[1])  # above all values
        # Exact: the factor is a power of two.
        bins = np.floor(values.ravel() * np.float32(BINS / 2 / self.limits[tensor])).astype(np.int32) + BINS // 2
        self.counts[tensor] += np.bincount(bins, minlength=BINS)

    def _widen(self, tensor: int, limit: float) -> None:
        counts = self.counts[tensor]
        while 0 < self.limits[tensor] < limit:
            joined = counts.reshape(-1, 2).sum(1)
            counts[:] = 0
            counts[BINS // 4 : -BINS // 4] = joined
            self.limits[tensor] *= 2
        self.limits[tensor] = limit

    def range(self, tensor: int, method: str) -> tuple[float, float]:
        """Low and high end to quantize with; zero is always between them."""
        low, high = min(self.lows[tensor], 0.0), max(self.highs[tensor], 0.0)
        largest = max(-low, high)
        if method == "minmax" or not largest:
            return float(low), float(high)
        counts = self.counts[tensor]
        absolute = counts[BINS // 2 :] + counts[: BINS // 2][::-1]
        kept = min(_KEPT[method](absolute, self.limits[tensor] / absolute.size), largest)
        return float(max(low, -kept)), float(min(high, kept))


def _percentile(absolute: NDArray[np.int64], width: float) -> float:
    """The end of the bin that contains the percentile."""
    below = np.cumsum(absolute)
    return float((np.searchsorted(below, below[-1] * (PERCENTILE / 100)) + 1) * width)


def _mse(absolute: NDArray[np.int64], width: float) -> float:
    """The end with the least squared error, from rounding inside the range and clipping outside.

    The first bin holds the zeros that ReLU leaves, which are exact, and does not count.
    """
    used = int(np.flatnonzero(absolute)[-1]) + 1
    centers = (np.arange(used) + 0.5) * width
    weights = absolute[:used].astype(np.float64)
    weights[0] = 0
    ends = np.unique(np.linspace(used / _CANDIDATES, used, _CANDIDATES).astype(np.int64).clip(1)) * width
    inside = np.cumsum(weights)[np.round(ends / width).astype(np.int64) - 1]
    outside = np.maximum(centers[None] - ends[:, None], 0) ** 2 @ weights
    return float(ends[np.argmin(inside * (ends / _LEVELS) ** 2 / 12 + outside)])


def _entropy(absolute: NDArray[np.int64], width: float) -> float:
    """The end at which the distribution with :data:`_LEVELS` + 1 levels diverges least from the clipped one.

    S. Migacz, 8-bit Inference with TensorRT, GTC 2017. Clipped values count as the last bin of the reference, and the
    count of each level is spread evenly over its bins that are not empty. The bin of zeros does not count, as above.
    """
    levels = _LEVELS + 1
    used = int(np.flatnonzero(absolute)[-1]) + 1
    counts = absolute[:used].astype(np.float64)
    counts[0] = 0
    if used <= levels or not counts.any():
        return used * width
    total = float(counts.sum())
    best, end = math.inf, used
    for bins in np.unique(np.linspace(levels, used, _CANDIDATES).astype(np.int64)):
        reference = counts[:bins].copy()
        reference[-1] += total - reference.sum()
        starts = np.arange(levels) * bins // levels
        there = counts[:bins] > 0
        mean = np.add.reduceat(counts[:bins], starts) / np.maximum(np.add.reduceat(there, starts, dtype=np.int64), 1)
        spread = np.repeat(mean, np.diff(starts, append=bins)) * there
        p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
        there = p > 0
        divergence = float(np.sum(p[there] * np.log(p[there] / np.maximum(q[there], 1e-12))))
        if divergence < best:
            best, end = divergence, int(bins)
    return end * width


_KEPT = {"percentile": _percentile, "mse": _mse, "entropy": _entropy}

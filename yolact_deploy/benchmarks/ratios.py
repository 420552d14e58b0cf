"""How many times as long one measurement took as another, with a bootstrap interval.

Consecutive calls are not independent: the clock changes, other programs come and go. So the bootstrap draws blocks of
neighboring calls (the circular block bootstrap of Politis and Romano, 1992), and the same blocks from both sides if
they saw the same images in the same order. The few blocks of a short run vary less than they should, so the interval
uses outer percentiles (the expanded percentile interval of Hesterberg, 2015).

Two engines of one run took turns, so nothing else differs. Two runs also differ by slow changes: the load of other
programs, the clock, other guests of the host. :func:`change_of` estimates how much of that the calls show, and the
interval is widened by it. The calls cannot show what is constant during a run but changes from run to run; the
yardstick measures the machine's part of that (:mod:`yolact_deploy.benchmarks.machine_change`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: with fewer calls there is no interval
LEAST_CALLS = 20
_DRAWS = 2000
_NORMAL = NormalDist()
#: of the normal distribution, for 95 %
_QUANTILE = _NORMAL.inv_cdf(0.975)
_VALUES_AT_ONCE = 1 << 21
#: segments of a run that show slow changes, and least calls in each
_SEGMENTS = 8
_LEAST_SEGMENT = 5

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """``value`` with the limits of its 95 % interval; None if there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_one(self) -> bool:
        """Whether the two differ significantly."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio_of(
    statistic: Callable[..., Any],
    a: Samples,
    b: Samples,
    *,
    paired: bool,
    factor: float = 1.0,
    spread: float = 0.0,
    seed: int = 0,
    draws: int = _DRAWS,
) -> Ratio:
    """``statistic(b) / statistic(a) / factor`` with its interval.

    Args:
        statistic: takes an array and ``axis``, such as ``numpy.median``
        a: ms of each call, in order
        b: the same; if ``paired``, of the same calls
        factor: the part of the ratio that is not due to the engine
        spread: standard deviation of the logarithm of everything that the calls do not show
    """
    value = float(statistic(b) / statistic(a)) / factor
    if min(len(a), len(b)) < LEAST_CALLS:
        return Ratio(value)
    rng = np.random.default_rng(seed)
    ratios = []
    step = max(1, _VALUES_AT_ONCE // max(len(a), len(b)))
    for first in range(0, draws, step):
        count = min(step, draws - first)
        chosen = _blocks(rng, len(a), count)
        others = chosen if paired else _blocks(rng, len(b), count)
        ratios.append(statistic(b[others], axis=1) / statistic(a[chosen], axis=1))
    drawn = np.concatenate(ratios) / factor * np.exp(spread * rng.standard_normal(draws))
    below = _NORMAL.cdf(-_expanded(min(len(a), len(b))))
    low, high = np.quantile(drawn, (below, 1 - below))
    return Ratio(value, float(low), float(high))


@dataclass(frozen=True)
class Change:
    """How the logarithm of a ratio of medians moves along two runs: see :func:`change_of`."""

    drift: float
    chance: float


def change_of(terms: Sequence[tuple[float, Samples]]) -> Change:
    """Standard deviation of the sum of ``weight * log(median(times))`` of two runs: by slow changes, and by chance.

    All series are cut into the same number of time segments. Drifting noise (flicker noise) differs between neighboring
    stretches of time by the same amount whatever their length (its Allan variance is constant; Allan, 1966), so two
    runs differ as much as two neighboring segments of a run. The part of chance in the medians of segments is
    subtracted first: the medians of odd and even calls show it, because they share all slow changes.

    Args:
        terms: weight and ms of each call, in order, at least :data:`LEAST_CALLS`; a ratio is (1, b), (-1, a)
    """
    count = min(_SEGMENTS, *(len(times) // _LEAST_SEGMENT for _, times in terms))
    whole, odd, even = (np.zeros(count) for _ in range(3))
    for weight, times in terms:
        for k, segment in enumerate(np.array_split(np.log(times), count)):
            whole[k] += weight * np.median(segment)
            odd[k] += weight * np.median(segment[::2])
            even[k] += weight * np.median(segment[1::2])
    chance = float(np.mean((odd - even) ** 2)) / 4  # the difference of halves has four times the variance of the whole
    slow = max(0.0, float(np.mean(np.diff(whole) ** 2)) / 2 - chance)
    return Change(math.sqrt(slow), math.sqrt(chance / count))


def _blocks(rng: np.random.Generator, length: int, count: int) -> NDArray[np.intp]:
    """Indices of the calls in each of ``count`` draws [count, length]."""
    run = _block(length)
    starts = rng.integers(length, size=(count, -(-length // run)))
    numbers = (starts[:, :, None] + np.arange(run)) % length
    return numbers.reshape(count, -1)[:, :length].astype(np.intp)


def _block(length: int) -> int:
    """Calls in a block: grows with the cube root, which is optimal for means of correlated values."""
    return round(2 * float(np.cbrt(length)))


def _expanded(length: int) -> float:
    """Standard deviations of the draws that the interval reaches to each side.

    The quantile of Student's distribution (expanded in 1 / freedom) for as many values as there are blocks, enlarged
    because the variance of the draws divides by the number of blocks, not by one less.
    """
    blocks = length / _block(length)
    z, freedom = _QUANTILE, blocks - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(student * (blocks / freedom) ** 0.5)

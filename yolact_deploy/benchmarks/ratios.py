"""How many times as long one measurement took as another, with a bootstrap interval.

Calls that follow each other are not independent: the clock changes, other programs come and go. So blocks of
neighbouring calls are drawn, not single ones (the circular block bootstrap of Politis and Romano, 1992), and where both
sides saw the same images in the same order, the same blocks of both. The few blocks of a short run vary less than the
truth does, so percentiles further out are taken (the expanded percentile interval of Hesterberg, 2015).

Two engines of one run took turns, and that is all. Two runs also differ by what changes slowly: the load of other
programs, the clock, the host's other guests. :func:`change_of` tells how much of that the calls themselves show, and
the interval is widened by it. What stays the same during a whole run but not from run to run they cannot show; the
machine's part of that is told by the yardstick (:mod:`yolact_deploy.benchmarks.machine_change`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: fewer calls give no interval
LEAST_CALLS = 20
_DRAWS = 2000
_NORMAL = NormalDist()
#: of the normal distribution, for 95 %
_QUANTILE = _NORMAL.inv_cdf(0.975)
_VALUES_AT_ONCE = 1 << 21
#: of a run, to see slow changes, and calls in each at least
_SEGMENTS = 8
_LEAST_SEGMENT = 5

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """``value`` with the limits of its 95 % interval; these are None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_one(self) -> bool:
        """Whether the interval says that the two differ at all."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
        a: ms of each call, in their order
        b: the same; where ``paired``, of the same calls
        factor: the part of the ratio that is not the engine's
        spread: standard deviation of the logarithm of all else that the calls do not tell
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

    All series are cut into the same number of segments of time. Noise of the kind that drifts (flicker noise) differs
    between neighbouring stretches of time by the same amount however long they are (its Allan variance is constant;
    Allan, 1966), so that two runs differ by what two neighbouring segments of a run do. What the medians of segments
    owe to chance is taken off before: it is told by those of their odd and of their even calls, which have all slow
    changes in common.

    Args:
        terms: weight and ms of each call, in their order, at least :data:`LEAST_CALLS`; a ratio is (1, b), (-1, a)
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
    """Numbers of the calls that each of ``count`` draws takes [count, length]."""
    run = _block(length)
    starts = rng.integers(length, size=(count, -(-length // run)))
    numbers = (starts[:, :, None] + np.arange(run)) % length
    return numbers.reshape(count, -1)[:, :length].astype(np.intp)


def _block(length: int) -> int:
    """Calls in a block: grows as the cube root, which is best for means of correlated values."""
    return round(2 * float(np.cbrt(length)))


def _expanded(length: int) -> float:
    """How many standard deviations of the draws the interval reaches to each side.

    That of Student's distribution (by its expansion in 1 / freedom) for as many values as there are blocks, and more
    because the draws' variance has their number in the denominator, not one less.
    """
    blocks = length / _block(length)
    z, freedom = _QUANTILE, blocks - 1
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(student * (blocks / freedom) ** 0.5)

"""How many times as long one measurement took as another, with a bootstrap interval.

Calls that follow each other are not independent: the clock changes, other programs come and go. So blocks of
neighbouring calls are drawn, not single ones (the circular block bootstrap of Politis and Romano, 1992), and where both
sides saw the same images in the same order, the same blocks of both. The few blocks of a short run vary less than the
truth does, so percentiles further out are taken (the expanded percentile interval of Hesterberg, 2015).

What stays the same during a whole run but not from run to run, such as the load of other programs or where memory was
laid out, no interval of two runs can hold.
"""

from __future__ import annotations

from collections.abc import Callable
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
    statistic: Callable[..., Any], a: Samples, b: Samples, *, paired: bool, seed: int = 0, draws: int = _DRAWS
) -> Ratio:
    """``statistic(b) / statistic(a)`` with its interval.

    Args:
        statistic: takes an array and ``axis``, such as ``numpy.median``
        a: ms of each call, in their order
        b: the same; where ``paired``, of the same calls
    """
    value = float(statistic(b) / statistic(a))
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
    below = _NORMAL.cdf(-_expanded(min(len(a), len(b))))
    low, high = np.quantile(np.concatenate(ratios), (below, 1 - below))
    return Ratio(value, float(low), float(high))


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

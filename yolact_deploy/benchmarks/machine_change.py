"""How much faster or slower the machine was in one run than in another, by the yardstick in both records.

A change of the yardstick is due to the machine, so it is divided out of the ratios of engines that run on the
processor. The parts of the yardstick change by different amounts, and so might an engine: their spread widens the
interval. Threads of some runtimes spin for a while after a call and keep a core from the yardstick, so its part on all
cores is only compared where both runs measured the same engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import starmap
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.ratios import LEAST_CALLS, Samples, change_of
from yolact_deploy.benchmarks.record import Record
from yolact_deploy.machine.yardstick import ALL_CORES

#: keys that must be equal in two environments for their yardsticks to be the same work on the same machine
_SAME = ("cpu", "cores", "versions.numpy")


@dataclass(frozen=True)
class MachineChange:
    """Time of the yardstick in the second run divided by that in the first.

    Attributes:
        parts: ratio of each part of the work
        ratio: their geometric mean
        spread: standard deviation of its logarithm: disagreement of the parts, and chance
        terms: the times with the weights by which they are divided out, for ``ratios.change_of``
    """

    parts: dict[str, float]
    ratio: float
    spread: float
    terms: tuple[tuple[float, Samples], ...]

    def sentence(self, a: str, b: str) -> str:
        """In words; ``a`` and ``b`` name the runs."""
        parts = ", ".join(f"{name} {_in_words(part)}" for name, part in self.parts.items())
        return f"by the yardstick the machine was {_in_words(self.ratio)} in {b} than in {a} ({parts})"

    def to_json(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "spread": self.spread, "parts": self.parts}


def machine_change(a: Record, b: Record) -> tuple[MachineChange | None, str]:
    """The change from run ``a`` to run ``b``; None and a sentence if it is unknown.

    None and no sentence for one and the same run: its engines took turns.
    """
    if a == b:
        return None, ""
    first, second = a.yardstick, b.yardstick
    if first is None or second is None:
        return None, (
            f"{(b if first else a).name} has no yardstick: the speed of the machine in either run is unknown, and the "
            "ratios include it; measure again with bench --output FILE"
        )
    ours, theirs = a.flat_environment, b.flat_environment
    different = [key for key in _SAME if ours.get(key) != theirs.get(key)]
    if different or first.version != second.version:
        what = " and ".join(different) or "version of the yardstick"
        return None, f"the yardsticks cannot be compared ({what} differs): the ratios include the machine's part"
    samples = {
        name: (np.asarray(times), np.asarray(second.samples_ms.get(name, ())))
        for name, times in first.samples_ms.items()
        if name != ALL_CORES or set(a.names) == set(b.names)
    }
    if len(samples) < 2 or not all(starmap(_suffice, samples.values())):  # one part alone shows no uncertainty
        return None, (
            f"fewer than {LEAST_CALLS} rounds of the yardstick: the speed of the machine in either run is unknown; "
            "measure more images or --repeats"
        )
    return _change(samples), ""


def _suffice(x: Samples, y: Samples) -> bool:
    return min(len(x), len(y)) >= LEAST_CALLS and min(x.min(), y.min()) > 0


def _change(samples: Mapping[str, tuple[Samples, Samples]]) -> MachineChange:
    ratios = {name: float(np.median(y) / np.median(x)) for name, (x, y) in samples.items()}
    logs = np.log(list(ratios.values()))
    share = 1 / len(samples)
    terms = tuple(term for x, y in samples.values() for term in ((-share, y), (share, x)))
    spread = math.hypot(float(np.std(logs, ddof=1)), change_of(terms).chance)
    return MachineChange(ratios, math.exp(float(np.mean(logs))), spread, terms)


def _in_words(ratio: float) -> str:
    """A ratio of times in words, as a share of the time."""
    percent = 100 * (ratio - 1)
    return f"{abs(percent):.1f} % {'slower' if percent > 0 else 'faster'}"

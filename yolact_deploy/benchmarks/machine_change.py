"""How much faster or slower the machine was in one run than in another, by the yardstick that both carry.

A change that the yardstick shows is the machine's, and is taken off the ratio of engines that run on the processor.
The parts of the yardstick change by different amounts, and so would an engine: their spread goes into the interval.
The threads of some runtimes spin for a while after a call and keep a core from the yardstick, so that its part on all
cores is only compared where both runs were of the same engines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.ratios import LEAST_CALLS, Samples, change_of
from yolact_deploy.benchmarks.result_file import StoredResult
from yolact_deploy.machine.yardstick import ALL_CORES

#: what must be equal of two environments for their yardsticks to be the same work on the same machine
_SAME = ("cpu", "cores", "versions.numpy")


@dataclass(frozen=True)
class MachineChange:
    """Time of the yardstick in the second run divided by that in the first.

    Attributes:
        parts: of each part of the work
        ratio: their geometric mean
        spread: standard deviation of its logarithm: what the parts disagree about, and what chance adds
        terms: the times themselves with their weights, as they are taken off, for ``ratios.change_of``
    """

    parts: dict[str, float]
    ratio: float
    spread: float
    terms: tuple[tuple[float, Samples], ...]

    def sentence(self, a: str, b: str) -> str:
        """In words, of the runs of these names."""
        parts = ", ".join(f"{name} {_change(part)}" for name, part in self.parts.items())
        return f"by the yardstick the machine was {_change(self.ratio)} in {b} than in {a} ({parts})"

    def to_json(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "spread": self.spread, "parts": self.parts}


def machine_change(a: StoredResult, b: StoredResult) -> tuple[MachineChange | None, str]:
    """The change from run ``a`` to run ``b``; None and a sentence where nobody can tell.

    Of one and the same run None and no sentence: its engines took turns.
    """
    if a.content == b.content:
        return None, ""
    for one in (a, b):
        if not one.content.get("yardstick"):
            return None, (
                f"{one.name} has no yardstick: how fast the machine was in either run is not known, and the ratios "
                "have it in them; measure again with bench --output FILE"
            )
    different = [key for key in _SAME if a.environment.get(key) != b.environment.get(key)]
    first, second = a.content["yardstick"], b.content["yardstick"]
    if different or first["version"] != second["version"]:
        what = " and ".join(different) or "version of the yardstick"
        return None, f"the yardsticks cannot be compared ({what} differs): the ratios have the machine's part in them"
    names = [name for name in first["samples_ms"] if name != ALL_CORES or set(a.rows) == set(b.rows)]
    samples = {
        name: (np.asarray(first["samples_ms"][name]), np.asarray(second["samples_ms"].get(name, ()))) for name in names
    }
    usable = [min(len(x), len(y)) >= LEAST_CALLS and min(x.min(), y.min()) > 0 for x, y in samples.values()]
    if len(usable) < 2 or not all(usable):  # one part alone could not tell how sure it is
        return None, (
            f"fewer than {LEAST_CALLS} rounds of the yardstick: how fast the machine was in either run is not known; "
            "measure more images or --repeats"
        )
    ratios = {name: float(np.median(y) / np.median(x)) for name, (x, y) in samples.items()}
    logs = np.log(list(ratios.values()))
    share = 1 / len(samples)
    terms = tuple(term for x, y in samples.values() for term in ((-share, y), (share, x)))
    spread = math.hypot(float(np.std(logs, ddof=1)), change_of(terms).chance)
    return MachineChange(ratios, math.exp(float(np.mean(logs))), spread, terms), ""


def _change(ratio: float) -> str:
    """In words, as share of the time: ``ratio`` is of times."""
    percent = 100 * (ratio - 1)
    return f"{abs(percent):.1f} % {'slower' if percent > 0 else 'faster'}"

"""`bench diff`: two results engine by engine: the ratio of their times with its interval, and the difference in AP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.machine_change import MachineChange, machine_change
from yolact_deploy.benchmarks.ratios import LEAST_CALLS, Ratio, change_of, ratio_of
from yolact_deploy.benchmarks.result_file import (
    StoredResult,
    StoredRow,
    doubts,
    environment_differences,
    same_images,
    was_busy,
)
from yolact_deploy.errors import InputError

#: by how much two runs of one engine differ without a cause that the interval could know
MARGIN = 0.03

OTHER_IMAGES = "measured on other images, or not known to be the same: calls cannot be paired, nor AP compared"

NO_DIFFERENCE, FASTER, SLOWER, UNKNOWN = "no difference", "faster", "slower", "unknown"


@dataclass(frozen=True)
class ApDiff:
    """COCO AP x 100 of both.

    Attributes:
        points: b less a; None where they were scored on other images
        interval: 95 % of it, where both are of one run that compared them
    """

    a: float
    b: float
    points: float | None
    interval: tuple[float, float] | None = None

    @property
    def words(self) -> str:
        if self.points is None:
            return "other images"
        if self.interval is None:
            return f"{self.points:+.2f} points"
        low, high = self.interval
        sure = "no difference told" if low <= 0 <= high else "a difference"
        return f"{self.points:+.2f} points, 95 % {low:+.2f} to {high:+.2f}: {sure}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RowDiff:
    """Engine ``a`` of the first file against ``b`` of the second; ratios are the time of b divided by that of a.

    Attributes:
        p50_ms: of both
        p50: ratio of the medians, by which the verdict is given, without the machine's part where that is known
        mean: ratio of the means, likewise
        measured: ratio of the medians as they are
        machine: what the yardstick says of the machine, where it was taken off
        paired: both ran the same images in the same order, so that calls were compared one by one
        margin: differences up to it are taken for none
        stages: usual ms of each stage in both, None where one has no such stage
        ap: of "box" and "mask", where both files have it
        warnings: what makes these two hard to compare
        busy: runs during which other programs were at work; none where both engines are of one run, in which they took
            turns, and where the yardstick felt these programs as well
    """

    a: str
    b: str
    p50_ms: tuple[float, float]
    p50: Ratio
    mean: Ratio
    measured: float
    machine: MachineChange | None
    paired: bool
    margin: float
    stages: dict[str, tuple[float | None, float | None]]
    ap: dict[str, ApDiff]
    warnings: tuple[str, ...]
    busy: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        if self.p50.low is None:
            return UNKNOWN
        if not self.is_sure or 1 / (1 + self.margin) <= self.p50.value <= 1 + self.margin:
            return NO_DIFFERENCE
        if self.busy:
            return UNKNOWN
        return SLOWER if self.p50.value > 1 else FASTER

    @property
    def is_sure(self) -> bool:
        """Whether chance does not explain the ratio: by its interval, or by a stage that became slower."""
        return self.p50.excludes_one or (self.p50.value > 1 and self.slowed_stage is not None)

    @property
    def slowed_stage(self) -> str | None:
        """The stage that became slower by more than ``margin`` of the whole call, at the least.

        Where the machine drifts between two runs the interval of the whole is wide. A stage that takes several times as
        long is outside of it all the same: its time is taken to be as uncertain as that of the whole, in proportion.
        """
        if self.p50.high is None:
            return None
        factor = self.p50.high / self.p50.value * (self.machine.ratio if self.machine else 1)
        growth = {name: b / factor - a for name, (a, b) in self.stages.items() if a is not None and b is not None}
        slowed = max(growth, key=lambda name: growth[name], default=None)
        return slowed if slowed is not None and growth[slowed] > self.margin * self.p50_ms[0] else None

    @property
    def sentence(self) -> str:
        """What is said of the times, without the engine's name."""
        times = f"takes {self.p50} times as long{self._machine()}"
        verdict = self.verdict
        if verdict == NO_DIFFERENCE:
            if self.is_sure:
                return f"no difference: {times}, within the {100 * self.margin:.3g} % by which two runs may differ"
            return f"no difference: {times}{self._coarse()}"
        times += f": {self.p50_ms[1]:.2f} instead of {self.p50_ms[0]:.2f} ms at p50{self._most()}"
        if self.p50.low is None:
            times += f"; without {LEAST_CALLS} stored calls on both sides there is no telling whether that is chance"
        elif self.busy:
            times += (
                f"; but other programs were at work during {' and '.join(self.busy)}, which may be all of it: measure "
                "again on a quiet machine, or both engines in one run"
            )
        return times

    def _machine(self) -> str:
        return "" if self.machine is None else f" on an equally fast machine ({self.measured:.3f} as measured)"

    def _coarse(self) -> str:
        assert self.p50.low is not None  # else the verdict is another
        assert self.p50.high is not None
        unseen = max(self.p50.high, 1 / self.p50.low) - 1
        if unseen <= self.margin:
            return ""
        return f"; these calls cannot show less than {100 * unseen:.0f} %: measure more images or --repeats for that"

    def _most(self) -> str:
        """The stage that explains most of the difference, where one explains half of it."""
        changes = {name: b - a for name, (a, b) in self.stages.items() if a is not None and b is not None}
        whole = sum(changes.values())
        name = max(changes, key=lambda key: changes[key] * np.sign(whole), default="")
        if not name or abs(changes[name]) < abs(whole) / 2:
            return ""
        a, b = self.stages[name]
        return f", most of it in {name} ({b:.2f} instead of {a:.2f} ms)"

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "p50_ms": list(self.p50_ms),
            "p50_ratio": self.p50.to_json(),
            "mean_ratio": self.mean.to_json(),
            "measured_p50_ratio": self.measured,
            "machine_taken_off": self.machine is not None,
            "paired": self.paired,
            "margin": self.margin,
            "stages_ms": {name: list(both) for name, both in self.stages.items()},
            "ap": {kind: difference.to_json() for kind, difference in self.ap.items()},
            "warnings": list(self.warnings),
            "busy": list(self.busy),
        }


@dataclass(frozen=True)
class ResultDiff:
    """Two files; ``warnings`` hold for all rows.

    Attributes:
        machine: by how much the machine differed, None in one run and where nobody can tell
    """

    a: str
    b: str
    rows: tuple[RowDiff, ...]
    warnings: tuple[str, ...]
    machine: MachineChange | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "engines": [row.to_json() for row in self.rows],
            "machine": self.machine.to_json() if self.machine else None,
            "warnings": list(self.warnings),
        }


def diff_results(
    a: StoredResult,
    b: StoredResult,
    names: tuple[str | None, str | None] = (None, None),
    *,
    margin: float = MARGIN,
) -> ResultDiff:
    """Compare engines of the same name, or one of each side.

    Args:
        names: engine of each side; where but one is given, the other side's is that of the same name
        margin: share by which times may differ before it is called a difference

    Raises:
        InputError: no such engine, no common one, or a margin below 0.
    """
    if not margin >= 0:
        raise InputError(f"--margin: expected 0 or more, got {margin:g}")
    warnings = [f"environments differ in {line}" for line in environment_differences(a, b)]
    if not same_images(a, b):
        warnings.append(
            "measured on other images, or not known to be the same: calls cannot be paired, nor AP compared"
        )
    warnings += dict.fromkeys(f"{one.name}: {line}" for one in (a, b) for line in doubts(one.content))
    first, second = names[0] or names[1], names[1] or names[0]
    if first and second:
        pairs = [(first, second)]
    else:
        pairs = [(name, name) for name in a.rows if name in b.rows]
        if not pairs:
            raise InputError(
                f"{a.name} has {', '.join(a.rows)} and {b.name} has {', '.join(b.rows)}, none of one name: say which "
                "to compare as FILE:ENGINE FILE:ENGINE"
            )
        for one, other in ((a, b), (b, a)):
            warnings += [f"only {one.name} has {name}" for name in one.rows if name not in other.rows]
    machine, unknown = machine_change(a, b)
    warnings += [unknown] if unknown else []
    rows = tuple(compare_rows(a, a.row(x), b, b.row(y), margin=margin, machine=machine) for x, y in pairs)
    return ResultDiff(a.name, b.name, rows, tuple(warnings), machine)


def compare_rows(
    a: StoredResult, x: StoredRow, b: StoredResult, y: StoredRow, *, margin: float, machine: MachineChange | None
) -> RowDiff:
    """Row ``x`` of ``a`` against row ``y`` of ``b``.

    Args:
        machine: taken off where both run on the processor
    """
    same = same_images(a, b)
    one_run = a.content == b.content
    if x.on_gpu or y.on_gpu:
        machine = None
    paired = same and x.samples is not None and y.samples is not None and len(x.samples) == len(y.samples)
    if x.samples is None or y.samples is None:
        machine = None
        p50, mean = (Ratio(y.latency[key] / x.latency[key]) for key in ("p50_ms", "mean_ms"))
    else:
        factor, spread = (machine.ratio, machine.spread) if machine else (1.0, 0.0)
        if not one_run and min(len(x.samples), len(y.samples)) >= LEAST_CALLS:
            terms = ((1.0, y.samples), (-1.0, x.samples), *(machine.terms if machine else ()))
            spread = math.hypot(spread, change_of(terms).drift)
        p50, mean = (
            ratio_of(s, x.samples, y.samples, paired=paired, factor=factor, spread=spread) for s in (np.median, np.mean)
        )
    before_ms, after_ms = x.usual_stages, y.usual_stages
    stages = {name: (before_ms.get(name), after_ms.get(name)) for name in dict.fromkeys((*before_ms, *after_ms))}
    ap = {}
    for kind in ("box", "mask"):
        before, after = x.ap_points(kind), y.ap_points(kind)
        if before is not None and after is not None:
            ap[kind] = ApDiff(before, after, after - before if same else None, _ap_interval(a, x, b, y, kind))
    times = x.latency["p50_ms"], y.latency["p50_ms"]
    # Where the yardstick ran, too, the interval knows of other programs.
    runs = [] if one_run or machine else [a, b]
    busy = tuple(run.name for run in runs if was_busy(run.content))
    measured = times[1] / times[0]
    return RowDiff(
        x.name,
        y.name,
        times,
        p50,
        mean,
        measured,
        machine,
        paired,
        margin,
        stages,
        ap,
        tuple(_row_warnings(x, y)),
        busy,
    )


def _ap_interval(a: StoredResult, x: StoredRow, b: StoredResult, y: StoredRow, kind: str) -> tuple[float, float] | None:
    """Stored only of an engine against the reference of its own run."""
    stored = (y.values.get("ap_difference") or {}).get(kind)
    if stored is None or a.content["reference"] != x.name or a.content != b.content:
        return None
    return 100 * stored["low"], 100 * stored["high"]


def _row_warnings(x: StoredRow, y: StoredRow) -> Sequence[str]:
    found = []
    before, after = x.values.get("weights_sha256"), y.values.get("weights_sha256")
    if before and after and before != after:
        found.append(f"made from other weights ({before[:12]} and {after[:12]})")
    if x.values["image_size"] != y.values["image_size"]:
        found.append(f"input sizes are {x.values['image_size']} and {y.values['image_size']}")
    ours, theirs = x.values["runtime"], y.values["runtime"]
    if x.values["backend"] == y.values["backend"]:
        differ = [key for key in dict.fromkeys((*ours, *theirs)) if ours.get(key) != theirs.get(key)]
        found += [f"{key} is {ours.get(key, 'not told')} and {theirs.get(key, 'not told')}" for key in differ]
    return found

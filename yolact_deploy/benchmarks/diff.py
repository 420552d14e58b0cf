"""`bench diff`: two records engine by engine: the ratio of their times with its interval, and the difference in AP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yolact_deploy.benchmarks.machine_change import MachineChange, machine_change
from yolact_deploy.benchmarks.ratios import LEAST_CALLS, Ratio, change_of, ratio_of
from yolact_deploy.benchmarks.record import EngineRecord, Record
from yolact_deploy.config import size_text
from yolact_deploy.errors import InputError

#: two runs of one engine may differ by this share for reasons that no interval shows
MARGIN = 0.03

OTHER_IMAGES = "measured on other images, or not known to be the same: calls cannot be paired and AP not compared"

NO_DIFFERENCE, FASTER, SLOWER, UNKNOWN = "no difference", "faster", "slower", "unknown"


@dataclass(frozen=True)
class ApDiff:
    """COCO AP x 100 of both.

    Attributes:
        points: b minus a; None if they were scored on different images
        interval: 95 % interval of it, if one run compared the two
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
        verdict = "no difference shown" if low <= 0 <= high else "a difference"
        return f"{self.points:+.2f} points, 95 % {low:+.2f} to {high:+.2f}: {verdict}"


@dataclass(frozen=True, kw_only=True)
class EngineDiff:
    """Engine ``a`` of the first record against ``b`` of the second; ratios are the time of b divided by that of a.

    Attributes:
        p50_ms: of both
        p50: ratio of the medians, which decides the verdict, without the machine's part where that is known
        mean: ratio of the means, likewise
        measured: ratio of the medians as they are
        machine: change of the machine by the yardstick, where it was divided out
        paired: both ran the same images in the same order, so calls were compared one by one
        margin: smaller differences count as none
        stages: usual ms of each stage in both, None where one has no such stage
        ap: of "box" and "mask", where both records have it
        warnings: what makes these two hard to compare
        busy: runs during which other programs kept cores busy; empty if both engines are of one run, in which they took
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
        """Whether the ratio is more than chance: by its interval, or by a stage that became slower."""
        return self.p50.excludes_one or (self.p50.value > 1 and self.slowed_stage is not None)

    @property
    def slowed_stage(self) -> str | None:
        """The stage that became slower by at least ``margin`` of the whole call.

        If the machine drifts between two runs, the interval of the whole is wide. A stage that takes several times as
        long stands out all the same: its time is assumed to be as uncertain as the whole, in proportion.
        """
        if self.p50.high is None:
            return None
        factor = self.p50.high / self.p50.value * (self.machine.ratio if self.machine else 1)
        growth = {name: b / factor - a for name, (a, b) in self.stages.items() if a is not None and b is not None}
        slowed = max(growth, key=lambda name: growth[name], default=None)
        return slowed if slowed is not None and growth[slowed] > self.margin * self.p50_ms[0] else None

    @property
    def sentence(self) -> str:
        """The comparison of the times, without the engine's name."""
        times = f"takes {self.p50} times as long{self._machine()}"
        verdict = self.verdict
        if verdict == NO_DIFFERENCE:
            if self.is_sure:
                return f"no difference: {times}, within the {100 * self.margin:.3g} % by which two runs may differ"
            return f"no difference: {times}{self._coarse()}"
        times += f": {self.p50_ms[1]:.2f} instead of {self.p50_ms[0]:.2f} ms at p50{self._most()}"
        if self.p50.low is None:
            times += f"; without {LEAST_CALLS} stored calls on both sides this may be chance"
        elif self.busy:
            times += (
                f"; but other programs were running during {' and '.join(self.busy)}, which may explain it: measure "
                "again on a quiet machine, or both engines in one run"
            )
        return times

    def _machine(self) -> str:
        return "" if self.machine is None else f" on an equally fast machine ({self.measured:.3f} as measured)"

    def _coarse(self) -> str:
        assert self.p50.low is not None  # otherwise the verdict differs
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
        if not name or not whole or abs(changes[name]) < abs(whole) / 2:
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
            "p50_ratio": asdict(self.p50),
            "mean_ratio": asdict(self.mean),
            "measured_p50_ratio": self.measured,
            "machine_taken_off": self.machine is not None,
            "paired": self.paired,
            "margin": self.margin,
            "stages_ms": {name: list(both) for name, both in self.stages.items()},
            "ap": {kind: asdict(difference) for kind, difference in self.ap.items()},
            "warnings": list(self.warnings),
            "busy": list(self.busy),
        }


@dataclass(frozen=True)
class RecordDiff:
    """Two records; ``warnings`` apply to all engines.

    Attributes:
        machine: change of the machine; None within one run and where it is unknown
    """

    a: str
    b: str
    rows: tuple[EngineDiff, ...]
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


def diff_records(
    a: Record, b: Record, names: tuple[str | None, str | None] = (None, None), *, margin: float = MARGIN
) -> RecordDiff:
    """Compare engines of the same name, or one engine of each side.

    Args:
        names: engine of each side; if only one is given, the other side's has the same name
        margin: times may differ by this share before it is called a difference

    Raises:
        InputError: no such engine, no common engine, or a negative margin.
    """
    if not margin >= 0:
        raise InputError(f"--margin: expected 0 or more, got {margin:g}")
    warnings = [f"environments differ in {line}" for line in a.environment_differences(b)]
    if not a.has_images_of(b):
        warnings.append(OTHER_IMAGES)
    warnings += dict.fromkeys(f"{one.name}: {line}" for one in (a, b) for line in one.doubts)
    pairs = _engine_pairs(a, b, names)
    for one, other in () if any(names) else ((a, b), (b, a)):
        warnings += [f"only {one.name} has {name}" for name in one.names if name not in other.names]
    machine, unknown = machine_change(a, b)
    warnings += [unknown] if unknown else []
    rows = tuple(compare_engines(a, x, b, y, margin=margin, machine=machine) for x, y in pairs)
    return RecordDiff(a.name, b.name, rows, tuple(warnings), machine)


def _engine_pairs(a: Record, b: Record, names: tuple[str | None, str | None]) -> list[tuple[str, str]]:
    first, second = names[0] or names[1], names[1] or names[0]
    if first and second:
        return [(first, second)]
    if common := [(name, name) for name in a.names if name in b.names]:
        return common
    raise InputError(
        f"{a.name} has {', '.join(a.names)} and {b.name} has {', '.join(b.names)}, no common name: choose the "
        "engines as FILE:ENGINE FILE:ENGINE"
    )


def compare_engines(
    a: Record, engine_a: str, b: Record, engine_b: str, *, margin: float, machine: MachineChange | None
) -> EngineDiff:
    """One engine of ``a`` against one of ``b``.

    Args:
        machine: divided out where both run on the processor

    Raises:
        InputError: no such engine.
    """
    x, y = a.engine(engine_a), b.engine(engine_b)
    one_run = a == b
    if x.on_gpu or y.on_gpu or not (len(x.samples) and len(y.samples)):
        machine = None
    paired = a.has_images_of(b) and 0 < len(x.samples) == len(y.samples)
    p50, mean = _ratios(x, y, machine, paired=paired, one_run=one_run)
    before, after = x.latency.usual_stages_ms, y.latency.usual_stages_ms
    # Where the yardstick was measured in both, the interval includes the effect of other programs.
    runs = [] if one_run or machine else [a, b]
    return EngineDiff(
        a=x.name,
        b=y.name,
        p50_ms=(x.latency.p50_ms, y.latency.p50_ms),
        p50=p50,
        mean=mean,
        measured=y.latency.p50_ms / x.latency.p50_ms,
        machine=machine,
        paired=paired,
        margin=margin,
        stages={name: (before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))},
        ap=_ap_differences(a, x, b, y),
        warnings=tuple(_engine_warnings(x, y)),
        busy=tuple(run.name for run in runs if run.was_busy),
    )


def _ratios(
    x: EngineRecord, y: EngineRecord, machine: MachineChange | None, *, paired: bool, one_run: bool
) -> tuple[Ratio, Ratio]:
    """Of the medians and of the means."""
    before, after = x.samples, y.samples
    if not (len(before) and len(after)):
        return Ratio(y.latency.p50_ms / x.latency.p50_ms), Ratio(y.latency.mean_ms / x.latency.mean_ms)
    factor, spread = (machine.ratio, machine.spread) if machine else (1.0, 0.0)
    if not one_run and min(len(before), len(after)) >= LEAST_CALLS:
        terms = ((1.0, after), (-1.0, before), *(machine.terms if machine else ()))
        spread = math.hypot(spread, change_of(terms).drift)
    p50, mean = (
        ratio_of(statistic, before, after, paired=paired, factor=factor, spread=spread)
        for statistic in (np.median, np.mean)
    )
    return p50, mean


def _ap_differences(a: Record, x: EngineRecord, b: Record, y: EngineRecord) -> dict[str, ApDiff]:
    """By "box" and "mask", where both have them; intervals are stored against the reference of the same run."""
    differences = {}
    for kind in ("box", "mask"):
        before, after = x.ap_points(kind), y.ap_points(kind)
        if before is None or after is None:
            continue
        stored = y.ap_difference.get(kind) if a == b and a.reference == x.name else None
        interval = (100 * stored.low, 100 * stored.high) if stored else None
        differences[kind] = ApDiff(before, after, after - before if a.has_images_of(b) else None, interval)
    return differences


def _engine_warnings(x: EngineRecord, y: EngineRecord) -> Iterator[str]:
    before, after = x.weights_sha256, y.weights_sha256
    if before and after and before != after:
        yield f"made from other weights ({before[:12]} and {after[:12]})"
    if x.image_size != y.image_size:
        yield f"input sizes are {size_text(x.image_size)} and {size_text(y.image_size)}"
    if x.backend == y.backend:
        ours, theirs = x.runtime, y.runtime
        for key in dict.fromkeys((*ours, *theirs)):
            if ours.get(key) != theirs.get(key):
                yield f"{key} is {ours.get(key, 'unknown')} and {theirs.get(key, 'unknown')}"

"""Limits that a benchmark's figures must keep, for continuous integration.

Every engine but the reference is held against every limit that was given; an engine alone is held against those that
need no reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from yolact_deploy.benchmarks.diff import MARGIN, OTHER_IMAGES, compare_rows
from yolact_deploy.benchmarks.machine_change import machine_change
from yolact_deploy.benchmarks.measure import BenchResult, EngineRow
from yolact_deploy.benchmarks.result_file import StoredResult, environment_differences, same_images, stored
from yolact_deploy.errors import DatasetError, GateError, InputError

#: by how much the median time may exceed the baseline's
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What to hold the figures against; None is no limit.

    Attributes:
        max_ap_drop: points of mask AP (of 100) that an engine may be below the reference
        min_agreement: share (0 to 1) of detections on which engine and reference must agree, see
            ``Agreement.agreed_share``
        min_fps: images/s that an engine must reach
        max_p99_ms: milliseconds within which 99 % of the calls must end
        baseline: earlier results; an engine must not be slower than its row there
        tolerance: share by which its median time may exceed the baseline's

    Raises:
        InputError: a value that no figure could be held against.
    """

    max_ap_drop: float | None = None
    min_agreement: float | None = None
    min_fps: float | None = None
    max_p99_ms: float | None = None
    baseline: StoredResult | None = None
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise InputError(f"--min-agreement: expected a share from 0 to 1 such as 0.98, got {self.min_agreement:g}")
        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"--tolerance: expected a share of 0 or more such as 0.05, got {self.tolerance:g}")
        for name in ("max_ap_drop", "min_fps", "max_p99_ms"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InputError(f"--{name.replace('_', '-')}: expected a number, got {value:g}")

    @property
    def given(self) -> bool:
        values = (self.max_ap_drop, self.min_agreement, self.min_fps, self.max_p99_ms, self.baseline)
        return any(value is not None for value in values)

    @property
    def of_detections(self) -> bool:
        """Whether a wrong engine would miss a limit, and its mistake is worth finding."""
        return self.max_ap_drop is not None or self.min_agreement is not None

    def check_usable(self, names: Sequence[str], *, has_truth: bool) -> None:
        """Before anything is measured: raises where a limit could not be judged afterwards.

        Args:
            names: of the engines, the reference first
        """
        if self.max_ap_drop is not None and not has_truth:
            raise DatasetError(_NEEDS_TRUTH)
        if self.min_agreement is not None and len(names) < 2:
            raise InputError("--min-agreement compares with a reference: give --weights or a second --engine")
        if self.baseline is not None:
            for name in names[1:] or names:
                self.baseline.row(name)


_NEEDS_TRUTH = "--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations"


@dataclass(frozen=True)
class GateCheck:
    """One limit held against one engine; ``sentence`` names the engine, the figure and the limit."""

    engine: str
    gate: str
    passed: bool
    sentence: str


def judge(result: BenchResult, limits: Limits) -> list[GateCheck]:
    """Hold the engines against the limits.

    Raises:
        DatasetError: an AP limit without ground truth, or an agreement limit where nothing was detected.
        InputError: the baseline does not have an engine.
    """
    reference = result.rows[0]
    checks: list[GateCheck] = []
    current = stored(result) if limits.baseline is not None else None
    for row in result.rows[1:] or result.rows:
        if row is not reference:
            checks += _against_reference(row, reference, limits)
        if limits.min_fps is not None:
            fps = row.latency.images_per_second
            sentence = f"{row.name} makes {fps:.2f} images/s (limit {limits.min_fps:g})"
            checks.append(GateCheck(row.name, "min-fps", fps >= limits.min_fps, sentence))
        if limits.max_p99_ms is not None:
            p99 = row.latency.percentile(99)
            sentence = f"{row.name} takes {p99:.2f} ms at p99 (limit {limits.max_p99_ms:g})"
            checks.append(GateCheck(row.name, "max-p99-ms", p99 <= limits.max_p99_ms, sentence))
        if limits.baseline is not None and current is not None:
            checks.append(_against_baseline(row.name, current, limits.baseline, limits.tolerance))
    return checks


def raise_missed(checks: Sequence[GateCheck]) -> None:
    """Raises :class:`GateError` with the sentence of every limit that was missed."""
    missed = [check.sentence for check in checks if not check.passed]
    if missed:
        raise GateError("; ".join(missed))


def baseline_warnings(result: BenchResult, limits: Limits) -> list[str]:
    """A line for each thing other than the engines that makes times differ from the baseline's, or may."""
    baseline = limits.baseline
    if baseline is None:
        return []
    current = stored(result)
    images = [] if same_images(baseline, current) else [f"the baseline {baseline.name} was {OTHER_IMAGES}"]
    machine, unknown = machine_change(baseline, current)
    speed = [unknown] if unknown else []
    if machine and abs(math.log(machine.ratio)) > math.log(1 + MARGIN):
        speed.append(machine.sentence(baseline.name, current.name))
    return [
        *images,
        *speed,
        *(
            f"the baseline {baseline.name} is of another environment: {line}"
            for line in environment_differences(baseline, current)
        ),
    ]


def _against_reference(row: EngineRow, reference: EngineRow, limits: Limits) -> list[GateCheck]:
    checks = []
    if limits.max_ap_drop is not None:
        drop = _points(reference) - _points(row)
        sentence = f"{row.name} loses {drop:.2f} points of mask AP{_sure(row)} (limit {limits.max_ap_drop:g})"
        passed = drop <= limits.max_ap_drop
        if not passed and row.diagnosis and limits.min_agreement is None:  # else it is said there
            sentence += f": {row.diagnosis}"
        checks.append(GateCheck(row.name, "max-ap-drop", passed, sentence))
    if limits.min_agreement is not None:
        checks.append(_agreement(row, reference, limits.min_agreement))
    return checks


def _sure(row: EngineRow) -> str:
    """The interval of the drop, which the images leave open."""
    interval = row.ap_difference.get("mask")
    return "" if interval is None else f", 95 % {-100 * interval.high:.2f} to {-100 * interval.low:.2f}"


def _points(row: EngineRow) -> float:
    mask = row.accuracy.mask if row.accuracy else None
    if mask is None or mask.ap is None:
        raise DatasetError(_NEEDS_TRUTH)
    return 100 * mask.ap


def _agreement(row: EngineRow, reference: EngineRow, limit: float) -> GateCheck:
    a = row.agreement
    if a is None or a.agreed_share is None:
        raise DatasetError(
            f"--min-agreement: neither {reference.name} nor {row.name} detects anything: give images with objects"
        )
    sentence = (
        f"{row.name} agrees with {reference.name} on {100 * a.agreed_share:.2f} % of the detections "
        f"(limit {100 * limit:g} %)"
    )
    passed = a.agreed_share >= limit
    if not passed:
        means = [
            f"{a.missed} missed, {a.extra} extra, {a.label_flips} of another class",
            *([f"mean box IoU {a.mean_box_iou:.3f}"] if a.mean_box_iou is not None else []),
            *([f"mean mask IoU {a.mean_mask_iou:.3f}"] if a.mean_mask_iou is not None else []),
        ]
        sentence += f": {', '.join(means)}"
        if row.diagnosis:
            sentence += f"; {row.diagnosis}"
    return GateCheck(row.name, "min-agreement", passed, sentence)


def _against_baseline(name: str, current: StoredResult, baseline: StoredResult, tolerance: float) -> GateCheck:
    """Slower by more than the tolerance, and not by chance as far as the calls tell.

    Where other programs were at work the limit is missed all the same, and the sentence says so.
    """
    machine, _ = machine_change(baseline, current)
    row = compare_rows(baseline, baseline.row(name), current, current.row(name), margin=tolerance, machine=machine)
    slower = row.p50.value > 1 + tolerance and (row.p50.low is None or row.is_sure)
    sentence = f"{name} against {baseline.name}: {row.sentence} (limit {1 + tolerance:g})"
    return GateCheck(name, "baseline", not slower, sentence)

"""Limits for the figures of a benchmark, and their results as JUnit XML, for continuous integration.

Every given limit applies to every engine except the reference. A single engine is checked against the limits that need
no reference.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.diff import MARGIN, OTHER_IMAGES, compare_engines
from yolact_deploy.benchmarks.machine_change import machine_change
from yolact_deploy.benchmarks.record import EngineRecord, Record
from yolact_deploy.errors import DatasetError, GateError, InputError

#: the median time may exceed the baseline's by this share
TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the figures must reach; None is no limit.

    Attributes:
        max_ap_drop: points of mask AP (of 100) that an engine may lose against the reference
        min_agreement: share (0 to 1) of detections on which engine and reference must agree, see
            ``Agreement.agreed_share``
        min_fps: images/s that an engine must reach
        max_p99_ms: milliseconds within which 99 % of the calls must end
        baseline: an earlier record; an engine must not be slower than it was there
        tolerance: its median time may exceed the baseline's by this share

    Raises:
        InputError: a value that is not a limit.
    """

    max_ap_drop: float | None = None
    min_agreement: float | None = None
    min_fps: float | None = None
    max_p99_ms: float | None = None
    baseline: Record | None = None
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
        """Whether a wrong engine would miss a limit, so that its mistake is worth looking for."""
        return self.max_ap_drop is not None or self.min_agreement is not None

    def check_usable(self, names: Sequence[str], *, has_truth: bool) -> None:
        """Check before measuring that every limit can be judged afterwards.

        Args:
            names: of the engines, the reference first

        Raises:
            DatasetError: an AP limit without ground truth.
            InputError: an agreement limit without a reference, or an engine that the baseline does not have.
        """
        if self.max_ap_drop is not None and not has_truth:
            raise DatasetError(_NEEDS_TRUTH)
        if self.min_agreement is not None and len(names) < 2:
            raise InputError("--min-agreement compares with a reference: give --weights or a second --engine")
        if self.baseline is not None:
            for name in names[1:] or names:
                self.baseline.engine(name)


_NEEDS_TRUTH = "--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations"


@dataclass(frozen=True)
class GateCheck:
    """One limit checked on one engine; ``sentence`` names the engine, the figure and the limit."""

    engine: str
    gate: str
    passed: bool
    sentence: str


def judge(record: Record, limits: Limits) -> list[GateCheck]:
    """Check the engines against the limits.

    Raises:
        DatasetError: an AP limit without ground truth, or an agreement limit where nothing was detected.
        InputError: the baseline does not have an engine.
    """
    reference, *others = record.engines
    return [check for engine in others or [reference] for check in _checks(record, engine, limits)]


def _checks(record: Record, engine: EngineRecord, limits: Limits) -> Iterator[GateCheck]:
    reference, name, latency = record.engines[0], engine.name, engine.latency
    if limits.max_ap_drop is not None and engine is not reference:
        yield _ap_drop(engine, reference, limits.max_ap_drop, explain=limits.min_agreement is None)
    if limits.min_agreement is not None and engine is not reference:
        yield _agreement(engine, reference, limits.min_agreement)
    if (least := limits.min_fps) is not None:
        sentence = f"{name} reaches {latency.images_per_s:.2f} images/s (limit {least:g})"
        yield GateCheck(name, "min-fps", latency.images_per_s >= least, sentence)
    if (most := limits.max_p99_ms) is not None:
        sentence = f"{name} takes {latency.p99_ms:.2f} ms at p99 (limit {most:g})"
        yield GateCheck(name, "max-p99-ms", latency.p99_ms <= most, sentence)
    if limits.baseline is not None:
        yield _against_baseline(name, record, limits.baseline, limits.tolerance)


def raise_missed(checks: Sequence[GateCheck]) -> None:
    """Raises :class:`GateError` with the sentence of every missed limit."""
    missed = [check.sentence for check in checks if not check.passed]
    if missed:
        raise GateError("; ".join(missed))


def baseline_warnings(record: Record, limits: Limits) -> Iterator[str]:
    """A line for each thing other than the engines that changes times against the baseline, or may."""
    baseline = limits.baseline
    if baseline is None:
        return
    if not baseline.has_images_of(record):
        yield f"the baseline {baseline.name} was {OTHER_IMAGES}"
    machine, unknown = machine_change(baseline, record)
    if unknown:
        yield unknown
    if machine and abs(math.log(machine.ratio)) > math.log(1 + MARGIN):
        yield machine.sentence(baseline.name, record.name)
    for line in baseline.environment_differences(record):
        yield f"the baseline {baseline.name} is from another environment: {line}"


def _ap_drop(engine: EngineRecord, reference: EngineRecord, limit: float, *, explain: bool) -> GateCheck:
    before, after = reference.ap_points("mask"), engine.ap_points("mask")
    if before is None or after is None:
        raise DatasetError(_NEEDS_TRUTH)
    interval = engine.ap_difference.get("mask")
    bounds = "" if interval is None else f", 95 % {-100 * interval.high:.2f} to {-100 * interval.low:.2f}"
    sentence = f"{engine.name} loses {before - after:.2f} points of mask AP{bounds} (limit {limit:g})"
    passed = before - after <= limit
    if not passed and engine.diagnosis and explain:  # otherwise the check of the agreement says it
        sentence += f": {engine.diagnosis}"
    return GateCheck(engine.name, "max-ap-drop", passed, sentence)


def _agreement(engine: EngineRecord, reference: EngineRecord, limit: float) -> GateCheck:
    a = engine.agreement
    if a is None or a.agreed_share is None:
        raise DatasetError(
            f"--min-agreement: neither {reference.name} nor {engine.name} detects anything: give images with objects"
        )
    sentence = (
        f"{engine.name} agrees with {reference.name} on {100 * a.agreed_share:.2f} % of the detections "
        f"(limit {100 * limit:g} %)"
    )
    passed = a.agreed_share >= limit
    if not passed:
        details = [
            f"{a.missed} missed, {a.extra} extra, {a.label_flips} of another class",
            *([f"mean box IoU {a.mean_box_iou:.3f}"] if a.mean_box_iou is not None else []),
            *([f"mean mask IoU {a.mean_mask_iou:.3f}"] if a.mean_mask_iou is not None else []),
        ]
        sentence += f": {', '.join(details)}"
        if engine.diagnosis:
            sentence += f"; {engine.diagnosis}"
    return GateCheck(engine.name, "min-agreement", passed, sentence)


def _against_baseline(name: str, record: Record, baseline: Record, tolerance: float) -> GateCheck:
    """Missed if slower by more than the tolerance, and not by chance as far as the calls show.

    If other programs were running, the limit is missed all the same, and the sentence says so.
    """
    machine, _ = machine_change(baseline, record)
    diff = compare_engines(baseline, name, record, name, margin=tolerance, machine=machine)
    slower = not diff.p50.value <= 1 + tolerance and (diff.p50.low is None or diff.is_sure)
    sentence = f"{name} against {baseline.name}: {diff.sentence} (limit {1 + tolerance:g})"
    return GateCheck(name, "baseline", not slower, sentence)


def write_junit(checks: Sequence[GateCheck], path: str | os.PathLike[str]) -> None:
    """Write a test case for each limit and engine; raises :class:`OutputError` if the file cannot be written."""
    write_bytes(path, junit_xml(checks))


def junit_xml(checks: Sequence[GateCheck]) -> bytes:
    failures = sum(not check.passed for check in checks)
    counts = {"tests": str(len(checks)), "failures": str(failures), "errors": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "yolact-deploy bench", **counts, "skipped": "0"})
    for check in checks:
        case = ET.SubElement(suite, "testcase", {"classname": check.engine, "name": check.gate})
        if check.passed:
            ET.SubElement(case, "system-out").text = check.sentence
        else:
            ET.SubElement(case, "failure", {"message": check.sentence}).text = check.sentence
    ET.indent(suites)
    xml: bytes = ET.tostring(suites, encoding="utf-8", xml_declaration=True)
    return xml + b"\n"

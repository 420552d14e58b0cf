"""Limits that a benchmark's figures must keep, for continuous integration."""

from __future__ import annotations

from yolact_deploy.benchmarks.bench import BenchResult, EngineRow
from yolact_deploy.errors import DatasetError, GateError


def check_gates(result: BenchResult, *, max_ap_drop: float | None = None, min_fps: float | None = None) -> None:
    """Hold every row but the reference against limits; a row alone is held against ``min_fps``.

    Args:
        max_ap_drop: points of mask AP (of 100) that a row may be below the reference
        min_fps: images/s that a row must reach

    Raises:
        GateError: a limit was missed; the message lists all that were.
        DatasetError: an AP limit without ground truth.
    """
    reference = result.rows[0]
    failed = []
    for row in result.rows[1:] or result.rows:
        if max_ap_drop is not None and row is not reference:
            drop = _points(reference) - _points(row)
            if drop > max_ap_drop:
                failed.append(f"{row.name} loses {drop:.2f} points of mask AP (limit {max_ap_drop:g})")
        if min_fps is not None and row.latency.images_per_second < min_fps:
            failed.append(f"{row.name} makes {row.latency.images_per_second:.2f} images/s (limit {min_fps:g})")
    if failed:
        raise GateError("; ".join(failed))


def _points(row: EngineRow) -> float:
    mask = row.accuracy.mask if row.accuracy else None
    if mask is None or mask.ap is None:
        raise DatasetError("--max-ap-drop needs ground truth: give --coco DIR or --annotations FILE with annotations")
    return 100 * mask.ap

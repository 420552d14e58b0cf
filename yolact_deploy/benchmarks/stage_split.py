"""The stages of several models side by side, with their sum, the whole call, and what no stage accounts for."""

from __future__ import annotations

from collections.abc import Mapping

from yolact_deploy.benchmarks.latency import Latency
from yolact_deploy.runtime.stage_timer import PARTS, stage_with

TITLE = "Stages, mean ms: their sum, the whole call, the rest that no stage accounts for; beside it COCO RLE"


def stage_rows(latencies: Mapping[str, Latency]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of text for :data:`TITLE`, a row for each model.

    A stage that does several things at once stands in the column of "network" if that is one of them, otherwise in that
    of its first; the columns of the others say where. A model that does not do a thing leaves its column empty.
    """
    parts = _parts(latencies)
    columns = ("engine", *parts, "sum", "whole", "rest", "encode")
    return columns, [(name, *_cells(latency, parts), *_totals(latency)) for name, latency in latencies.items()]


def _parts(latencies: Mapping[str, Latency]) -> list[str]:
    """What the models do, in the order of the way."""
    used = {part for latency in latencies.values() for stage in latency.stages for part in stage.split("+")}
    return [*(part for part in PARTS if part in used), *sorted(used.difference(PARTS))]


def _cells(latency: Latency, parts: list[str]) -> list[str]:
    cells = []
    for part in parts:
        stage = stage_with(part, latency.stages)
        if stage is None:
            cells.append("")
            continue
        does = stage.split("+")
        home = "network" if "network" in does else does[0]
        cells.append(f"{latency.stages[stage]:.2f}" if part == home else f"in {home}")
    return cells


def _totals(latency: Latency) -> tuple[str, ...]:
    times = (sum(latency.stages.values()), latency.mean, latency.unaccounted_ms, latency.encode_ms)
    return tuple("" if time is None else f"{time:.2f}" for time in times)

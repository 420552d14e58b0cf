"""One or several records, and their differences, as tables and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.benchmarks.diff import EngineDiff, RecordDiff
from yolact_deploy.benchmarks.ratios import Ratio
from yolact_deploy.benchmarks.record import EngineRecord, Latency, Record
from yolact_deploy.benchmarks.tables import Table, accuracy_table, agreement_tables, percent
from yolact_deploy.config import size_text
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.runtime.stage_timer import PARTS, stage_with

_STAGES = "Stages, mean ms; their sum, the whole call, and the rest outside all stages; encode: masks to COCO RLE"


def bench_tables(record: Record) -> Iterator[Table]:
    """Speed, stages, cost, roofline, accuracy and agreement of a run, as far as they were measured."""
    engines = record.engines
    yield _speed(record)
    yield Table(_STAGES, *stage_rows({engine.name: engine.latency for engine in engines}))
    if any(map(_has_cost, engines)):
        yield _cost(record)
    if any(engine.roofline for engine in engines):
        yield _roofline(record)
    if scored := [(engine.name, engine.accuracy) for engine in engines if engine.accuracy]:
        yield accuracy_table(scored)
    if any(engine.ap_difference for engine in engines):
        yield _ap_differences(record)
    if compared := [(engine.name, engine.agreement) for engine in engines if engine.agreement]:
        yield from agreement_tables(record.reference, compared)


def _speed(record: Record) -> Table:
    return Table.of(
        "Speed: image file to pasted masks, one image per call",
        record.engines,
        {
            "engine": lambda e: e.name,
            "backend": lambda e: e.backend,
            "precision": lambda e: e.precision,
            "p50 ms": lambda e: f"{e.latency.p50_ms:.1f}",
            "p90": lambda e: f"{e.latency.p90_ms:.1f}",
            "p99": lambda e: f"{e.latency.p99_ms:.1f}",
            "images/s": lambda e: f"{e.latency.images_per_s:.2f}",
            f"x {record.reference}": lambda e: f"{e.speedup:.2f}",
            "peak MiB": lambda e: f"{e.memory_mib:.0f}",
        },
    )


def stage_rows(latencies: Mapping[str, Latency]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of the table of stages, a row for each model.

    A stage that does several things at once stands in the column "network" if the network is one of them, otherwise in
    the column of the first; the columns of the others refer to it. A column is empty for what a model does not do.
    """
    used = {part for latency in latencies.values() for stage in latency.stages_mean_ms for part in stage.split("+")}
    parts = [*(part for part in PARTS if part in used), *sorted(used.difference(PARTS))]
    columns = ("engine", *parts, "sum", "whole", "rest", "encode")
    rows = []
    for name, latency in latencies.items():
        totals = (sum(latency.stages_mean_ms.values()), latency.mean_ms, latency.unaccounted_ms, latency.encode_mean_ms)
        cells = (_stage_cell(part, latency.stages_mean_ms) for part in parts)
        rows.append((name, *cells, *("" if ms is None else f"{ms:.2f}" for ms in totals)))
    return columns, rows


def _stage_cell(part: str, stages_ms: Mapping[str, float]) -> str:
    stage = stage_with(part, stages_ms)
    if stage is None:
        return ""
    parts = stage.split("+")
    home = "network" if "network" in parts else parts[0]
    return f"{stages_ms[stage]:.2f}" if part == home else f"in {home}"


def _gpu_mib(engine: EngineRecord) -> float | None:
    """Growth of the memory of the GPU that grew most; None without GPUs."""
    return max((d.peak_mib - d.before_mib for d in engine.memory.devices), default=None) if engine.memory else None


def _has_cost(engine: EngineRecord) -> bool:
    return (engine.energy is not None and engine.energy.joules is not None) or _gpu_mib(engine) is not None


def _cost(record: Record) -> Table:
    return Table.of(
        "Cost: memory while loading and warming up, energy of the whole chip",
        record.engines,
        {
            "engine": lambda e: e.name,
            "file MiB": lambda e: f"{e.file_mib:.1f}",
            "process MiB": lambda e: f"{e.memory_mib:.0f}",
            "GPU MiB": lambda e: _formatted(_gpu_mib(e), ".0f"),
            "W alone": lambda e: _formatted(e.energy.watts if e.energy else None, ".1f"),
            "images/J": lambda e: _formatted(e.energy.images_per_joule if e.energy else None, ".3f"),
        },
    )


def _roofline(record: Record) -> Table:
    measured = [(engine.name, engine.roofline) for engine in record.engines if engine.roofline]
    return Table.of(
        "Roofline: the network (p50) against the matrix rate and bandwidth of this machine",
        measured,
        {
            "engine": lambda row: row[0],
            "precision": lambda row: row[1].precision,
            "GMAC": lambda row: f"{row[1].gmac:.1f}",
            "network ms": lambda row: f"{row[1].network_ms:.2f}",
            "GMAC/s": lambda row: f"{row[1].achieved_gmac_per_s:.1f}",
            "limit": lambda row: _formatted(row[1].limit_gmac_per_s, ".1f"),
            "% of limit": lambda row: percent(row[1].share),
            "bound by": lambda row: row[1].bound_by,
        },
    )


def _ap_differences(record: Record) -> Table:
    def cells(interval: Interval | None) -> tuple[str, str]:
        if interval is None:
            return "", ""
        return f"{100 * interval.difference:+.2f}", f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"

    rows = [
        (engine.name, *(cell for kind in ("box", "mask") for cell in cells(engine.ap_difference.get(kind))))
        for engine in record.engines
        if engine.ap_difference
    ]
    columns = ("engine", "box AP", "95 %", "mask AP", "95 %")
    return Table(f"Difference in AP x 100 from {record.reference}, with 95 % intervals over the images", columns, rows)


def warning_lines(record: Record) -> Iterator[str]:
    """A line for each thing that makes figures doubtful or a comparison unfair."""
    yield from record.doubts
    for reason in dict.fromkeys(r for engine in record.engines if engine.energy for r in engine.energy.reasons):
        yield f"no energy of {reason}"
    for engine in record.engines:
        for warning in (*engine.warnings, *([engine.diagnosis] if engine.diagnosis else [])):
            yield f"{engine.name}: {warning}"


# -- several records ------------------------------------------------------------------------------------------------


def run_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each engine of each record, as values; ``run`` counts the records from 1."""
    return [
        {
            "run": number,
            "engine": engine.name,
            **{key: getattr(engine, key) for key in ("backend", "precision", "image_size", "speedup", "memory_mib")},
            **{key: getattr(engine.latency, key) for key in ("p50_ms", "p99_ms", "images_per_s")},
            "box_ap": engine.ap_points("box"),
            "mask_ap": engine.ap_points("mask"),
            "agreed_share": engine.agreement.agreed_share if engine.agreement else None,
        }
        for number, record in enumerate(records, 1)
        for engine in record.engines
    ]


def runs_table(records: Sequence[Record], *, wide: bool = False) -> Table:
    """One table of several records; :func:`run_lines` describes the runs.

    Args:
        wide: with backend, input size and box AP, for which a terminal has no room
    """
    columns = {
        "run": lambda row: row["run"],
        "engine": lambda row: row["engine"],
        "backend": lambda row: row["backend"],
        "precision": lambda row: row["precision"],
        "size": lambda row: size_text(row["image_size"]),
        "p50 ms": lambda row: f"{row['p50_ms']:.1f}",
        "p99": lambda row: f"{row['p99_ms']:.1f}",
        "images/s": lambda row: f"{row['images_per_s']:.2f}",
        "x ref": lambda row: f"{row['speedup']:.2f}",
        "box AP": lambda row: _formatted(row["box_ap"], ".2f"),
        "mask AP": lambda row: _formatted(row["mask_ap"], ".2f"),
        "agreed %": lambda row: percent(row["agreed_share"]),
    }
    shown = {name: cell for name, cell in columns.items() if wide or name not in ("backend", "size", "box AP")}
    return Table.of("Results", run_rows(records), shown)


def run_lines(records: Sequence[Record]) -> Iterator[str]:
    """A line for each record: what was measured, where and when; and what makes its times doubtful."""
    for number, record in enumerate(records, 1):
        environment, data = record.environment, record.dataset
        yield (
            f"run {number}: {Path(record.name).name}: {data.images} images "
            f"({data.annotations or 'without annotations'}), {environment['cpu']}, {environment['cores']} cores, "
            f"{environment['date'][:10]}; reference {record.reference}"
        )
        for line in record.doubts:
            yield f"run {number}: {line}"


# -- differences ----------------------------------------------------------------------------------------------------


def diff_table(diff: RecordDiff) -> Table:
    """Times in ms; :func:`diff_lines` has the AP."""
    return Table.of(
        f"A: {Path(diff.a).name}, B: {Path(diff.b).name}",
        diff.rows,
        {
            "engine": lambda row: row.a if row.a == row.b else f"{row.a} > {row.b}",
            "p50 A": lambda row: f"{row.p50_ms[0]:.2f}",
            "p50 B": lambda row: f"{row.p50_ms[1]:.2f}",
            "B / A": lambda row: f"{row.p50.value:.3f}",
            "95 %": lambda row: _interval(row.p50),
            "mean B / A": lambda row: f"{row.mean.value:.3f}",
            "verdict": lambda row: row.verdict,
        },
    )


def diff_lines(diff: RecordDiff) -> Iterator[str]:
    """A sentence for each engine, and what stands in the way of a fair comparison."""
    for row in diff.rows:
        yield from _engine_lines(row, row.a if row.a == row.b else f"{row.b} against {row.a}")
    if diff.machine:
        yield f"note: {diff.machine.sentence(Path(diff.a).name, Path(diff.b).name)}"
    for warning in diff.warnings:
        yield f"note: {warning}"


def _engine_lines(row: EngineDiff, name: str) -> Iterator[str]:
    yield f"{name}: {row.sentence}"
    for kind, ap in row.ap.items():
        if ap.points is not None:
            yield f"{name}: {kind} AP {ap.b:.2f} instead of {ap.a:.2f} ({ap.words})"
    for warning in row.warnings:
        yield f"note: {name}: {warning}"


def _interval(ratio: Ratio) -> str:
    return "" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f}-{ratio.high:.3f}"


def _formatted(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)

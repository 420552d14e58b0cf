"""Results as tables: titles, columns and rows of text, narrow enough for 120 columns; printed or put into HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from yolact_deploy.benchmarks.diff import ResultDiff
from yolact_deploy.benchmarks.measure import BenchResult
from yolact_deploy.benchmarks.ratios import Ratio
from yolact_deploy.benchmarks.result_file import StoredResult, doubts
from yolact_deploy.benchmarks.stage_split import TITLE as STAGES_TITLE
from yolact_deploy.benchmarks.stage_split import stage_rows
from yolact_deploy.evaluation.accuracy import Accuracy, AveragePrecision
from yolact_deploy.evaluation.agreement import Agreement
from yolact_deploy.evaluation.bootstrap import Interval


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def bench_tables(result: BenchResult) -> list[Table]:
    """Speed, stages, accuracy and agreement of a benchmark, those that there is something to say about."""
    tables = [_speed(result), _stages(result), *([cost] if (cost := _cost(result)) else [])]
    if any(row.roofline for row in result.rows):
        tables.append(_roofline(result))
    scored = [(row.name, row.accuracy) for row in result.rows if row.accuracy]
    if scored:
        tables.append(accuracy_table(scored))
    if any(row.ap_difference for row in result.rows):
        tables.append(_ap_differences(result))
    compared = [(row.name, row.agreement) for row in result.rows if row.agreement]
    if compared:
        tables += agreement_tables(result.reference, compared)
    return tables


def _speed(result: BenchResult) -> Table:
    columns = (
        "engine",
        "backend",
        "precision",
        "p50 ms",
        "p90",
        "p99",
        "images/s",
        f"x {result.reference}",
        "peak MiB",
    )
    rows = [
        (
            row.name,
            row.backend,
            row.precision,
            *(f"{row.latency.percentile(q):.1f}" for q in (50, 90, 99)),
            f"{row.latency.images_per_second:.2f}",
            f"{row.speedup:.2f}",
            f"{row.memory_mib:.0f}",
        )
        for row in result.rows
    ]
    return Table("Speed: picture file to pasted masks, one image a call", columns, rows)


def _stages(result: BenchResult) -> Table:
    return Table(STAGES_TITLE, *stage_rows({row.name: row.latency for row in result.rows}))


def _cost(result: BenchResult) -> Table | None:
    """Energy and memory of GPUs, where somebody asked and the machine tells."""
    measured = [row.energy for row in result.rows if row.energy and row.energy.joules is not None]
    devices = [row.memory for row in result.rows if row.memory and row.memory.devices]
    if not measured and not devices:
        return None
    rows = []
    for row in result.rows:
        watts = row.energy.watts if row.energy else None
        per_joule = row.energy.images_per_joule if row.energy else None
        used = [d.peak_mib - d.before_mib for d in row.memory.devices] if row.memory else []
        rows.append(
            (
                row.name,
                f"{row.file_mib:.1f}",
                f"{row.memory_mib:.0f}",
                f"{max(used):.0f}" if used else "",
                "" if watts is None else f"{watts:.1f}",
                "" if per_joule is None else f"{per_joule:.3f}",
            )
        )
    columns = ("engine", "file MiB", "process MiB", "GPU MiB", "W alone", "images/J")
    return Table("Cost: memory while loading and warming up, energy of the whole chip", columns, rows)


def _roofline(result: BenchResult) -> Table:
    rows = []
    for row in result.rows:
        if (found := row.roofline) is not None:
            limit = "" if found.limit_gmac_per_s is None else f"{found.limit_gmac_per_s:.1f}"
            figures = f"{found.gmac:.1f}", f"{found.network_ms:.2f}", f"{found.achieved_gmac_per_s:.1f}", limit
            rows.append((row.name, found.precision, *figures, _percent(found.share), found.bound_by or ""))
    columns = ("engine", "precision", "GMAC", "network ms", "GMAC/s", "limit", "% of limit", "bound by")
    return Table("Roofline: the network (p50) against the matrix rate and bandwidth of this machine", columns, rows)


def _ap_differences(result: BenchResult) -> Table:
    rows = []
    for row in result.rows:
        if row.ap_difference:
            cells = [row.name]
            for kind in ("box", "mask"):
                found = row.ap_difference.get(kind)
                cells += ["", ""] if found is None else [_change(found.difference), _limits(found)]
            rows.append(cells)
    columns = ("engine", "box AP", "95 %", "mask AP", "95 %")
    return Table(f"AP x 100 less that of {result.reference}, with its interval over the images", columns, rows)


def _change(value: float) -> str:
    return f"{100 * value:+.2f}"


def _limits(interval: Interval) -> str:
    return f"{_change(interval.low)} to {_change(interval.high)}"


def accuracy_table(scored: Sequence[tuple[str, Accuracy]]) -> Table:
    """COCO AP x 100 of boxes and masks; S, M, L are the masks' by object size."""
    columns = ("engine", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75", "S", "M", "L")
    rows = []
    for name, accuracy in scored:
        mask = _figures(accuracy.mask)
        rows.append((name, *_figures(accuracy.box)[:3], *mask))
    images = scored[0][1].images
    return Table(f"Accuracy: COCO AP x 100 on {images} images; S, M, L of masks", columns, rows)


def _figures(ap: AveragePrecision | None) -> tuple[str, ...]:
    if ap is None:
        return ("",) * 6
    return tuple(_percent(value) for value in (ap.ap, ap.ap50, ap.ap75, ap.small, ap.medium, ap.large))


def agreement_tables(reference: str, compared: Sequence[tuple[str, Agreement]]) -> list[Table]:
    """Two tables: which detections agree, and how exactly."""
    first = compared[0][1]
    which = Table(
        f"Agreement with {reference}: its {first.reference_detections} detections above {first.score_threshold:g} on "
        f"{first.images} images",
        ("engine", "box AP", "mask AP", "matched %", "IoU>=.9 %", "agreed %", "missed", "extra", "flips"),
        [
            (
                name,
                *map(_percent, (a.box_ap, a.mask_ap, a.matched_share, a.matched_share_90, a.agreed_share)),
                *map(str, (a.missed, a.extra, a.label_flips)),
            )
            for name, a in compared
        ],
    )
    how = Table(
        "Of the matched detections",
        ("engine", "box IoU", "least", "mask IoU", "least", "score diff", "most"),
        [
            (
                name,
                *map(_fraction, (a.mean_box_iou, a.min_box_iou, a.mean_mask_iou, a.min_mask_iou)),
                *map(_fraction, (a.mean_score_difference, a.max_score_difference)),
            )
            for name, a in compared
        ],
    )
    return [which, how]


def warning_lines(result: BenchResult) -> Iterator[str]:
    """A line for each thing that makes figures doubtful or a comparison unfair."""
    conditions = result.conditions.to_json() if result.conditions else None
    yield from doubts({"environment": result.environment, "settings": result.settings, "conditions": conditions})
    for reason in dict.fromkeys(r for row in result.rows if row.energy for r in row.energy.reasons):
        yield f"no energy of {reason}"
    for row in result.rows:
        for warning in row.warnings:
            yield f"{row.name}: {warning}"
        if row.diagnosis:
            yield f"{row.name}: {row.diagnosis}"


# -- results of several runs ----------------------------------------------------------------------------------------


def run_rows(results: Sequence[StoredResult]) -> list[dict[str, Any]]:
    """A row for each engine of each file, as values; ``run`` counts the files from 1."""
    return [
        {
            "run": number,
            "engine": row.name,
            **{key: row.values[key] for key in ("backend", "precision", "image_size", "speedup", "memory_mib")},
            **{key: row.latency[key] for key in ("p50_ms", "p99_ms", "images_per_s")},
            "box_ap": row.ap_points("box"),
            "mask_ap": row.ap_points("mask"),
            "agreed_share": (row.values["agreement"] or {}).get("agreed_share"),
        }
        for number, result in enumerate(results, 1)
        for row in result.rows.values()
    ]


def runs_table(results: Sequence[StoredResult], *, wide: bool = False) -> Table:
    """One table over several files; :func:`run_lines` tells what the runs are.

    Args:
        wide: with what a terminal has no room for: backend, input size and box AP
    """
    columns = {
        "run": "{run}",
        "engine": "{engine}",
        **({"backend": "{backend}"} if wide else {}),
        "precision": "{precision}",
        **({"size": "{image_size}"} if wide else {}),
        "p50 ms": "{p50_ms:.1f}",
        "p99": "{p99_ms:.1f}",
        "images/s": "{images_per_s:.2f}",
        "x ref": "{speedup:.2f}",
        **({"box AP": "{box_ap}"} if wide else {}),
        "mask AP": "{mask_ap}",
        "agreed %": "{agreed}",
    }
    rows = []
    for row in run_rows(results):
        ap = {kind: "" if row[kind] is None else f"{row[kind]:.2f}" for kind in ("box_ap", "mask_ap")}
        values = {**row, **ap, "agreed": _percent(row["agreed_share"])}
        rows.append([pattern.format_map(values) for pattern in columns.values()])
    return Table("Results", tuple(columns), rows)


def run_lines(results: Sequence[StoredResult]) -> Iterator[str]:
    """A line for each file: what was measured, where and when; and what makes its times doubtful."""
    for number, result in enumerate(results, 1):
        environment, data = result.content["environment"], result.content["dataset"]
        yield (
            f"run {number}: {Path(result.name).name}: {data['images']} images "
            f"({data['annotations'] or 'without annotations'}), {environment['cpu']}, {environment['cores']} cores, "
            f"{environment['date'][:10]}; reference {result.content['reference']}"
        )
        for line in doubts(result.content):
            yield f"run {number}: {line}"


def diff_table(diff: ResultDiff) -> Table:
    """Times in ms; :func:`diff_lines` has the AP."""
    rows = [
        (
            row.a if row.a == row.b else f"{row.a} > {row.b}",
            *(f"{ms:.2f}" for ms in row.p50_ms),
            f"{row.p50.value:.3f}",
            _interval(row.p50),
            f"{row.mean.value:.3f}",
            row.verdict,
        )
        for row in diff.rows
    ]
    title = f"A: {Path(diff.a).name}, B: {Path(diff.b).name}"
    return Table(title, ("engine", "p50 A", "p50 B", "B / A", "95 %", "mean B / A", "verdict"), rows)


def diff_lines(diff: ResultDiff) -> Iterator[str]:
    """A sentence for each engine, and what stands in the way of a fair comparison."""
    for row in diff.rows:
        name = row.a if row.a == row.b else f"{row.b} against {row.a}"
        yield f"{name}: {row.sentence}"
        for kind, ap in row.ap.items():
            if ap.points is not None:
                yield f"{name}: {kind} AP {ap.b:.2f} instead of {ap.a:.2f} ({ap.words})"
        for warning in row.warnings:
            yield f"note: {name}: {warning}"
    if diff.machine:
        yield f"note: {diff.machine.sentence(Path(diff.a).name, Path(diff.b).name)}"
    for warning in diff.warnings:
        yield f"note: {warning}"


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, without its title."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _interval(ratio: Ratio) -> str:
    return "" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f}-{ratio.high:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

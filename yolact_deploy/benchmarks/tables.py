"""Results as tables: titles, columns and rows of text, narrow enough for 120 columns; printed or put into HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from yolact_deploy.benchmarks.accuracy import Accuracy, AveragePrecision
from yolact_deploy.benchmarks.agreement import Agreement
from yolact_deploy.benchmarks.bench import BenchResult

#: share of the cores that other programs may use before the times are doubted
_QUIET_SHARE = 0.15


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def bench_tables(result: BenchResult) -> list[Table]:
    """Speed, stages, accuracy and agreement of a benchmark, those that there is something to say about."""
    tables = [_speed(result), _stages(result)]
    scored = [(row.name, row.accuracy) for row in result.rows if row.accuracy]
    if scored:
        tables.append(accuracy_table(scored))
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


def stage_names(result: BenchResult) -> list[str]:
    """The stages of all models, in the order of the first that has them: a GPU has more than a CPU."""
    return list(dict.fromkeys(stage for row in result.rows for stage in row.latency.stages))


def _stages(result: BenchResult) -> Table:
    names = stage_names(result)
    rows = [
        (row.name, *(f"{spent:.2f}" if (spent := row.latency.stages.get(name)) is not None else "" for name in names))
        for row in result.rows
    ]
    return Table("Stages: mean ms", ("engine", *names), rows)


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
        ("engine", "box AP", "mask AP", "matched %", "IoU>=.9 %", "missed", "extra", "flips"),
        [
            (
                name,
                *map(_percent, (a.box_ap, a.mask_ap, a.matched_share, a.matched_share_90)),
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
    """A line for each thing that makes a comparison unfair."""
    others, cores = result.settings["cores_used_by_others"], result.environment["cores"]
    if others > _QUIET_SHARE * cores:
        yield (
            f"other programs used {others:.1f} of {cores} cores meanwhile: times are too long, and ratios to eager "
            "PyTorch, which suffers most, too good; measure again on a quiet machine"
        )
    for row in result.rows:
        for warning in row.warnings:
            yield f"{row.name}: {warning}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"

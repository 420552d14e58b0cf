"""The HTML report of a benchmark: one file that needs nothing else, for screens of any width and for paper.

It has no scripts and loads nothing. Sections without data are left out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.gates import GateCheck
from yolact_deploy.benchmarks.measure import BenchResult, EngineRow
from yolact_deploy.benchmarks.published import PUBLISHED
from yolact_deploy.benchmarks.report.report_accuracy import accuracy_parts, mask_difference
from yolact_deploy.benchmarks.report.report_charts import (
    Curve,
    Points,
    curve_legend,
    figure,
    histograms,
    line_chart,
    scatter,
    stage_bars,
)
from yolact_deploy.benchmarks.report.report_html import (
    Section,
    box,
    folded,
    is_nothing,
    listing,
    paragraph,
    plain,
    table,
    text,
)
from yolact_deploy.benchmarks.report.report_pictures import pictures
from yolact_deploy.benchmarks.report.report_style import STYLE
from yolact_deploy.benchmarks.tables import Table, bench_tables, warning_lines

_TITLE = "yolact-deploy benchmark"
_POINTS = 100
#: below this many calls the 99th percentile is hardly more than the slowest call
_CALLS_FOR_P99 = 100
#: file names of COCO's own sets, and from how many of its images on an average precision can be held against another
_COCO = re.compile(r"instances_(?:val|test|minival)\w*20(?:14|17)")
_COCO_IMAGES = 1000


def write_report(result: BenchResult, path: str | os.PathLike[str], *, checks: Sequence[GateCheck] = ()) -> None:
    """Write the report atomically.

    Args:
        checks: the limits that were given and how they ended, see ``gates.judge``

    Raises:
        OutputError: the place cannot be written.
    """
    write_bytes(path, render(result, checks=checks).encode())


def render(result: BenchResult, *, checks: Sequence[GateCheck] = ()) -> str:
    """The report as HTML text."""
    sections = list(_sections(result))
    links = "\n".join(f'<li><a href="#{s.key}">{text(s.title)}</a></li>' for s in sections)
    body = "\n".join(
        [
            f"<header>\n<h1>{_TITLE}</h1>\n{paragraph(_subject(result))}\n</header>",
            f'<nav aria-label="Contents"><ul>\n{links}\n</ul></nav>',
            "<main>",
            *_head(result, checks),
            *(section.html() for section in sections),
            "</main>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n"
        '<link rel="icon" href="data:,">\n'  # or browsers that get the file from a server ask for an icon
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


# -- in sentences ---------------------------------------------------------------------------------------------------


def _subject(result: BenchResult) -> str:
    data, machine = result.dataset, result.environment
    source = data["annotations"] or "pictures without annotations"
    return (
        f"{data['images']} images ({source}) on {machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}. "
        "A time is that of one image, from its file to masks of its size. Everything is compared with "
        f"{result.reference}."
    )


def _head(result: BenchResult, checks: Sequence[GateCheck]) -> Iterator[str]:
    yield box(listing(_sentence(row, result) for row in result.rows))
    if checks:
        missed = [check.sentence for check in checks if not check.passed]
        kept = [check.sentence for check in checks if check.passed]
        if missed:
            yield box(paragraph(f"{len(missed)} of {len(checks)} limits were missed:") + listing(missed), alarm=True)
        if kept:
            yield box(folded(f"{len(kept)} of {len(checks)} limits were kept", listing(kept)))
    warnings = list(dict.fromkeys(warning_lines(result)))
    if warnings:
        yield box(paragraph("What makes these figures doubtful:") + listing(warnings), alarm=True)


def _sentence(row: EngineRow, result: BenchResult) -> str:
    """Speed, accuracy and agreement of one model."""
    latency = row.latency
    said = f"{row.name} takes {latency.p50:.1f} ms (p50), {latency.percentile(99):.1f} ms at p99"
    said += f": {latency.images_per_second:.2f} images/s"
    reference = result.rows[0]
    other = row.name != reference.name
    if other:
        said += f", {_times(row.speedup)} {reference.name}"
    said += "."
    ap, reference_ap = _ap(row), _ap(reference)
    if ap is not None:
        said += f" Its mask AP is {ap:.2f}"
        if other and reference_ap is not None:
            change = round(ap, 2) - round(reference_ap, 2)
            points = f"{abs(change):.2f} points {'below' if change < 0 else 'above'}" if change else "the same as"
            said += f", {points} {reference.name}'s"
            if interval := mask_difference(row):
                low, high = _POINTS * interval.low, _POINTS * interval.high
                said += f" (95 % interval of the difference {low:+.2f} to {high:+.2f})"
        said += "."
    if row.agreement and row.agreement.agreed_share is not None:
        said += f" Both agree on {_POINTS * row.agreement.agreed_share:.1f} % of the detections."
    return said


def _times(speedup: float) -> str:
    if 0.99 < speedup < 1.01:
        return "as fast as"
    return f"{speedup:.2f} times as fast as" if speedup > 1 else f"{1 / speedup:.2f} times as slow as"


def _ap(row: EngineRow) -> float | None:
    """Mask AP x 100."""
    mask = row.accuracy.mask if row.accuracy else None
    return None if mask is None or mask.ap is None else _POINTS * mask.ap


# -- sections -------------------------------------------------------------------------------------------------------


def _sections(result: BenchResult) -> Iterator[Section]:
    if any(_ap(row) is not None for row in result.rows):
        yield Section("trade", "Accuracy and speed", list(_trade(result)))
    yield Section("latency", "Latency", list(_latency(result)))
    yield Section("stages", "Where the time goes", list(_stages(result)))
    scored = list(accuracy_parts(result))
    if scored:
        yield Section("accuracy", "Accuracy in detail", scored)
    tables = bench_tables(result)
    yield Section("figures", "All figures", [table(content) for content in tables])
    if result.worst and len(result.rows) > 1:
        yield Section("pictures", "Where the models disagree most", list(pictures(result.worst, result.reference)))
    yield Section("environment", "Environment and settings", list(_environment(result)))


def _trade(result: BenchResult) -> Iterator[str]:
    """Mask AP over images/s; the published figures in the same chart only where the images are the same."""
    data = result.dataset
    shown = [
        (letter, row, ap) for letter, row in zip(_letters(), result.rows, strict=False) if (ap := _ap(row)) is not None
    ]
    measured = Points(
        "measured here",
        [row.latency.images_per_second for _, row, _ in shown],
        [ap for *_, ap in shown],
        [letter for letter, *_ in shown],
        measured=True,
    )
    comparable = bool(_COCO.search(data["annotations"] or "")) and data["images"] >= _COCO_IMAGES
    others = _published_points()
    axes = ("images/s", "mask AP")
    groups = [measured, *others] if comparable else [measured]
    label = "Mask AP over images per second; the values are in the table below"
    charts = [figure(scatter(groups, *axes, label, floor=0, margin=2))]
    note = (
        "Filled: measured here, on this machine. Hollow: as published by others on their hardware, not measured here; "
        "what their times cover differs."
    )
    if not comparable:
        note += (
            " They stand in a chart of their own because they are of the whole COCO test set: an average precision "
            f"on {data['images']} images ({data['annotations']}) cannot be held against theirs."
        )
        charts.append(figure(scatter(others, *axes, "Published mask AP over images per second", floor=0, margin=2)))
    yield f'<div class="panels">\n{"".join(charts)}</div>' if len(charts) > 1 else charts[0]
    yield paragraph(note, "note")
    figures = [
        (
            f"{letter}: {row.name}",
            f"{row.latency.images_per_second:.2f}",
            f"{ap:.2f}",
            f"{row.speedup:.2f}",
            row.precision,
        )
        for letter, row, ap in shown
    ]
    yield table(
        Table("Measured here", ("engine", "images/s", "mask AP", f"x {result.reference}", "precision"), figures)
    )
    rows = [(p.series, p.name, f"{p.mask_ap:.1f}", f"{p.fps:.1f}", p.hardware, p.source) for p in PUBLISHED]
    columns = ("method", "network", "mask AP", "images/s", "hardware", "source")
    yield folded("The published figures", table(Table("Published on COCO, not measured here", columns, rows)))


def _letters() -> Iterator[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    yield from alphabet
    yield from map("".join, itertools.product(alphabet, repeat=2))


def _published_points() -> list[Points]:
    kinds = dict.fromkeys((p.series, p.hardware) for p in PUBLISHED)
    return [
        Points(
            f"{series} on {hardware}",
            [p.fps for p in PUBLISHED if (p.series, p.hardware) == (series, hardware)],
            [p.mask_ap for p in PUBLISHED if (p.series, p.hardware) == (series, hardware)],
            shape=i,
        )
        for i, (series, hardware) in enumerate(kinds)
    ]


def _latency(result: BenchResult) -> Iterator[str]:
    rows = [(row.name, row.latency.samples) for row in result.rows]
    yield figure(histograms(rows))
    shares = np.linspace(0, 1, 101)
    curves = [Curve(name, np.quantile(samples, shares), shares * _POINTS) for name, samples in rows]
    end = max(float(np.percentile(samples, 99)) for _, samples in rows) or 1.0
    chart = line_chart(curves, end, _POINTS, "ms", "% of the calls done", "Share of the calls that end within a time")
    yield figure(chart + curve_legend([name for name, _ in rows]))
    calls = min(len(samples) for _, samples in rows)
    if calls < _CALLS_FOR_P99:
        yield paragraph(
            f"With {calls} calls of a model, p99 is little more than its slowest call: measure more images, or more "
            "--repeats, to judge by it.",
            "note",
        )


def _stages(result: BenchResult) -> Iterator[str]:
    yield figure(stage_bars([(row.name, row.latency.stages, row.latency.unaccounted_ms) for row in result.rows]))
    yield paragraph(
        "Mean time of each stage, measured inside the same calls. Hatched is what no stage accounts for: the "
        "predictor's own Python, launches and waiting.",
        "note",
    )
    encoded = [f"{row.name} {row.latency.encode_ms:.1f} ms" for row in result.rows if row.latency.encode_ms is not None]
    if encoded:
        yield paragraph(f"Encoding the masks as COCO RLE, after the call, takes {', '.join(encoded)} an image.", "note")


def _environment(result: BenchResult) -> Iterator[str]:
    conditions = result.conditions.to_json() if result.conditions else {}
    for title, values in (
        ("Machine and versions", result.environment),
        ("Settings", result.settings),
        ("Conditions while measuring", {k: v for k, v in conditions.items() if k != "warnings"}),
    ):
        rows = [(key, plain(value)) for key, value in values.items() if not is_nothing(value)]
        if not rows:
            continue
        yield table(Table(title, ("what", "value"), rows), words=True)
    rows = [(row.name, plain(row.runtime)) for row in result.rows]
    yield table(Table("Runtimes", ("engine", "runtime"), rows), words=True)

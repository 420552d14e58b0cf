"""The HTML report of a benchmark: one self-contained file, for screens of any width and for paper.

It has no scripts and loads nothing. Sections without data are left out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.gates import GateCheck
from yolact_deploy.benchmarks.measure import WorstPicture
from yolact_deploy.benchmarks.published import PUBLISHED
from yolact_deploy.benchmarks.record import CURE, EngineRecord, Record
from yolact_deploy.benchmarks.record_tables import bench_tables, warning_lines
from yolact_deploy.benchmarks.report.report_accuracy import accuracy_parts
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
    document,
    folded,
    is_nothing,
    listing,
    paragraph,
    plain,
    table,
)
from yolact_deploy.benchmarks.report.report_pictures import picture_parts
from yolact_deploy.benchmarks.report.report_style import STYLE
from yolact_deploy.benchmarks.tables import Table
from yolact_deploy.errors import DatasetError

_TITLE = "yolact-deploy benchmark"
#: with fewer calls, the 99th percentile is hardly more than the slowest call
_CALLS_FOR_P99 = 100
#: file names of COCO's own sets, and how many of its images an average precision needs to be comparable
_COCO = re.compile(r"instances_(?:val|test|minival)\w*20(?:14|17)")
_COCO_IMAGES = 1000


def write_report(
    record: Record,
    path: str | os.PathLike[str],
    *,
    pictures: Sequence[WorstPicture] = (),
    checks: Sequence[GateCheck] = (),
) -> None:
    """Write the report atomically.

    Args:
        pictures: the worst images of a run just measured, see ``measure.BenchRun``; records hold no images
        checks: results of the limits, see ``gates.judge``

    Raises:
        DatasetError: the record is older than the times of single calls.
        OutputError: the file cannot be written.
    """
    write_bytes(path, render(record, pictures=pictures, checks=checks).encode())


def render(record: Record, *, pictures: Sequence[WorstPicture] = (), checks: Sequence[GateCheck] = ()) -> str:
    """The report as HTML text; arguments and errors as for :func:`write_report`."""
    if not all(engine.latency.samples_ms for engine in record.engines):
        raise DatasetError(f"{record.name} has no times of single calls: {CURE}")
    sections = list(_sections(record, pictures))
    return document(_TITLE, _subject(record), _head(record, checks), sections, STYLE)


# -- in sentences ---------------------------------------------------------------------------------------------------


def _subject(record: Record) -> str:
    data, machine = record.dataset, record.environment
    source = data.annotations or "without annotations"
    return (
        f"{data.images} images ({source}) on {machine['cpu']}, {machine['cores']} cores, {machine['date'][:10]}. "
        "Each time covers one image, from its file to masks of its size. Everything is compared with "
        f"{record.reference}."
    )


def _head(record: Record, checks: Sequence[GateCheck]) -> Iterator[str]:
    yield box(listing(_sentence(engine, record.engines[0]) for engine in record.engines))
    missed = [check.sentence for check in checks if not check.passed]
    kept = [check.sentence for check in checks if check.passed]
    if missed:
        yield box(paragraph(f"{len(missed)} of {len(checks)} limits were missed:") + listing(missed), alarm=True)
    if kept:
        yield box(folded(f"{len(kept)} of {len(checks)} limits were kept", listing(kept)))
    warnings = list(dict.fromkeys(warning_lines(record)))
    if warnings:
        yield box(paragraph("What makes these figures doubtful:") + listing(warnings), alarm=True)


def _sentence(engine: EngineRecord, reference: EngineRecord) -> str:
    """Speed, accuracy and agreement of one engine."""
    latency, other = engine.latency, engine.name != reference.name
    text = f"{engine.name} takes {latency.p50_ms:.1f} ms (p50), {latency.p99_ms:.1f} ms at p99"
    text += f": {latency.images_per_s:.2f} images/s"
    text += f", {_times(engine.speedup)} {reference.name}." if other else "."
    ap, reference_ap = engine.ap_points("mask"), reference.ap_points("mask")
    if ap is not None:
        text += f" Its mask AP is {ap:.2f}"
        if other and reference_ap is not None:
            change = round(ap, 2) - round(reference_ap, 2)
            points = f"{abs(change):.2f} points {'below' if change < 0 else 'above'}" if change else "the same as"
            text += f", {points} {reference.name}'s"
            if interval := engine.ap_difference.get("mask"):
                low, high = 100 * interval.low, 100 * interval.high
                text += f" (95 % interval of the difference {low:+.2f} to {high:+.2f})"
        text += "."
    if engine.agreement and engine.agreement.agreed_share is not None:
        text += f" Both agree on {100 * engine.agreement.agreed_share:.1f} % of the detections."
    return text


def _times(speedup: float) -> str:
    if 0.99 < speedup < 1.01:
        return "as fast as"
    return f"{speedup:.2f} times as fast as" if speedup > 1 else f"{1 / speedup:.2f} times as slow as"


# -- sections -------------------------------------------------------------------------------------------------------


def _sections(record: Record, pictures: Sequence[WorstPicture]) -> Iterator[Section]:
    if any(engine.ap_points("mask") is not None for engine in record.engines):
        yield Section("trade", "Accuracy and speed", list(_trade(record)))
    yield Section("latency", "Latency", list(_latency(record)))
    yield Section("stages", "Where the time goes", list(_stages(record)))
    if scored := list(accuracy_parts(record)):
        yield Section("accuracy", "Accuracy in detail", scored)
    yield Section("figures", "All figures", [table(content) for content in bench_tables(record)])
    if pictures and len(record.engines) > 1:
        yield Section("pictures", "Where the models disagree most", list(picture_parts(pictures, record.reference)))
    yield Section("environment", "Environment and settings", list(_environment(record)))


def _trade(record: Record) -> Iterator[str]:
    """Mask AP over images/s; the published figures share the chart only if the images are the same."""
    data = record.dataset
    scored = [
        (letter, engine, ap)
        for letter, engine in zip(_letters(), record.engines, strict=False)
        if (ap := engine.ap_points("mask")) is not None
    ]
    speeds = [engine.latency.images_per_s for _, engine, _ in scored]
    letters, aps = [letter for letter, *_ in scored], [ap for *_, ap in scored]
    measured, others = Points("measured here", speeds, aps, letters, measured=True), _published_points()
    comparable = bool(_COCO.search(data.annotations or "")) and data.images >= _COCO_IMAGES
    label = "Mask AP over images per second; the values are in the table below"
    charts = [_trade_chart([measured, *others] if comparable else [measured], label)]
    note = (
        "Filled: measured here, on this machine. Hollow: as published by others on their hardware, not measured here; "
        "what their times cover differs."
    )
    if not comparable:
        note += (
            " They stand in a chart of their own because they are for the whole COCO test set: an average precision "
            f"on {data.images} images ({data.annotations}) cannot be compared with theirs."
        )
        charts.append(_trade_chart(others, "Published mask AP over images per second"))
    yield f'<div class="panels">\n{"".join(charts)}</div>' if len(charts) > 1 else charts[0]
    yield paragraph(note, "note")
    yield from _trade_tables(scored, record.reference)


def _trade_chart(groups: Sequence[Points], label: str) -> str:
    return figure(scatter(groups, "images/s", "mask AP", label, floor=0, margin=2))


def _trade_tables(scored: Sequence[tuple[str, EngineRecord, float]], reference: str) -> Iterator[str]:
    rows = [
        (f"{letter}: {e.name}", f"{e.latency.images_per_s:.2f}", f"{ap:.2f}", f"{e.speedup:.2f}", e.precision)
        for letter, e, ap in scored
    ]
    yield table(Table("Measured here", ("engine", "images/s", "mask AP", f"x {reference}", "precision"), rows))
    published = [(p.series, p.name, f"{p.mask_ap:.1f}", f"{p.fps:.1f}", p.hardware, p.source) for p in PUBLISHED]
    columns = ("method", "network", "mask AP", "images/s", "hardware", "source")
    yield folded("The published figures", table(Table("Published on COCO, not measured here", columns, published)))


def _letters() -> Iterator[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    yield from alphabet
    yield from map("".join, itertools.product(alphabet, repeat=2))


def _published_points() -> list[Points]:
    groups: dict[str, Points] = {}
    for p in PUBLISHED:
        name = f"{p.series} on {p.hardware}"
        group = groups.get(name, Points(name, (), (), shape=len(groups)))
        groups[name] = replace(group, xs=(*group.xs, p.fps), ys=(*group.ys, p.mask_ap))
    return list(groups.values())


def _latency(record: Record) -> Iterator[str]:
    rows = [(engine.name, engine.samples) for engine in record.engines]
    yield figure(histograms(rows))
    shares = np.linspace(0, 1, 101)
    curves = [Curve(name, np.quantile(samples, shares), shares * 100) for name, samples in rows]
    end = max(float(np.percentile(samples, 99)) for _, samples in rows) or 1.0
    chart = line_chart(curves, end, 100, "ms", "% of the calls done", "Share of the calls that end within a time")
    yield figure(chart + curve_legend([name for name, _ in rows]))
    calls = min(len(samples) for _, samples in rows)
    if calls < _CALLS_FOR_P99:
        yield paragraph(
            f"With {calls} calls of a model, p99 is little more than its slowest call: measure more images, or more "
            "--repeats, to judge by it.",
            "note",
        )


def _stages(record: Record) -> Iterator[str]:
    latencies = [(engine.name, engine.latency) for engine in record.engines]
    yield figure(stage_bars([(name, latency.stages_mean_ms, latency.unaccounted_ms) for name, latency in latencies]))
    yield paragraph(
        "Mean time of each stage, measured inside the same calls. Hatched: time outside all stages, which is the "
        "predictor's own Python, launches and waiting.",
        "note",
    )
    encoded = [f"{name} {ms:.1f} ms" for name, latency in latencies if (ms := latency.encode_mean_ms) is not None]
    if encoded:
        takes = f"Encoding the masks as COCO RLE, after the call, takes {', '.join(encoded)} per image."
        yield paragraph(takes, "note")


def _environment(record: Record) -> Iterator[str]:
    conditions = asdict(record.conditions) if record.conditions else {}
    for title, values in (
        ("Machine and versions", record.environment),
        ("Settings", asdict(record.settings)),
        ("Conditions while measuring", {k: v for k, v in conditions.items() if k != "warnings"}),
    ):
        rows = [(key, plain(value)) for key, value in values.items() if not is_nothing(value)]
        if rows:
            yield table(Table(title, ("what", "value"), rows), words=True)
    rows = [(engine.name, plain(engine.runtime)) for engine in record.engines]
    yield table(Table("Runtimes", ("engine", "runtime"), rows), words=True)

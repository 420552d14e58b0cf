"""Accuracy in the HTML report: which classes gained or lost, and precision over recall. AP is of masks, x 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from yolact_deploy.benchmarks.record import EngineRecord, Record
from yolact_deploy.benchmarks.report.report_charts import (
    Curve,
    curve_legend,
    difference_bars,
    figure,
    intervals,
    line_chart,
)
from yolact_deploy.benchmarks.report.report_html import folded, paragraph, table, text
from yolact_deploy.benchmarks.tables import Table
from yolact_deploy.evaluation.bootstrap import Interval

#: classes in the chart of an engine's changes; the table has all of them
_CLASSES = 10
#: smaller changes of AP do not show in the printed figures
_NO_CHANGE = 0.005


def accuracy_parts(record: Record) -> Iterator[str]:
    """Parts of the section; none without ground truth."""
    differences = [(engine.name, engine.ap_difference.get("mask")) for engine in record.engines]
    known = [(name, interval) for name, interval in differences if interval]
    if known:
        yield from _differences(known, record.reference)
    yield from _curves(record)
    yield from _class_changes(record)


def _differences(differences: Sequence[tuple[str, Interval]], reference: str) -> Iterator[str]:
    yield f"<h3>Mask AP against {text(reference)}</h3>"
    rows = [(name, 100 * i.difference, 100 * i.low, 100 * i.high) for name, i in differences]
    yield figure(intervals(rows, "Points of mask AP"))
    first = differences[0][1]
    yield paragraph(
        f"Points of mask AP (of 100) with their 95 % interval: {first.samples} draws of the {first.images} images, "
        "both models on the same draw. If the interval contains 0, these images show no difference.",
        "note",
    )


def _curves(record: Record) -> Iterator[str]:
    drawn = [(e.name, e.accuracy.curves["mask"]) for e in record.engines if e.accuracy and "mask" in e.accuracy.curves]
    if not drawn:
        return
    yield "<h3>Precision over recall</h3>"
    recall = np.linspace(0, 100, 101)
    panels = []
    for iou, name in ((0.5, "iou50"), (0.75, "iou75")):
        curves = [Curve(engine, recall, 100 * np.array(getattr(curve, name))) for engine, curve in drawn]
        title = f"Mask IoU of at least {iou:g}, mean over the classes"
        panels.append(figure(line_chart(curves, 100, 100, "recall %", "precision %", title), title))
    yield f'<div class="panels">\n{"".join(panels)}</div>\n{curve_legend([name for name, _ in drawn])}'


def _class_changes(record: Record) -> Iterator[str]:
    classes = {engine.name: ap for engine in record.engines if (ap := _per_class(engine))}
    if next(iter(classes), None) != record.reference:
        return
    before = classes[record.reference]
    changes = {
        name: {label: value - before[label] for label, value in ap.items() if label in before}
        for name, ap in classes.items()
        if name != record.reference
    }
    if changes:
        yield f"<h3>Changes by class against {text(record.reference)}</h3>"
        yield f'<div class="panels">\n{"".join(_change_panels(changes))}</div>'
        yield paragraph(f"Points of mask AP (of 100); of each engine the {_CLASSES} largest changes.", "note")
    cells = [
        (label, *("" if (value := ap.get(label)) is None else f"{value:.2f}" for ap in classes.values()))
        for label in before
    ]
    yield folded("Mask AP of every class", table(Table("Mask AP x 100", ("class", *classes), cells)))


def _change_panels(changes: dict[str, dict[str, float]]) -> Iterator[str]:
    """A chart for each engine, all on one scale."""
    every = [0.0, *(change for of_engine in changes.values() for change in of_engine.values())]
    for engine, of_engine in changes.items():
        largest = sorted(of_engine.items(), key=lambda item: -abs(item[1]))[:_CLASSES]
        shown = sorted(((label, c) for label, c in largest if abs(c) >= _NO_CHANGE), key=lambda item: item[1])
        caption = f"{sum(c <= -_NO_CHANGE for c in of_engine.values())} of {len(of_engine)} classes lose mask AP, "
        caption += f"{sum(c >= _NO_CHANGE for c in of_engine.values())} gain"
        bars = difference_bars(shown, min(every), max(every), "points of mask AP") if shown else ""
        yield f"<div>\n<h4>{text(engine)}</h4>\n{figure(bars, caption)}</div>"


def _per_class(engine: EngineRecord) -> dict[str, float]:
    """AP x 100 of the classes with ground truth."""
    figures = engine.accuracy.mask if engine.accuracy else None
    return {name: 100 * ap for name, ap in figures.per_class.items() if ap is not None} if figures else {}

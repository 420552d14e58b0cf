"""Accuracy in the HTML report: which classes gained or lost, and precision over recall. AP is of masks, x 100."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from yolact_deploy.benchmarks.measure import BenchResult, EngineRow
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

_POINTS = 100
#: classes in the chart of an engine's changes; the table has all
_CLASSES = 10
#: changes of AP that the printed figures would not show
_NO_CHANGE = 0.005
_KIND = "mask"


def accuracy_parts(result: BenchResult) -> Iterator[str]:
    """Nothing where there is no ground truth."""
    differences = [(row.name, interval) for row in result.rows if (interval := mask_difference(row))]
    if differences:
        yield from _differences(differences, result.reference)
    yield from _curves(result)
    yield from _class_changes(result)


def mask_difference(row: EngineRow) -> Interval | None:
    """Mask AP of a model minus the reference's, with its interval; None where it was not computed."""
    return row.ap_difference.get(_KIND)


def _differences(differences: Sequence[tuple[str, Interval]], reference: str) -> Iterator[str]:
    yield f"<h3>Mask AP against {text(reference)}</h3>"
    rows = [(name, _POINTS * i.difference, _POINTS * i.low, _POINTS * i.high) for name, i in differences]
    yield figure(intervals(rows, "Points of mask AP"))
    first = differences[0][1]
    yield paragraph(
        f"Points of mask AP (of 100) with their 95 % interval: {first.samples} draws of the {first.images} images, "
        "both models on the same draw. Where the interval holds 0, these images do not tell the two apart.",
        "note",
    )


def _curves(result: BenchResult) -> Iterator[str]:
    drawn = [
        (row.name, row.accuracy.curves[_KIND]) for row in result.rows if row.accuracy and _KIND in row.accuracy.curves
    ]
    if not drawn:
        return
    yield "<h3>Precision over recall</h3>"
    recall = np.linspace(0, _POINTS, 101)
    panels = []
    for iou, name in ((0.5, "iou50"), (0.75, "iou75")):
        curves = [Curve(engine, recall, _POINTS * np.array(getattr(curve, name))) for engine, curve in drawn]
        title = f"Mask IoU of at least {iou:g}, mean over the classes"
        panels.append(figure(line_chart(curves, _POINTS, _POINTS, "recall %", "precision %", title), title))
    yield f'<div class="panels">\n{"".join(panels)}</div>\n{curve_legend([name for name, _ in drawn])}'


def _class_changes(result: BenchResult) -> Iterator[str]:
    rows = [row for row in result.rows if _per_class(row)]
    if not rows or rows[0].name != result.reference:
        return
    reference, *others = rows
    before = _per_class(reference)
    changes = {
        row.name: {name: ap - before[name] for name, ap in _per_class(row).items() if name in before} for row in others
    }
    all_changes = [c for of_row in changes.values() for c in of_row.values()]
    low, high = min((0.0, *all_changes)), max((0.0, *all_changes))
    panels = []
    for engine, of_row in changes.items():
        largest = sorted(of_row.items(), key=lambda item: -abs(item[1]))[:_CLASSES]
        shown = sorted(((name, c) for name, c in largest if abs(c) >= _NO_CHANGE), key=lambda item: item[1])
        words = f"{sum(c <= -_NO_CHANGE for c in of_row.values())} of {len(of_row)} classes lose mask AP, "
        words += f"{sum(c >= _NO_CHANGE for c in of_row.values())} gain"
        bars = difference_bars(shown, low, high, "points of mask AP") if shown else ""
        panels.append(f"<div>\n<h4>{text(engine)}</h4>\n{figure(bars, words)}</div>")
    if panels:
        yield f"<h3>Changes by class against {text(result.reference)}</h3>"
        yield f'<div class="panels">\n{"".join(panels)}</div>'
        yield paragraph(f"Points of mask AP (of 100); of each engine the {_CLASSES} largest changes.", "note")
    cells = [
        (name, *("" if (ap := _per_class(row).get(name)) is None else f"{ap:.2f}" for row in rows)) for name in before
    ]
    yield folded("Mask AP of every class", table(Table("Mask AP x 100", ("class", *(row.name for row in rows)), cells)))


def _per_class(row: EngineRow) -> dict[str, float]:
    """AP x 100 of the classes that have ground truth."""
    figures = row.accuracy.mask if row.accuracy else None
    return {name: _POINTS * ap for name, ap in figures.per_class.items() if ap is not None} if figures else {}

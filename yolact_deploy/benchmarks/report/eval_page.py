"""The HTML report of one evaluation: a self-contained file in the style of the benchmark's.

It has no scripts and loads nothing. Figures of AP are x 100.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.report.eval_pictures import picture_parts
from yolact_deploy.benchmarks.report.report_charts import (
    Curve,
    curve_legend,
    difference_bars,
    figure,
    heatmap,
    line_chart,
)
from yolact_deploy.benchmarks.report.report_html import Section, box, document, listing, paragraph, table, text
from yolact_deploy.benchmarks.report.report_style import STYLE
from yolact_deploy.benchmarks.tables import Table, percent
from yolact_deploy.evaluation.error_kinds import BACKGROUND_IOU, RIGHT_IOU
from yolact_deploy.evaluation.insight import Insight, Stratum
from yolact_deploy.evaluation.operating_points import LEAST_OBJECTS, THRESHOLDS

_TITLE = "yolact-deploy evaluation"
#: more classes than this are a chart of confusions instead of a table
_NAMED = 12
_CONFUSIONS = 15
_BACKGROUND, _MISSED = "background", "not detected"
_EXPLAINED = {
    "localization": f"right class, IoU {BACKGROUND_IOU:g} to {RIGHT_IOU:g}",
    "classification": f"wrong class, IoU of at least {RIGHT_IOU:g}",
    "duplicate": "the object has a better detection",
    "background": f"IoU below {BACKGROUND_IOU:g} with every object",
    "both": "wrong class and badly located",
    "missed": "no detection, and no error of another kind",
}


def write_eval_report(
    path: str | os.PathLike[str], name: str, data: str, insight: Insight, pictures: Mapping[int, Path], truth: Any
) -> None:
    """Write the report atomically.

    Args:
        name: of the model or the results
        data: what it was evaluated on, in words
        pictures: files of the images to show, by id; those without one are left out
        truth: checked content of the annotations

    Raises:
        OutputError: the file cannot be written.
    """
    parts = list(picture_parts(insight, pictures, truth))
    sections = [*_sections(insight)]
    if parts:
        sections.append(Section("pictures", "Worst and best pictures", parts))
    page = document(f"{_TITLE}: {name}", _subject(data, insight), _head(insight), sections, STYLE)
    write_bytes(path, page.encode())


def _subject(data: str, insight: Insight) -> str:
    what = "masks" if insight.kind == "mask" else "boxes"
    return f"{insight.accuracy.detections} detections on {data}. Errors, thresholds and pictures are about {what}."


def _head(insight: Insight) -> Iterator[str]:
    accuracy, costs = insight.accuracy, insight.errors
    lines = [
        f"{kind} AP is {100 * ap.ap:.2f} (AP50 {percent(ap.ap50)}, AP75 {percent(ap.ap75)}), AR {percent(ap.ar)}."
        for kind, ap in (("Mask", accuracy.mask), ("Box", accuracy.box))
        if ap is not None and ap.ap is not None
    ]
    pooled, threshold = insight.counts.pooled(), insight.thresholds.overall
    place = round(100 * threshold)
    precision, recall, f1 = (100 * getattr(pooled, n)[place, 0] for n in ("precision", "recall", "f1"))
    lines.append(
        f"At a score above {threshold:g}, the best for all classes together, precision is {_number(precision)} %, "
        f"recall {_number(recall)} % and F1 {_number(f1)} %."
    )
    worst = max(costs.costs, key=lambda kind: costs.costs[kind])
    if costs.costs[worst] > 0:
        lines.append(
            f"The errors that cost most are of the kind {worst}: {costs.costs[worst]:.2f} points of AP50 "
            f"({costs.counts[worst]} of them)."
        )
    yield box(listing(lines))
    yield paragraph("The score threshold with the best F1 of each class, to paste into predict or serve:")
    yield f"<pre>--score-threshold {text(_quoted(insight.thresholds.option(insight.names)))}</pre>"
    yield paragraph(
        f"Classes with fewer than {LEAST_OBJECTS} objects take the threshold of all. Thresholds that were chosen on "
        "these pictures do slightly better here than elsewhere.",
        "note",
    )


def _quoted(option: str) -> str:
    """For a shell, if a class name has a space."""
    import shlex

    return shlex.quote(option)


def _sections(insight: Insight) -> Iterator[Section]:
    yield Section("ap", "Average precision and recall", [table(t) for t in _ap_tables(insight)])
    yield Section("scores", "Precision, recall and F1 over the score", list(_score_parts(insight)))
    yield Section("errors", "Errors by kind", list(_error_parts(insight)))
    yield Section("confusion", "Confusion matrix", list(_confusion_parts(insight)))
    yield Section("strata", "By size and crowding", list(_strata_parts(insight)))
    yield Section("classes", "Per class", [table(_class_table(insight))])


def _ap_tables(insight: Insight) -> Iterator[Table]:
    kinds = [(k, a) for k, a in (("box", insight.accuracy.box), ("mask", insight.accuracy.mask)) if a is not None]
    columns = ("", "AP", "AP50", "AP75", "S", "M", "L", "AR")
    rows = [(k, *map(percent, (a.ap, a.ap50, a.ap75, a.small, a.medium, a.large, a.ar))) for k, a in kinds]
    yield Table("COCO average precision x 100; S, M, L by size", columns, rows)
    ious = list(kinds[0][1].per_iou) if kinds else []
    rows = [(k, *(percent(a.per_iou.get(iou)) for iou in ious)) for k, a in kinds]
    yield Table("AP x 100 at each IoU threshold", ("", *ious), rows)


def _score_parts(insight: Insight) -> Iterator[str]:
    pooled = insight.counts.pooled()
    named = [("precision", pooled.precision), ("recall", pooled.recall), ("F1", pooled.f1)]
    curves = []
    for name, values in named:
        known = ~np.isnan(values[:, 0])
        curves.append(Curve(name, THRESHOLDS[known], 100 * values[known, 0]))
    label = "Precision, recall and F1 of all classes together over the score threshold"
    chart = line_chart(curves, 1.0, 100, "score above", "%", label)
    yield figure(chart + curve_legend([name for name, _ in named]))
    yield paragraph(
        f"All classes together, at an IoU of {RIGHT_IOU:g}: a detection is right if it hits an object of its class "
        "that no better one has taken. Detections on crowds do not count.",
        "note",
    )


def _error_parts(insight: Insight) -> Iterator[str]:
    errors = insight.errors
    most = max(*errors.costs.values(), 1e-9)
    rows = sorted(errors.costs.items(), key=lambda item: -item[1])
    bars = difference_bars(rows, 0.0, most, "points of AP50")
    yield figure(bars, "Points of AP50 that would be gained if errors of this kind were corrected, and nothing else")
    cells = [(kind, str(errors.counts[kind]), f"{cost:.2f}", _EXPLAINED[kind]) for kind, cost in rows]
    yield table(Table("Errors by kind", ("kind", "errors", "points", "meaning"), cells))
    yield paragraph(
        f"The kinds and their costs are those of TIDE, whose AP50 here is {errors.ap50:.2f}: it counts a class without "
        "objects as 0 if it is detected, so removing all its detections raises the mean. "
        "Detections of every score count, so many errors may cost little. Without "
        f"wrong detections AP50 would gain {errors.false_positives:.2f} points, without objects that are not hit "
        f"{errors.false_negatives:.2f}.",
        "note",
    )


def _confusion_parts(insight: Insight) -> Iterator[str]:
    matrix, names = insight.confusion, insight.names
    used = [i for i in range(len(names)) if matrix[i].any() or matrix[:, i].any()]
    last = len(names)
    rows, columns = [*(names[i] for i in used), _BACKGROUND], [*(names[i] for i in used), _MISSED]
    part = matrix[np.ix_([*used, last], [*used, last])]
    if len(used) <= _NAMED:
        cells = [(row, *map(str, counts)) for row, counts in zip(rows, part.tolist(), strict=True)]
        yield table(Table("Objects (rows) and what they are reported as", ("object", *columns), cells))
    else:
        yield figure(
            heatmap(rows, columns, part, "Confusion matrix"),
            f"Rows are the {len(used)} classes of objects and, last, the background; columns, in the same order, are "
            "what they are reported as and, last, what is not detected. Darker is a larger share of the row.",
        )
    pairs = [(int(part[r, c]), rows[r], columns[c]) for r, c in np.argwhere(part > 0).tolist() if r != c]
    wrong = [p for p in sorted(pairs, key=lambda p: -p[0]) if p[1] != _BACKGROUND and p[2] != _MISSED][:_CONFUSIONS]
    if wrong:
        cells = [(true, reported, str(count)) for count, true, reported in wrong]
        yield table(Table("Most frequent confusions", ("object", "reported as", "times"), cells))
    yield paragraph(
        "At the thresholds above. Right detections are counted first; one that is left takes a free object of another "
        f"class that it overlaps with an IoU of {RIGHT_IOU:g} or more, else it lies on background.",
        "note",
    )


def _strata_parts(insight: Insight) -> Iterator[str]:
    yield table(_strata_table("Objects by size (pixels of COCO's ranges)", "size", insight.sizes))
    yield table(_strata_table("Objects by their largest box IoU with another object", "crowding", insight.crowding))
    yield table(_strata_table("Pictures by their number of objects", "in a picture", insight.pictures, ap=True))
    yield paragraph("Recall at the thresholds above and an IoU of 0.5; AP over all of COCO's thresholds.", "note")


def _strata_table(title: str, what: str, strata: Sequence[Stratum], *, ap: bool = False) -> Table:
    columns = (what, "pictures", "objects", "recall %", *(("AP",) if ap else ()))
    rows = [
        (s.name, str(s.pictures), str(s.objects), percent(s.recall), *((percent(s.ap),) if ap else ())) for s in strata
    ]
    return Table(title, columns, rows)


def _class_table(insight: Insight) -> Table:
    counts, each = insight.counts, insight.thresholds.each()
    ap = (insight.accuracy.mask if insight.kind == "mask" else insight.accuracy.box) or insight.accuracy.box
    per_class = list(ap.per_class.values()) if ap is not None else []
    rows = []
    for label, name in enumerate(insight.names):
        objects = int(counts.objects[label])
        place = round(100 * each[label])
        if not objects and not counts.wrong[place, label]:
            continue
        figures = [100 * getattr(counts, n)[place, label] for n in ("precision", "recall", "f1")]
        value = per_class[label] if label < len(per_class) else None
        rows.append((name, str(objects), percent(value), f"{each[label]:g}", *map(_number, figures)))
    columns = ("class", "objects", f"{insight.kind} AP", "threshold", "precision %", "recall %", "F1 %")
    return Table("At the best threshold of each class", columns, rows)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1f}"

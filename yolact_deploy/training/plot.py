"""The curves and the confusion matrix of a training as pictures, if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import atomic_write
from yolact_deploy.evaluation.confusion import BACKGROUND, Confusion
from yolact_deploy.evaluation.error_kinds import RIGHT_IOU

#: classes that a matrix shows; of more, those with the most mistakes
_MOST_CLASSES = 30


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw losses and AP of the records of a log; False without matplotlib, or if there is nothing to draw."""
    steps = [r for r in records if r["event"] == "step" and r["losses"]]
    if not steps:
        return False
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in steps[-1]["losses"]:
        left.plot([r["step"] for r in steps], [r["losses"].get(name) for r in steps], label=name, linewidth=1)
    left.set(xlabel="iteration", ylabel="loss", yscale="log")
    left.legend()
    _draw_ap(right, [r for r in records if r["event"] == "evaluation"])
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True


def _draw_ap(axes: Any, evaluations: Sequence[Mapping[str, Any]]) -> None:
    for kind in ("box", "mask"):
        points = [(r["step"], r[kind]["ap"]) for r in evaluations if r.get(kind) and r[kind]["ap"] is not None]
        axes.plot(*zip(*points, strict=True), "o-", label=f"{kind} AP") if points else None
    axes.set(xlabel="iteration", ylabel="AP", ylim=(0, 1))
    axes.legend() if evaluations else None


def draw_confusion(confusion: Confusion, path: Path) -> bool:
    """Draw a confusion matrix, each row as shares of the objects of a class; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    counts, names = _most_confused(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, 3.5 + 0.42 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="Blues"), label="share of the row", shrink=0.8)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, column in np.argwhere(counts).tolist():
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    few = f", the {len(names) - 1} classes with the most mistakes" if len(names) <= len(confusion.names) else ""
    axes.set(xlabel="detected", ylabel="annotated", title=f"score {confusion.score:g}, mask IoU {RIGHT_IOU:g}{few}")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return True


def _most_confused(confusion: Confusion) -> tuple[Any, list[str]]:
    """Counts and names of the classes to show, background last."""
    counts = confusion.counts
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    order = np.sort(np.argsort(-wrong[:-1], kind="stable")[:_MOST_CLASSES])
    kept = [*order.tolist(), len(counts) - 1]
    return counts[np.ix_(kept, kept)], [*(confusion.names[i] for i in order), BACKGROUND]

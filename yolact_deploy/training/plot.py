"""The curves of a training as a picture, if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import atomic_write


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

"""Tables of the cost of blocks and layers in a lower precision, and of the result of a layer search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from yolact_deploy.benchmarks.tables import Table
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.evaluation.trunk_comparison import sqnr_db
from yolact_deploy.export.search.layer_search import SearchResult
from yolact_deploy.export.search.trials import HEADS, Measured

_Costs = Sequence[tuple[str, Measured]]


def cost_tables(precision: str, images: int, blocks: _Costs, layers: _Costs, most: int = 10) -> list[Table]:
    """The most expensive blocks and layers: decibels of each output, matched detections, and lost AP if known."""
    shown = [(word, costs) for word, costs in (("Block", blocks), ("Layer", layers)) if costs]
    return [
        Table(
            f"{word}s in {precision} that cost most, each alone, on {images} images (SQNR in dB)",
            (word.lower(), *HEADS, "matched %", *(f"{kind} AP x 100" for kind in costs[0][1].ap)),
            [(name, *_figures(cost)) for name, cost in costs[:most]],
        )
        for word, costs in shown
    ]


def _figures(cost: Measured) -> Iterator[str]:
    for name in HEADS:
        decibels = sqnr_db(cost.relative_rms[name])
        yield f"{decibels:.1f}" if math.isfinite(decibels) else "exact" if decibels > 0 else "not finite"
    yield "" if cost.agreement is None else f"{100 * cost.agreement:.2f}"
    for kind, value in cost.ap.items():
        yield f"{100 * value:.2f} ({0 - 100 * cost.ap_drop[kind]:+.2f})"


def search_table(result: SearchResult) -> Table:
    """FP32, all layers in the precision, and the result of the search, on the judged images."""
    kinds = sorted(result.fp32.ap)
    rows = [
        ("all in FP32", str(result.layers), *_sides(result.fp32, {}, kinds)),
        (
            f"all in {result.precision}",
            str(len(result.always)),
            *_sides(result.lowered, result.lowered_intervals, kinds),
        ),
    ]
    if result.keep_fp32:
        kept = str(len(result.always) + len(result.keep_fp32))
        rows.append(("result", kept, *_sides(result.mixed, result.mixed_intervals, kinds)))
    if result.signed is not None:
        kept = str(len(result.always) + len(result.keep_fp32))
        rows.append(("with signed activations", kept, *_sides(result.signed, result.signed_intervals, kinds)))
    columns = ["layers", "in FP32", "agrees %"]
    for kind in kinds:
        columns += [f"{kind} AP", "change", "95 %"]
    return Table(f"AP x 100 and agreement with FP32 on {result.judged_images} images ({result.target})", columns, rows)


def _sides(measured: Measured, intervals: dict[str, Interval], kinds: Sequence[str]) -> Iterator[str]:
    yield "" if measured.agreed is None else f"{100 * measured.agreed:.2f}"
    for kind in kinds:
        interval = intervals.get(kind)
        yield f"{100 * measured.ap[kind]:.2f}"
        yield f"{0 - 100 * measured.ap_drop[kind]:+.2f}" if interval else ""
        yield f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}" if interval else ""


def search_notes(result: SearchResult) -> Iterator[str]:
    """Limits of what the table shows, one sentence each."""
    if result.target.max_ap_drop is None:
        return
    wide = {
        kind: 100 * -i.low for kind, i in result.mixed_intervals.items() if -100 * i.low > result.target.max_ap_drop
    }
    for kind, points in wide.items():
        yield (
            f"{result.judged_images} images cannot exclude a loss of {points:.2f} points of {kind} AP: judge on more "
            "for more certainty"
        )

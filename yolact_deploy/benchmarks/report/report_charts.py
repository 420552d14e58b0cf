"""Charts of the HTML report, as static SVG.

Positions are percentages of the chart and sizes are pixels, so a chart fills the width of the page and its text stays
readable on a phone. Colors come from the style sheet. The charts know nothing about benchmarks: times are ms, the rest
are plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.benchmarks.report.report_html import text
from yolact_deploy.benchmarks.report.report_style import DASHES, PALETTE

_BINS = 100
_STRIP_HEIGHT, _BAR_HEIGHT = 44, 20
_HEATMAP_HEIGHT, _ROW_HEIGHT = 420, 15
#: letters of a name beside a row of the heatmap
_LONGEST_NAME = 16
#: least height of a bar in percent, for a single call among many
_LEAST = 5
#: end of a histogram, as a multiple of the largest p99; its last bin holds what is above
_TAIL = 1.25
#: percentiles, and the dashes of their lines
_QUANTILES = {50: "", 90: ' stroke-dasharray="5 3"', 99: ' stroke-dasharray="2 2"'}
#: outlines around 0, 0 in pixels, for different kinds of points
SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "M-4.5 -4.5h9v9h-9z",
    "M0 -6l6 6l-6 6l-6 -6z",
    "M0 -5.5l6 10.5h-12z",
    "M0 5.5l6 -10.5h-12z",
    "M-6 -2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
)
_MEASURED = "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0 -14 0z"
#: width and height in pixels on a phone, where labels are closest
_NARROW = (280, 300)


def figure(inner: str, caption: str = "") -> str:
    return f"<figure>\n{inner}\n" + (f"<figcaption>{text(caption)}</figcaption>\n" if caption else "") + "</figure>"


def _svg(height: int, parts: Iterable[str], label: str) -> str:
    content = "\n".join(parts)
    return f'<svg height="{height}" role="img" aria-label="{text(label)}">\n{content}\n</svg>'


def _strip(name: str, words: str, height: int, parts: Iterable[str], label: str) -> str:
    """A chart across the page under a name and its figures in words."""
    return (
        f'<div class="strip"><p><b>{text(name)}</b> <span class="axis">{words}</span></p>\n'
        f"{_svg(height, parts, label)}</div>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` + 1."""
    rough = (high - low) / most or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, few enough for a phone."""
    decades = math.log10(high / low)
    mantissas = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for p in powers for m in mantissas if low <= (v := round(m * 10.0**p, 12)) <= high]


def _x_axis(marks: Mapping[float, str], title: str) -> list[str]:
    """Labels under the chart at percentages of its width."""
    parts = [
        f'<text x="{x:.2f}%" y="100%" dy="18" text-anchor="middle">{text(label)}</text>' for x, label in marks.items()
    ]
    return [*parts, f'<text x="100%" y="100%" dy="36" text-anchor="end">{text(title)}</text>']


def _y_axis(low: float, high: float, title: str) -> list[str]:
    parts = []
    for value in ticks(low, high):
        y = 100 * (high - value) / (high - low)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>')
        parts.append(f'<text x="0" dx="-8" y="{y:.2f}%" dy="4" text-anchor="end">{value:g}</text>')
    return [*parts, f'<text x="0" dx="-40" y="0" dy="-12">{text(title)}</text>']


# -- points ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Points of one kind: x above 0, y, and optionally a few letters beside each.

    Attributes:
        shape: index of the outline in ``SHAPES``
        measured: drawn filled instead of hollow
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    labels: Sequence[str] = ()
    shape: int = 0
    measured: bool = False

    @property
    def outline(self) -> tuple[str, str]:
        """Class and path."""
        return ("measured", _MEASURED) if self.measured else ("hollow", SHAPES[self.shape % len(SHAPES)])


def scatter(groups: Sequence[Points], x_title: str, y_title: str, label: str, *, floor: float, margin: float) -> str:
    """Points over a logarithmic axis, with a legend.

    Args:
        floor: lower end of the axis, at least
        margin: space above and below the points, in units of y
    """
    xs, ys = [x for g in groups for x in g.xs], [y for g in groups for y in g.ys]
    left, right = min(xs) / 1.3, max(xs) * 1.3
    low, high = max(floor, min(ys) - margin), max(ys) + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return 100 * math.log(x / left) / math.log(right / left), 100 * (high - y) / (high - low)

    parts = _y_axis(low, high, y_title)
    parts += _x_axis({place(v, low)[0]: f"{v:g}" for v in log_ticks(left, right)}, x_title)
    named: list[tuple[float, float, str]] = []
    others: list[tuple[float, float]] = []
    for group in sorted(groups, key=lambda g: g.measured):  # measured points lie on top
        kind, path = group.outline
        for i, (x, y) in enumerate(zip(group.xs, group.ys, strict=True)):
            px, py = place(x, y)
            title = f"{group.name}: {x:.3g} {x_title}, {y:.2f} {y_title}"
            parts.append(
                f'<svg x="{px:.2f}%" y="{py:.2f}%"><path class="{kind}" d="{path}"><title>{text(title)}</title></path>'
                "</svg>"
            )
            if group.labels:
                named.append((px, py, group.labels[i]))
            else:
                others.append((px, py))
    parts += _labels(named, others)
    plot = f'<div class="plot">{_svg(_NARROW[1], parts, label)}</div>'
    return plot + _legend((g.name, f'<path class="{g.outline[0]}" d="{g.outline[1]}"/>') for g in groups)


def _labels(named: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]]) -> list[str]:
    """Each label beside its point, on the side with the fewest other points and labels."""
    scale_x, scale_y = _NARROW[0] / 100, _NARROW[1] / 100
    taken = [(x * scale_x, y * scale_y) for x, y in (*others, *((x, y) for x, y, _ in named))]
    parts = []
    for x, y, letters in named:
        cx, cy = x * scale_x, y * scale_y

        def crowd(offset: tuple[int, int], cx: float = cx, cy: float = cy) -> int:
            return sum(math.hypot(cx + offset[0] - tx, cy + offset[1] - ty) < 13 for tx, ty in taken)

        dx, dy = min(((15, 0), (-15, 0), (0, -15), (0, 15), (13, -13), (13, 13), (-13, -13), (-13, 13)), key=crowd)
        taken.append((cx + dx, cy + dy))
        parts.append(
            f'<text class="name" x="{x:.2f}%" y="{y:.2f}%" dx="{dx}" dy="{dy + 4}" text-anchor="middle">'
            f"{text(letters)}</text>"
        )
    return parts


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    """Names, each with a small picture drawn around 0, 0."""
    items = "\n".join(
        f'<li><svg aria-hidden="true" viewBox="-11 -6 22 12">{picture}</svg>{text(name)}</li>'
        for name, picture in entries
    )
    return f'\n<ul class="legend">\n{items}\n</ul>'


def _swatch(index: int) -> str:
    return f'<rect class="fill c{index % len(PALETTE)}" x="-8" y="-6" width="16" height="12"/>'


# -- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """x and y of one line, in the units of the axes."""

    name: str
    xs: NDArray[np.float64]
    ys: NDArray[np.float64]


def curve_color(index: int) -> str:
    """Class and dashes of a line: without the gray of the stages, and different for neighbors."""
    dash = DASHES[index % len(DASHES)]
    return f'class="curve c{2 + index % (len(PALETTE) - 2)}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def line_chart(curves: Sequence[Curve], x_max: float, y_max: float, x_title: str, y_title: str, label: str) -> str:
    """Lines over axes that begin at 0; the legend is :func:`curve_legend`."""
    parts = _y_axis(0, y_max, y_title)
    parts += _x_axis({100 * v / x_max: f"{v:g}" for v in ticks(0, x_max, 5)}, x_title)
    parts.append('<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">')
    for i, curve in enumerate(curves):
        xs, ys = 100 * np.minimum(curve.xs / x_max, 1), 100 * (1 - curve.ys / y_max)
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
        parts.append(f'<polyline {curve_color(i)} points="{points}"><title>{text(curve.name)}</title></polyline>')
    parts.append("</svg>")
    return f'<div class="plot">{_svg(240, parts, label)}</div>'


def curve_legend(names: Sequence[str]) -> str:
    return _legend((name, f'<path {curve_color(i)} d="M-11 0h22"/>') for i, name in enumerate(names))


# -- times ----------------------------------------------------------------------------------------------------------


def histograms(rows: Sequence[tuple[str, Sequence[float] | NDArray[np.float64]]]) -> str:
    """A histogram of times for each name over one common axis from 0, with p50, p90 and p99."""
    samples = [(name, np.asarray(values)) for name, values in rows]
    largest = max(float(values.max()) for _, values in samples)
    end = min(largest, _TAIL * max(float(np.percentile(values, 99)) for _, values in samples)) or 1.0
    edges = np.linspace(0, end, _BINS + 1)
    parts = []
    for name, values in samples:
        counts = np.histogram(np.minimum(values, end), edges)[0]
        tall = np.where(counts > 0, np.maximum(100 * counts / counts.max(), _LEAST), 0).tolist()
        bars = [
            f'<rect class="fill pale" x="{100 * i / _BINS:.2f}%" width="{100 / _BINS - 0.15:.2f}%" '
            f'y="{100 - t:.1f}%" height="{t:.1f}%"/>'
            for i, t in enumerate(tall)
            if t
        ]
        quantiles = {q: float(np.percentile(values, q)) for q in _QUANTILES}
        for q, style in _QUANTILES.items():
            x = 100 * min(quantiles[q], end) / end
            bars.append(f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"{style}/>')
        bars.append('<line class="grid" x1="0" x2="100%" y1="100%" y2="100%"/>')
        words = ", ".join(f"p{q} {value:.1f}" for q, value in quantiles.items()) + " ms"
        label = f"Histogram of {name}: {words}"
        parts.append(_strip(name, f"{words}, {len(values)} calls", _STRIP_HEIGHT, bars, label))
    axis = _svg(1, _time_axis(end, cut=largest > end), "Axis in milliseconds")
    legend = _legend((f"p{q}", f'<path class="mark" d="M0 -6v12"{style}/>') for q, style in _QUANTILES.items())
    return "\n".join((*parts, f'<div class="ticks">{axis}</div>{legend}'))


def _time_axis(end: float, *, cut: bool) -> list[str]:
    parts = ['<text x="0" y="0" dy="16">0 ms</text>']
    parts += [
        f'<text x="{100 * v / end:.2f}%" y="0" dy="16" text-anchor="middle">{v:g}</text>' for v in ticks(0, end, 5)[1:]
    ]
    if cut:
        parts.append('<text x="100%" y="0" dy="32" text-anchor="end">the last bar holds all slower calls</text>')
    return parts


def stage_bars(rows: Sequence[tuple[str, Mapping[str, float], float]]) -> str:
    """A bar for each name, divided into stages, with the time outside all stages hatched (all mean ms)."""
    names = list(dict.fromkeys(stage for _, stages, _ in rows for stage in stages))
    longest = max(sum(stages.values()) + max(0.0, rest) for _, stages, rest in rows) or 1.0
    parts = []
    for name, stages, rest in rows:
        left, bar = 0.0, []
        for stage, spent in (*stages.items(), (_REST, max(0.0, rest))):
            width = 100 * spent / longest
            kind = 'fill="url(#hatch)"' if stage == _REST else f'class="fill c{names.index(stage) % len(PALETTE)}"'
            bar.append(
                f'<rect {kind} x="{left:.3f}%" width="{width:.3f}%" height="100%">'
                f"<title>{text(f'{name}: {stage} {spent:.2f} ms')}</title></rect>"
            )
            left += width
        whole = sum(stages.values()) + rest
        words = f"{whole:.1f} ms, of which {rest:.1f} in no stage ({100 * rest / whole:.1f} %)"
        if rest < 0:
            words = f"{whole:.1f} ms, {-rest:.1f} less than its stages together, which overlap"
        label = f"{name}: {words}; " + ", ".join(f"{stage} {spent:.1f}" for stage, spent in stages.items())
        parts.append(_strip(name, words, _BAR_HEIGHT, bar, label))
    hatch = '<rect fill="url(#hatch)" x="-8" y="-6" width="16" height="12"/>'
    legend = _legend([*((stage, _swatch(i)) for i, stage in enumerate(names)), (_REST, hatch)])
    return _HATCH + "\n".join(parts) + legend


_REST = "unaccounted"
_HATCH = (
    '<svg width="0" height="0" style="width:0;position:absolute" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="fill c0" width="2.5" height="6"/></pattern></defs></svg>\n'
)


# -- tables of counts ----------------------------------------------------------------------------------------------


def heatmap(rows: Sequence[str], columns: Sequence[str], counts: NDArray[np.int64], label: str) -> str:
    """A rectangle for each count, darker the larger its share of its row; the names of rows stand on the left.

    Args:
        counts: [rows, columns]
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    step_x, step_y = 100 / len(columns), 100 / len(rows)
    parts = []
    for r, row in enumerate(rows):
        short = row if len(row) <= _LONGEST_NAME else f"{row[: _LONGEST_NAME - 1]}…"
        parts.append(f'<text x="0" dx="-8" y="{(r + 0.5) * step_y:.3f}%" dy="4" text-anchor="end">{text(short)}</text>')
    for r, c in np.argwhere(counts > 0).tolist():
        title = f"{rows[r]}, reported as {columns[c]}: {counts[r, c]} ({100 * shares[r, c]:.0f} %)"
        parts.append(
            f'<rect class="fill" fill-opacity="{0.12 + 0.88 * shares[r, c]:.2f}" x="{c * step_x:.3f}%" '
            f'y="{r * step_y:.3f}%" width="{step_x:.3f}%" height="{step_y:.3f}%"><title>{text(title)}</title></rect>'
        )
    edges = '<rect fill="none" stroke="var(--line)" width="100%" height="100%"/>'
    height = max(_HEATMAP_HEIGHT, _ROW_HEIGHT * len(rows))
    return f'<div class="heatmap">{_svg(height, [edges, *parts], label)}</div>'


# -- differences ----------------------------------------------------------------------------------------------------


def difference_bars(rows: Sequence[tuple[str, float]], low: float, high: float, unit: str) -> str:
    """A bar for each name from 0 to the left (worse) or to the right (better).

    Args:
        low: lower end of the axis, at most 0, common to several charts
        high: upper end of the axis, at least 0
    """
    scale = 100 / (high - low or 1.0)
    parts = []
    for name, value in rows:
        left, width = (min(value, 0.0) - low) * scale, abs(value) * scale
        bar = [
            f'<rect class="fill {"c4" if value < 0 else "c2"}" x="{left:.2f}%" width="{width:.2f}%" height="100%"/>',
            f'<line class="grid" x1="{-low * scale:.2f}%" x2="{-low * scale:.2f}%" y1="-3" y2="17"/>',
        ]
        svg = _svg(14, bar, f"{name}: {value:+.2f} {unit}")
        parts.append(f"<span>{text(name)}</span><span>{svg}</span><span>{value:+.2f}</span>")
    return '<div class="bars">\n' + "\n".join(parts) + "\n</div>"


def intervals(rows: Sequence[tuple[str, float, float, float]], title: str) -> str:
    """Value, lower and upper bound for each name over a common axis that shows 0."""
    low, high = min(0.0, *(r[2] for r in rows)), max(0.0, *(r[3] for r in rows))
    spare = 0.06 * (high - low) or 1.0
    low, high = low - spare, high + spare

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    parts = []
    for name, value, lower, upper in rows:
        words = f"{value:+.2f} ({lower:+.2f} to {upper:+.2f})"
        bar = [
            f'<line class="grid" x1="{x(0)}" x2="{x(0)}" y1="-4" y2="24"/>',
            f'<line stroke="var(--accent)" stroke-width="3" x1="{x(lower)}" x2="{x(upper)}" y1="50%" y2="50%"/>',
            f'<svg x="{x(value)}" y="50%"><path class="measured" d="{SHAPES[0]}"/></svg>',
        ]
        parts.append(_strip(name, words, _BAR_HEIGHT, bar, f"{name}: {words}"))
    axis = [
        f'<text x="{x(v)}" y="0" dy="16" text-anchor="middle">{f"{v:+g}" if v else 0}</text>'
        for v in ticks(low, high, 5)
    ]
    return "\n".join((*parts, f'<div class="ticks">{_svg(1, axis, title)}</div>'))

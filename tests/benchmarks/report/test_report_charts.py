"""Charts draw what they are given, at the right places, in colors that can be seen."""

from __future__ import annotations

import re

import numpy as np
import pytest

from yolact_deploy.benchmarks.report import report_charts as charts
from yolact_deploy.benchmarks.report import report_style as style


def test_ticks() -> None:
    assert charts.ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert charts.ticks(27.3, 31.9) == [28, 29, 30, 31]
    assert charts.ticks(0, 0.7) == pytest.approx([0, 0.2, 0.4, 0.6])
    assert charts.ticks(-3, 2, 5) == [-3, -2, -1, 0, 1, 2]
    assert charts.ticks(5, 5) == [5]
    assert charts.log_ticks(1.1, 6) == [1.5, 2, 3, 4, 5]
    assert charts.log_ticks(0.9, 40) == [1, 2, 5, 10, 20]
    assert charts.log_ticks(0.8, 700) == [1, 3, 10, 30, 100, 300]
    for low in np.geomspace(1e-3, 1e3, 50):
        for factor in (1.7, 3, 30, 3000):
            assert 1 <= len(charts.log_ticks(low, low * factor)) <= 9


def test_scatter_places_points() -> None:
    measured = charts.Points("ours", [10, 1000], [20, 40], ["A", "B"], measured=True)
    other = charts.Points("theirs", [100], [30], shape=2)
    text = charts.scatter([measured, other], "images/s", "mask AP", "label", floor=0, margin=2)
    plot = text[: text.index("legend")]
    points = re.findall(r'<svg x="([\d.]+)%" y="([\d.]+)%"><path class="(\w+)" d="([^"]+)"', plot)
    (x1, y1, kind1, _), (x2, y2, kind2, _), (x3, y3, *_) = sorted(points, key=lambda p: float(p[0]))
    assert (kind1, kind2) == ("measured", "hollow")
    assert float(x2) == pytest.approx(50, abs=0.1), "the axis is logarithmic"
    assert float(x1) == pytest.approx(100 - float(x3), abs=0.1)
    assert float(y2) == pytest.approx(50, abs=0.1)
    assert float(y1) == pytest.approx(100 * 22 / 24, abs=0.1)
    assert float(y3) == pytest.approx(100 * 2 / 24, abs=0.1)
    assert [p[2] for p in points] == ["hollow", "measured", "measured"], "what was measured lies on top"
    assert "ours: 10 images/s, 20.00 mask AP" in plot
    assert re.findall(r'class="name"[^>]*>(\w+)<', plot) == ["A", "B"]


def test_labels_do_not_lie_on_each_other() -> None:
    rng = np.random.default_rng(0)
    named = [(50 + x, 50 + y, "A") for x, y in rng.uniform(-4, 4, (6, 2)).tolist()]
    parts = charts._labels(named, [])
    places = [
        (x * 2.8 + int(dx), y * 3 + int(dy) - 4)
        for (x, y, _), part in zip(named, parts, strict=True)
        for dx, dy in re.findall(r'dx="(-?\d+)" dy="(-?\d+)"', part)
    ]
    apart = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(places) for b in places[:i]]
    assert len(places) == 6
    assert min(apart) > 8


def test_histogram_bars_stand_where_the_times_are() -> None:
    text = charts.histograms([("fast", [10.0] * 90 + [20.0] * 10), ("slow", [100.0] * 100)])
    fast, slow = text.split('<div class="strip">')[1:]
    bars = re.findall(r'<rect class="fill pale" x="([\d.]+)%" width="[\d.]+%" y="([\d.]+)%" height="([\d.]+)%"', fast)
    assert [(float(x) // 1, float(h)) for x, _, h in bars] == [(10, 100.0), (20, 11.1)]
    assert all(float(y) + float(h) == pytest.approx(100) for _, y, h in bars)
    assert len(re.findall(r"<rect", slow.split('class="ticks"')[0])) == 1
    assert "p50 10.0, p90 11.0, p99 20.0 ms, 100 calls" in fast
    assert re.findall(r'<line class="mark" x1="([\d.]+)%"', fast) == ["10.00", "11.00", "20.00"]
    assert "slower calls" not in text


def test_an_outlier_does_not_squeeze_the_histogram() -> None:
    text = charts.histograms([("a", [*np.linspace(10, 20, 199), 5000.0])])
    assert "the last bar holds all slower calls" in text
    assert ">5000<" not in text
    assert len(re.findall("<rect", text)) > 20


def test_stage_bars() -> None:
    rows = [("a", {"decode": 10.0, "network": 60.0}, 30.0), ("b", {"network": 40.0, "upload": 10.0}, -5.0)]
    text = charts.stage_bars(rows)
    a, b = text.split('<div class="strip">')[1:]
    b = b.split('<ul class="legend"')[0]
    found = re.findall(r'<rect (.*?) x="([\d.]+)%" width="([\d.]+)%"', a)
    assert [(x, width) for _, x, width in found] == [("0.000", "10.000"), ("10.000", "60.000"), ("70.000", "30.000")]
    assert found[2][0] == 'fill="url(#hatch)"'
    assert "100.0 ms, of which 30.0 in no stage (30.0 %)" in a
    color = found[1][0]
    assert color in b, "a stage has one color in all bars"
    assert "45.0 ms, 5.0 less than its stages together, which overlap" in b
    assert re.findall(r"</svg>([\w-]+)</li>", text) == ["decode", "network", "upload", "unaccounted"]


def test_line_chart() -> None:
    curve = charts.Curve("a", np.array([0.0, 5.0, 20.0]), np.array([0.0, 50.0, 100.0]))
    text = charts.line_chart([curve, curve], 10, 100, "ms", "%", "label")
    assert re.findall(r'points="([^"]+)"', text) == ["0.00,100.00 50.00,50.00 100.00,0.00"] * 2
    first, second = re.findall(r"<polyline (.*?) points", text)
    assert first != second
    legend = charts.curve_legend(["a", "b"])
    assert first in legend
    assert second in legend
    assert "stroke-dasharray" in second, "lines differ without color, too"


def test_difference_bars() -> None:
    text = charts.difference_bars([("cat", -4.0), ("dog", 2.0)], -6, 2, "points")
    bars = re.findall(r'<rect class="fill (c\d)" x="([\d.]+)%" width="([\d.]+)%"', text)
    assert bars == [("c4", "25.00", "50.00"), ("c2", "75.00", "25.00")]
    assert "cat: -4.00 points" in text


def test_intervals_show_zero() -> None:
    text = charts.intervals([("a", -0.5, -1.0, -0.25)], "points")
    zero = re.search(r'class="grid" x1="([\d.]+)%"', text)
    line = re.search(r'stroke-width="3" x1="([\d.]+)%" x2="([\d.]+)%"', text)
    assert zero
    assert line
    low, high = map(float, line.groups())
    assert 0 < low < high < float(zero[1]) < 100
    assert "-0.50 (-1.00 to -0.25)" in text


def luminance(color: str) -> float:
    values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colors_can_be_seen_on_light_and_dark() -> None:
    for background in style.BACKGROUNDS:
        for color in (*style.PALETTE, style.ACCENT, style.ALARM):
            assert contrast(color, background) >= 3, (color, background)
    for scheme, background in zip((style._LIGHT, style._DARK), style.BACKGROUNDS, strict=True):
        colors = dict(re.findall(r"--(\w+): (#\w+);", scheme))
        for name in ("ink", "faint"):
            for behind in (background, colors["panel"]):
                assert contrast(colors[name], behind) >= 4.5, (name, behind)

"""The HTML report of a benchmark: one file that needs nothing else, with pictures side by side."""

from __future__ import annotations

import base64
import html
import itertools
import json
import os
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes
from yolact_deploy.benchmarks.bench import BenchResult, WorstImage
from yolact_deploy.benchmarks.tables import Table, bench_tables, stage_names, warning_lines
from yolact_deploy.preprocess import read_image

PICTURE_WIDTH = 480
_JPEG_QUALITY = 80
#: of all pictures together; base64 makes it a third more
_PICTURE_BYTES = 2_000_000

_BAR_WIDTH = 640
_STAGE_COLOURS = ("#8da0b8", "#e0a458", "#3f72af", "#7fb069", "#c8553d", "#9a6fb0", "#4fb0a5", "#b8a13f", "#d68fb3")
_LEGEND_COLUMNS, _LEGEND_PITCH, _LEGEND_ROW = 5, 110, 16
_BINS = 24

_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.warning { border-left: 4px solid #c8553d; padding-left: .8rem; }
.pictures { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; } figcaption { font-size: .85rem; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
pre { overflow-x: auto; }
"""


def write_report(result: BenchResult, path: str | os.PathLike[str]) -> None:
    """Write the report atomically; raises :class:`OutputError` where the place cannot be written."""
    write_bytes(path, render(result).encode())


def render(result: BenchResult) -> str:
    """The report as HTML text."""
    body = "\n".join(
        [
            "<h1>yolact-deploy benchmark</h1>",
            f"<p>{_text(_summary(result))}</p>",
            *(f'<p class="warning">{_text(line)}</p>' for line in warning_lines(result)),
            *map(_table, bench_tables(result)),
            "<h2>Latency of single calls</h2>",
            _latency_chart(result),
            "<h2>Where the time goes</h2>",
            _stage_chart(result),
            *_pictures(result),
            "<h2>Environment and settings</h2>",
            _table(Table("", ("", ""), [(k, _plain(v)) for k, v in {**result.environment, **result.settings}.items()])),
            "<h2>Runtimes</h2>",
            _table(Table("", ("engine", "runtime"), [(row.name, _plain(row.runtime)) for row in result.rows])),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>yolact-deploy benchmark</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _summary(result: BenchResult) -> str:
    data = result.dataset
    source = data["annotations"] or "pictures without annotations"
    return (
        f"{data['images']} images ({source}) on {result.environment['cpu']}, {result.environment['cores']} cores, "
        f"{result.environment['date'][:10]}. Everything is compared with {result.reference}."
    )


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    title = f"<h2>{_text(table.title)}</h2>\n" if table.title else ""
    return f"{title}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


# -- charts ---------------------------------------------------------------------------------------------------------


def _latency_chart(result: BenchResult) -> str:
    """A histogram for each model over one common axis of milliseconds, with its p50 marked."""
    samples = [np.array(row.latency.samples) for row in result.rows]
    top = max(float(s.max()) for s in samples)
    edges = np.linspace(0, top, _BINS + 1)
    height, step = 60, _BAR_WIDTH / _BINS
    parts = []
    for i, (row, values) in enumerate(zip(result.rows, samples, strict=True)):
        base = (i + 1) * (height + 34)
        counts = np.histogram(values, edges)[0]
        parts += [
            f'<rect x="{j * step:.1f}" y="{base - height * n / counts.max():.1f}" width="{step - 1:.1f}" '
            f'height="{height * n / counts.max():.1f}" fill="{_STAGE_COLOURS[2]}"/>'
            for j, n in enumerate(counts.tolist())
            if n
        ]
        x = row.latency.p50 / top * _BAR_WIDTH
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base - height}" y2="{base}" stroke="{_STAGE_COLOURS[4]}"/>')
        label = f"{row.name}: p50 {row.latency.p50:.1f} ms, mean {row.latency.mean:.1f} ms"
        parts.append(f'<text x="0" y="{base - height - 6}">{_text(label)}</text>')
    bottom = len(samples) * (height + 34)
    parts += [f'<text x="0" y="{bottom + 16}">0</text>']
    parts += [f'<text x="{_BAR_WIDTH}" y="{bottom + 16}" text-anchor="end">{top:.0f} ms</text>']
    return _svg(bottom + 24, parts, "Histogram of the latency of each model")


def _stage_chart(result: BenchResult) -> str:
    """A bar for each model, divided into stages by their mean time."""
    longest = max(sum(row.latency.stages.values()) for row in result.rows) or 1.0
    colours = dict(zip(stage_names(result), itertools.cycle(_STAGE_COLOURS), strict=False))
    parts = []
    for j, (stage, colour) in enumerate(colours.items()):
        x, y = j % _LEGEND_COLUMNS * _LEGEND_PITCH, j // _LEGEND_COLUMNS * _LEGEND_ROW
        parts.append(f'<rect x="{x}" y="{y + 2}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="{y + 11}">{stage}</text>')
    top = 18 + (len(colours) - 1) // _LEGEND_COLUMNS * _LEGEND_ROW
    for i, row in enumerate(result.rows):
        y, left = i * 46 + top + 16, 0.0
        parts.append(f'<text x="0" y="{y - 4}">{_text(row.name)}</text>')
        for stage, spent in row.latency.stages.items():
            width = spent / longest * _BAR_WIDTH
            parts.append(
                f'<rect x="{left:.2f}" y="{y}" width="{width:.2f}" height="18" fill="{colours[stage]}">'
                f"<title>{_text(f'{row.name}: {stage} {spent:.2f} ms')}</title></rect>"
            )
            left += width
    return _svg(len(result.rows) * 46 + top + 2, parts, "Mean time of each stage")


def _svg(height: int, parts: Sequence[str], label: str) -> str:
    content = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {_BAR_WIDTH} {height}" width="{_BAR_WIDTH}" height="{height}" role="img" '
        f'aria-label="{_text(label)}">\n{content}\n</svg>'
    )


# -- pictures -------------------------------------------------------------------------------------------------------


def _pictures(result: BenchResult) -> Iterator[str]:
    """The worst images, what each model found drawn over them, as long as there is room."""
    if not result.worst or len(result.rows) < 2:
        return
    yield "<h2>Where the models disagree most</h2>"
    room = _PICTURE_BYTES
    for worst in result.worst:
        figures = list(_figures(worst, result.reference))
        room -= sum(len(figure) for figure in figures)
        if room < 0:
            yield "<p>Further pictures were left out to keep this file small.</p>"
            return
        yield f"<h3>{_text(worst.image.path.name)}</h3>"
        yield f'<div class="pictures">\n{"".join(figures)}</div>'


def _figures(worst: WorstImage, reference: str) -> Iterator[str]:
    picture = read_image(worst.image.path)
    for name, detections in worst.detections.items():
        caption = f"{name}: {len(detections)} detections"
        if name in worst.agreement:
            a = worst.agreement[name]
            caption += f"; {a.missed} missed, {a.extra} extra, {a.label_flips} of another class than {reference}"
        data = base64.b64encode(_jpeg(detections.draw(picture))).decode("ascii")
        alt = _text(f"{worst.image.path.name}, detections of {name}")
        yield (
            f'<figure><img alt="{alt}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>\n"
        )


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """The picture as JPEG, at most :data:`PICTURE_WIDTH` wide and twice as high."""
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width, 2 * PICTURE_WIDTH / height)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]  # uint8 stays
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()

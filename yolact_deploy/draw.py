"""Detections drawn on an image: tinted masks with an outline, boxes and names. Also their view in a notebook.

Legend: H x W the image. Images are uint8 BGR.
"""

from __future__ import annotations

import base64
import colorsys
import html
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_image
from yolact_deploy.vocabulary import COLORS, HIDDEN, check_word

if TYPE_CHECKING:
    from yolact_deploy.detections import Detections

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

_GOLDEN = 0.618033988749895
_CANVAS = 32
_GRAY: Color = (160, 160, 160)
#: blocks a side that blurring leaves of an object
_BLOCKS = 6
_PREVIEW_SIDE, _PREVIEW_ROWS = 640, 20
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, kw_only=True)
class DrawStyle:
    """How detections are drawn.

    Attributes:
        alpha: opacity of the masks, 0 to 1
        hide: any of "boxes", "scores", "labels" and "masks"
        color: what a color stands for: "instance", "class" or "track"
        blur: make the objects unrecognizable

    Raises:
        InputError: a value out of range.
    """

    alpha: float = 0.45
    hide: frozenset[str] = frozenset()
    color: str = "instance"
    blur: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha: expected 0 <= value <= 1, got {self.alpha}")
        check_word("color", self.color, COLORS)
        for name in self.hide:
            check_word("hide", name, HIDDEN)


def draw_detections(
    image: Image,
    detections: Detections,
    *, alpha: float = 0.45, labels: bool = True, style: DrawStyle | None = None,
) -> Image:  # fmt: skip
    """A copy of the image with the detections drawn on it, lower scores first.

    Args:
        image: uint8 BGR [H, W, 3], the one in which the objects were detected
        alpha: opacity of the masks, 0 to 1
        labels: write class name, track id and score at each box
        style: instead of ``alpha`` and ``labels``

    Raises:
        InputError: not a uint8 BGR image, not of the detections' size, or alpha out of range.
    """
    style = style or DrawStyle(alpha=alpha, hide=frozenset() if labels else frozenset(("labels", "scores")))
    out: Image = check_image(image).copy()
    if out.shape[:2] != (detections.height, detections.width):
        raise InputError(
            f"expected the image of the detections, {detections.width} x {detections.height}, "
            f"got one of {out.shape[1]} x {out.shape[0]}"
        )
    scale = draw_scale(out)
    crops, boxes = detections.crops, detections.pixel_boxes.tolist()
    order = np.argsort(detections.scores, kind="stable")
    colors = _colors(detections, style.color)
    for i in order if style.blur else ():
        _blur_mask(out, crops.crops[i], crops.offsets[i])
    for i in order if "masks" not in style.hide else ():
        _draw_mask(out, crops.crops[i], crops.offsets[i], colors[i], style.alpha, scale)
    # Boxes and names on top of all masks, or a large mask would cover the names of objects in front of it.
    for i in order:
        color, box = colors[i], boxes[i]
        if "boxes" not in style.hide:
            cv2.rectangle(out, box[:2], box[2:], color, max(1, round(1.5 * scale)))
        if text := _caption(detections, int(i), style.hide):
            draw_text(out, text, (box[0], box[1]), color, scale)
    return out


def draw_scale(image: Image) -> float:
    """How large text and lines are on an image, 1 for 720 lines."""
    scale: float = max(0.5, min(image.shape[:2]) / 720)
    return scale


def _colors(detections: Detections, meaning: str) -> list[Color]:
    """The color of each detection; objects without a track id are gray."""
    if meaning == "class":
        return [instance_color(int(label)) for label in detections.labels]
    if meaning == "track" and detections.track_ids is not None:
        return [instance_color(track - 1) if track > 0 else _GRAY for track in detections.track_ids.tolist()]
    return [instance_color(i) for i in range(len(detections))]


def _caption(detections: Detections, index: int, hide: frozenset[str]) -> str:
    parts = []
    if "labels" not in hide:
        if detections.track_ids is not None and detections.track_ids[index] > 0:
            parts.append(f"#{detections.track_ids[index]}")  # apart from the score, with which it could be confused
        parts.append(detections.class_names[detections.labels[index]])
    if "scores" not in hide:
        parts.append(f"{detections.scores[index]:.2f}")
    return " ".join(parts)


def _blur_mask(out: Image, mask: NDArray[np.bool_], offset: Any) -> None:
    """Replace the pixels of an object by a few large blocks, which cannot be undone as a light blur can."""
    if not mask.size:
        return
    x, y = (int(v) for v in offset)
    height, width = mask.shape
    region = out[y : y + height, x : x + width]
    blocks = max(1, min(_BLOCKS, width)), max(1, min(_BLOCKS, height))
    coarse = cv2.resize(region, blocks, interpolation=cv2.INTER_AREA)
    cv2.copyTo(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), mask.view(np.uint8), region)


def preview_png(detections: Detections) -> bytes:
    """The detections on a dark canvas as a PNG of at most 640 pixels a side."""
    height, width = detections.height, detections.width
    drawn = draw_detections(np.full((height, width, 3), _CANVAS, np.uint8), detections)
    scale = min(1.0, _PREVIEW_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.imencode(".png", cv2.resize(drawn, size, interpolation=cv2.INTER_AREA))[1].tobytes()


def preview_html(detections: Detections) -> str:
    """:func:`preview_png` and a table of classes, scores and boxes, best first."""
    shown = detections[:_PREVIEW_ROWS]
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{score:.2f}</td><td>{', '.join(map(str, box))}</td></tr>"
        for name, score, box in zip(shown.names, shown.scores, shown.pixel_boxes.tolist(), strict=True)
    ]
    more = len(detections) - len(shown)
    rest = f"<p>... and {more} more</p>" if more else ""
    picture = base64.b64encode(preview_png(detections)).decode("ascii")
    return (
        f"<p>{len(detections)} detections in {detections.width} x {detections.height} pixels</p>"
        f'<img alt="detections" src="data:image/png;base64,{picture}">'
        f"<table><tr><th>class</th><th>score</th><th>box (x1, y1, x2, y2)</th></tr>{''.join(rows)}</table>{rest}"
    )


@cache
def instance_color(index: int) -> Color:
    """BGR color of the index-th instance; neighbors in the sequence are far apart in hue.

    >>> instance_color(0) == instance_color(0) != instance_color(1)
    True
    """
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.8))[index // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


def _draw_mask(out: Image, mask: NDArray[np.bool_], offset: Any, color: Color, alpha: float, scale: float) -> None:
    if not mask.size:
        return
    x, y = (int(v) for v in offset)
    region = out[y : y + mask.shape[0], x : x + mask.shape[1]]
    inside = mask.view(np.uint8)
    # OpenCV blends three times as fast as it looks values up. In place: the rows of the region are contiguous, so it
    # writes through the view.
    tint = np.empty_like(region)
    cv2.rectangle(tint, (0, 0), (region.shape[1], region.shape[0]), color, cv2.FILLED)
    cv2.copyTo(cv2.addWeighted(region, 1 - alpha, tint, alpha, 0, dst=tint), inside, region)
    # Straight parts as one line each: the same pixels in a third of the time.
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(out, outlines, -1, color, max(1, round(scale)), offset=(x, y))


def draw_text(out: Image, text: str, corner: tuple[int, int], color: Color, scale: float) -> None:
    """Write on a filled box in place: above the corner (x, y) if there is room, else below, and inside the image.

    Args:
        color: BGR of the box; the text is black or white
        scale: 1 for images of 720 lines
    """
    size, thickness = 0.55 * scale, max(1, round(1.2 * scale))
    (width, height), baseline = cv2.getTextSize(text, _FONT, size, thickness)
    margin = max(1, round(3 * scale))
    full_width, full_height = width + 2 * margin, height + baseline + 2 * margin
    x = max(0, min(corner[0], out.shape[1] - full_width))
    y = corner[1] - full_height if corner[1] >= full_height else corner[1]
    y = max(0, min(y, out.shape[0] - full_height))
    cv2.rectangle(out, (x, y), (x + full_width, y + full_height), color, cv2.FILLED)
    luminance = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    cv2.putText(out, text, (x + margin, y + margin + height), _FONT, size, ink, thickness, cv2.LINE_AA)

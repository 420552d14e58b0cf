"""Detections drawn over a picture: tinted masks with an outline, boxes and names.

Legend: H x W the image. Pictures are uint8 BGR.
"""

from __future__ import annotations

import colorsys
from functools import cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_image

if TYPE_CHECKING:
    from yolact_deploy.detections import Detections

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

_GOLDEN = 0.618033988749895
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(image: Image, detections: Detections, *, alpha: float = 0.45, labels: bool = True) -> Image:
    """A copy of the image with the detections drawn over it, the lower-scored first.

    Args:
        image: uint8 BGR [H, W, 3], the one that the detections are of
        alpha: opacity of the masks, 0 to 1
        labels: write the class name and score at each box

    Raises:
        InputError: not a uint8 BGR image, of another size than the detections', or alpha out of range.
    """
    out: Image = check_image(image).copy()
    if out.shape[:2] != (detections.height, detections.width):
        raise InputError(
            f"expected the image of the detections, {detections.width} x {detections.height}, "
            f"got one of {out.shape[1]} x {out.shape[0]}"
        )
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: expected 0 <= value <= 1, got {alpha}")
    scale = max(0.5, min(out.shape[:2]) / 720)  # sizes below are those for 720 lines
    crops, boxes = detections.crops, detections.pixel_boxes.tolist()
    order = np.argsort(detections.scores, kind="stable")
    for i in order:
        _draw_mask(out, crops.crops[i], crops.offsets[i], instance_colour(int(i)), alpha, scale)
    # Boxes and names above all masks, or a large mask would cover the names of what stands before it.
    for i in order:
        colour, box = instance_colour(int(i)), boxes[i]
        cv2.rectangle(out, box[:2], box[2:], colour, max(1, round(1.5 * scale)))
        if labels:
            name = detections.class_names[detections.labels[i]]
            _draw_label(out, f"{name} {detections.scores[i]:.2f}", box, colour, scale)
    return out


@cache
def instance_colour(index: int) -> Colour:
    """BGR colour of the index-th instance; neighbours in the sequence are far apart in hue.

    >>> instance_colour(0) == instance_colour(0) != instance_colour(1)
    True
    """
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.8))[index // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, saturation, value)
    return round(blue * 255), round(green * 255), round(red * 255)


@cache
def _tint(colour: Colour, alpha: float) -> NDArray[np.uint8]:
    """Lookup table uint8 [1, 256, 3]: each grey level of each channel blended with the colour."""
    levels = np.arange(256)[None, :, None] * (1 - alpha) + np.array(colour) * alpha
    return np.asarray(levels.round(), dtype=np.uint8)


def _draw_mask(out: Image, mask: NDArray[np.bool_], offset: Any, colour: Colour, alpha: float, scale: float) -> None:
    if not mask.size:
        return
    x, y = (int(v) for v in offset)
    region = out[y : y + mask.shape[0], x : x + mask.shape[1]]
    inside = mask.view(np.uint8)
    # Into the picture itself: its rows are contiguous, so OpenCV writes through the view.
    cv2.copyTo(cv2.LUT(region, _tint(colour, alpha)), inside, region)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(out, outlines, -1, colour, max(1, round(scale)), offset=(x, y))


def _draw_label(out: Image, text: str, box: list[int], colour: Colour, scale: float) -> None:
    size, thickness = 0.55 * scale, max(1, round(1.2 * scale))
    (width, height), baseline = cv2.getTextSize(text, _FONT, size, thickness)
    margin = max(1, round(3 * scale))
    full_width, full_height = width + 2 * margin, height + baseline + 2 * margin
    # Above the box where there is room, else inside it; never past the picture's edges.
    x = max(0, min(box[0], out.shape[1] - full_width))
    y = box[1] - full_height if box[1] >= full_height else box[1]
    y = max(0, min(y, out.shape[0] - full_height))
    cv2.rectangle(out, (x, y), (x + full_width, y + full_height), colour, cv2.FILLED)
    luminance = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    cv2.putText(out, text, (x + margin, y + margin + height), _FONT, size, ink, thickness, cv2.LINE_AA)

"""``yolo``: a text file a picture, a line an object: class, outline as x y pairs in 0..1.

The format has one outline an object and no holes. Parts and holes are joined to the outline by lines of no width, so
that a reader gets one object with the same pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.formats.mask_shapes import join_rings
from yolact_deploy.detections import Detections
from yolact_deploy.streams.sinks.sink import Sink, SinkItem


class YoloSink(Sink):
    """``yolo/NAME.txt``."""

    name = "yolo"

    def write(self, item: SinkItem) -> None:
        self._write(f"{item.stem}.txt", "".join(line + "\n" for line in yolo_lines(item.detections)).encode())


def yolo_lines(detections: Detections) -> list[str]:
    """A line for each detection that has pixels."""
    lines = []
    size = np.array([detections.width, detections.height])
    for label, outline in zip(detections.labels, outlines(detections), strict=True):
        if len(outline) >= 3:
            # Ultralytics truncates to whole pixels and supervision rounds: a quarter of a pixel further on, both read
            # the same pixel.
            values = ((outline + 0.25) / size).clip(0, 1).ravel()
            lines.append(" ".join([str(int(label)), *(f"{value:.6f}" for value in values)]))
    return lines


def outlines(detections: Detections) -> list[NDArray[np.int64]]:
    """One closed outline a mask, int64 [k, 2] of (x, y) pixels; empty for a mask without pixels."""
    result = []
    for (x, y), crop in zip(detections.crops.offsets, detections.crops.crops, strict=True):
        rings: Any = ()
        if crop.size:
            rings, _ = cv2.findContours(crop.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        points = [ring.reshape(-1, 2).astype(np.int64) for ring in rings]
        joined = join_rings(points) if points else np.zeros((0, 2), np.int64)
        if 0 < len(joined) < 3:  # a dot or a line: readers expect three points
            joined = np.concatenate([joined, np.repeat(joined[-1:], 3 - len(joined), axis=0)])
        result.append(joined + np.array([x, y]))
    return result

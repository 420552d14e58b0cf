"""Detections that are hard to write, and the pictures and frames in which they are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.streams.sinks.sink import SinkItem
from yolact_deploy.streams.sinks.sink_table import SINKS

WIDTH, HEIGHT = 120, 90
NAMES = ("cat", "traffic light")


def ring() -> NDArray[np.bool_]:
    """A ring with a dot beside it: a hole and two parts."""
    picture = np.zeros((60, 70), np.uint8)
    cv2.circle(picture, (30, 30), 28, 1, -1)
    cv2.circle(picture, (30, 30), 12, 0, -1)
    cv2.rectangle(picture, (64, 5), (69, 12), 1, -1)
    return picture.astype(np.bool_)


def found(tracks: list[int] | None = None) -> Detections:
    """The ring, a rectangle, and an object without pixels."""
    masks = (ring(), np.ones((20, 15), np.bool_), np.zeros((0, 0), np.bool_))
    offsets = np.array([[10, 20], [100, 60], [0, 0]])
    boxes = np.array([[10, 20, 80, 80], [100, 60, 115, 80], [3, 3, 6, 6]], np.float32)
    return Detections(
        boxes, np.array([0.9, 0.7, 0.6], np.float32), np.array([0, 1, 1]), NAMES, HEIGHT, WIDTH,
        MaskCrops(HEIGHT, WIDTH, offsets, masks), track_ids=None if tracks is None else np.array(tracks),
    )  # fmt: skip


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def picture(name: str = "a") -> SinkItem:
    return SinkItem(name, f"in/{name}.jpg", image(), found())


def frames(count: int = 3) -> list[SinkItem]:
    """The second object has an id from the second frame on."""
    return [SinkItem("clip", "clip.mp4", image(), found([1, -1 if i == 0 else 2, -1]), i, i / 10) for i in range(count)]


def write(name: str, folder: Path, items: list[SinkItem]) -> list[str]:
    """Pass the items through a sink; the names of its files."""
    sink = SINKS[name](folder, (5, 9))
    for item in items:
        sink.take(item)
    sink.finish()
    assert all(path.is_file() for path in sink.paths)
    return sorted(path.relative_to(folder).as_posix() for path in sink.paths)

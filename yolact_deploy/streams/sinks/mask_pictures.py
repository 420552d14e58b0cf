"""``masks``: a PNG a picture with the ids of objects as values; ``crops`` and ``cutouts``: a picture an object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.streams.sinks.sink import Sink, SinkItem, safe_name


class MaskSink(Sink):
    """``masks/NAME.png``: 0 is background; an object is its track id, or its number from 1."""

    name = "masks"

    def write(self, item: SinkItem) -> None:
        self._write_image(f"{item.stem}.png", id_picture(item.detections))  # type: ignore[arg-type]  # 16 bits


class CropSink(Sink):
    """``crops/CLASS/NAME-NUMBER.jpg``: the picture inside each box."""

    name = "crops"

    def write(self, item: SinkItem) -> None:
        for index, crop in enumerate(item.detections.crop(item.image)):
            self._write_image(_object_name(item, index, ".jpg"), crop)


class CutoutSink(Sink):
    """``cutouts/CLASS/NAME-NUMBER.png``: each object alone, transparent around it."""

    name = "cutouts"

    def write(self, item: SinkItem) -> None:
        for index, cutout in enumerate(item.detections.cutout(item.image)):
            self._write_image(_object_name(item, index, ".png"), cutout)


def id_picture(detections: Detections) -> NDArray[np.uint16]:
    """Ids as uint16 [H, W]: track ids, or numbers from 1; 0 is background. The best detection is on top."""
    picture = np.zeros((detections.height, detections.width), np.uint16)
    ids = np.arange(1, len(detections) + 1) if detections.track_ids is None else detections.track_ids
    for index in reversed(range(len(detections))):
        (x, y), crop = detections.crops.offsets[index].tolist(), detections.crops.crops[index]
        if ids[index] > 0:
            picture[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = ids[index]
    return picture


def _object_name(item: SinkItem, index: int, suffix: str) -> str:
    tracks = item.detections.track_ids
    number = f"track{tracks[index]}" if tracks is not None and tracks[index] > 0 else f"{index + 1}"
    return f"{safe_name(item.detections.names[index])}/{item.stem}-{number}{suffix}"

"""``labelme``: a JSON file a picture for the annotation tool LabelMe, with a mask an object."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.formats.labelme_json import labelme_content, mask_shape
from yolact_deploy.detections import Detections
from yolact_deploy.streams.marks import JSON_MARK
from yolact_deploy.streams.sinks.sink import Sink, SinkItem


class LabelMeSink(Sink):
    """``labelme/NAME.json``; of a video, each frame is written beside its file, as LabelMe needs it."""

    name = "labelme"

    def write(self, item: SinkItem) -> None:
        target = self.folder / f"{item.stem}.json"
        if item.frame is None:
            picture = os.path.relpath(item.source, target.parent)
        else:
            self._write_image(f"{item.stem}.jpg", item.image)
            picture = f"{Path(item.stem).name}.jpg"
        self._write(f"{item.stem}.json", json.dumps(to_labelme(item.detections, picture)).encode())


def to_labelme(detections: Detections, picture: str) -> dict[str, Any]:
    """The content of a LabelMe file.

    Args:
        picture: path of the picture from the folder of the file
    """
    crops = detections.crops
    shapes: list[dict[str, Any]] = []
    for index, (name, score) in enumerate(zip(detections.names, detections.scores, strict=True)):
        crop, (x, y) = crops.crops[index], crops.offsets[index].tolist()
        if not crop.any():
            continue
        track = None if detections.track_ids is None else int(detections.track_ids[index])
        group = track if track is not None and track >= 0 else None
        shapes.append({**mask_shape(name, crop, x, y, group), "score": round(float(score), 6)})
    return {**JSON_MARK, **labelme_content(shapes, picture, detections.height, detections.width)}

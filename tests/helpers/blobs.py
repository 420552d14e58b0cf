"""A network that detects every white blob in whatever it is shown: for pictures that are cut into tiles."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import DetectionOutputs

SIDE = 128
CONFIG = YolactConfig(name="blobs", image_size=SIDE, num_classes=2, class_names=("dim", "bright"), max_detections=20)
Image = NDArray[np.uint8]


class BlobBackend(Backend):
    """Every connected blob above a gray level of 60 is an object; those above 200 are "bright".

    A blob scores more the more of it is in the picture, as parts of objects usually score less.
    """

    name, precision = "blobs", "fp32"

    def __init__(self, max_batch: int = 4) -> None:
        self.metadata = Metadata(config=CONFIG, batch=(1, max_batch, max_batch))
        self.max_batch = max_batch
        self.batches: list[int] = []

    def run(self, images: NDArray[Any]) -> DetectionOutputs:
        self.batches.append(len(images))
        slots, side = CONFIG.max_detections, CONFIG.prototype_size
        boxes = np.zeros((len(images), slots, 4), np.float32)
        scores = np.zeros((len(images), slots), np.float32)
        labels = np.zeros((len(images), slots), np.int32)
        masks = np.zeros((len(images), slots, side, side), np.float32)
        counts = np.zeros(len(images), np.int32)
        for n, image in enumerate(images[..., 0]):
            number, blobs, stats, _ = cv2.connectedComponentsWithStats((image > 60).astype(np.uint8))
            order = sorted(range(1, number), key=lambda blob: -int(stats[blob][4]))
            counts[n] = len(order)
            for slot, blob in enumerate(order):
                x, y, w, h, area = stats[blob]
                boxes[n, slot] = np.array([x, y, x + w, y + h]) / SIDE
                scores[n, slot] = 0.3 + 0.6 * area / SIDE**2
                labels[n, slot] = int(image[blobs == blob].max() > 200)
                full = (blobs == blob).astype(np.float32)
                masks[n, slot] = cv2.resize(full, (side, side), interpolation=cv2.INTER_AREA)
        return DetectionOutputs(counts, boxes, scores, labels, masks)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass

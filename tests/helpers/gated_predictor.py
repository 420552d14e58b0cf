"""A predictor without a network that waits for permission, so that tests need no clock."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import get_config
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError
from yolact_deploy.mask_forms import MaskWindows


class GatedPredictor:
    """Detects nothing, once ``gate`` is open; ``batches`` are the numbers of pictures of its calls."""

    def __init__(self, max_batch: int = 1, *, broken: bool = False) -> None:
        self.config = get_config("yolact_resnet50")
        self.gate, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.closed, self.broken = False, broken
        self.timings = {"network": 1.0}
        self.backend = SimpleNamespace(
            metadata=Metadata(config=self.config),
            max_batch=max_batch,
            fixed_batch=False,
            frames=None,
            name="gated",
            tail=SimpleNamespace(name="none"),
            describe=dict,
        )

    def __call__(self, images: list[Any]) -> list[Detections]:
        self.batches.append(len(images))
        self.entered.set()
        assert self.gate.wait(60)
        if self.broken:
            raise BackendError("/secret/path: the runtime failed")
        return [self._nothing(*image.shape[:2]) for image in images]

    def _nothing(self, height: int, width: int) -> Detections:
        masks = MaskWindows(8, 8, False, np.zeros((0, 2), np.int64), ())
        none = np.zeros(0, np.float32)
        return Detections(
            np.zeros((0, 4), np.float32), none, none.astype(np.int64), self.config.class_names, height, width, masks
        )

    def close(self) -> None:
        self.closed = True

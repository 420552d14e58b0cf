"""A backend for tests of ``predict`` that detects the same two objects in every picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yolact_deploy import loading
from yolact_deploy.artifact import Metadata
from yolact_deploy.config import get_config
from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import DetectionOutputs

CONFIG = get_config("yolact_resnet50").with_size(64)


class ScriptedBackend(Backend):
    """Finds a person in the left half and a dog in the right one, whatever it is shown."""

    name = "scripted"
    precision = "fp32"

    def __init__(self, max_batch: int = 1) -> None:
        self.metadata = Metadata(config=CONFIG, batch=(max_batch, max_batch, max_batch))
        self.max_batch = max_batch
        self.calls = 0
        self.fail = False

    def run(self, images: NDArray[Any]) -> DetectionOutputs:
        if self.fail:
            raise BackendError("the network failed")
        self.calls += 1
        count = len(images)
        names = CONFIG.class_names
        boxes = np.tile(np.array([[0, 0.2, 0.5, 0.8], [0.5, 0.1, 1, 0.9]], np.float32), (count, 1, 1))
        masks = np.zeros((count, 2, 16, 16), np.float32)
        masks[:, 0, 4:12, 1:7] = 1
        masks[:, 1, 2:14, 9:15] = 1
        return DetectionOutputs(
            np.full(count, 2, np.int32),
            boxes,
            np.tile(np.array([0.9, 0.6], np.float32), (count, 1)),
            np.tile(np.array([names.index("person"), names.index("dog")], np.int32), (count, 1)),
            masks,
        )

    def describe(self) -> dict[str, Any]:
        return {}


def install(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    """Let every model that is loaded be this one."""
    backend = ScriptedBackend()

    monkeypatch.setattr(loading, "_open", lambda *args, **options: backend)
    monkeypatch.setattr(loading.ModelSpec, "check_file", lambda self: None)
    return backend

"""YOLACT instance segmentation on NVIDIA GPUs and CPUs: weights in, a measured engine out.

    import yolact_deploy
    model = yolact_deploy.load("yolact_resnet50.onnx")
    detections = model(frame)                      # frame: uint8 BGR [H, W, 3]

Importing the package needs NumPy only; each runtime is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact_deploy.config import YolactConfig, get_config, list_configs
from yolact_deploy.detections import Detections
from yolact_deploy.errors import YolactDeployError
from yolact_deploy.moved import find_moved_modules
from yolact_deploy.version import __version__

if TYPE_CHECKING:
    from yolact_deploy.loading import load
    from yolact_deploy.runtime.predictor import Predictor

__all__ = [
    "Detections",
    "Predictor",
    "YolactConfig",
    "YolactDeployError",
    "__version__",
    "get_config",
    "list_configs",
    "load",
]


find_moved_modules()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # These two import OpenCV, which takes most of the import time.
    if name == "load":
        from yolact_deploy.loading import load

        return load
    if name == "Predictor":
        from yolact_deploy.runtime.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Training of YOLACT in PyTorch: losses, matching, data, recipes and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.model import YolactModel
from yolact_deploy.model.checkpoint import load_model, save_checkpoint
from yolact_deploy.training.losses import LossSettings, YolactLoss

if TYPE_CHECKING:
    from yolact_deploy.training.data import CocoDataset

__all__ = ["CocoDataset", "LossSettings", "YolactConfig", "YolactLoss", "YolactModel", "load_model", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    """Import `CocoDataset` on demand: datasets need packages that exporting does not."""
    if name == "CocoDataset":
        from yolact_deploy.training.data import CocoDataset

        return CocoDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

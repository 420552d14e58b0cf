"""YOLACT in PyTorch: the model, its checkpoints, and what trains it."""

from __future__ import annotations

from yolact_deploy.config import YolactConfig
from yolact_deploy.training.checkpoint import load_model, save_checkpoint
from yolact_deploy.training.losses import LossSettings, YolactLoss
from yolact_deploy.training.model import YolactModel

__all__ = ["LossSettings", "YolactConfig", "YolactLoss", "YolactModel", "load_model", "save_checkpoint"]

"""Many pictures on a Ray cluster."""

from __future__ import annotations

from yolact_deploy.scale.ray_rows import Predict

__all__ = ["Predict"]

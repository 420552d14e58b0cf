"""The YOLACT network: backbones, feature pyramid, protonet and prediction head, and `YolactModel` around them."""

from __future__ import annotations

from yolact_deploy.model.fuse import fuse_batch_norm
from yolact_deploy.model.yolact import RawHeads, YolactModel

__all__ = ["RawHeads", "YolactModel", "fuse_batch_norm"]

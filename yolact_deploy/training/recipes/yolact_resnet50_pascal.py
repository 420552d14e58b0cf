"""YOLACT, ResNet-50 at 550 for the 20 classes of Pascal VOC (with SBD), as the original.

Paper:     YOLACT (arXiv:1904.02689)
Expected:  mask AP50 72.3 on Pascal 2012 SBD val (published)
Duration:  not measured
Command:   yolact-deploy train --recipe yolact_resnet50_pascal --data pascal.yaml
"""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_resnet50_pascal",
    config=get_config("yolact_resnet50_pascal"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="mask AP50 72.3 on Pascal 2012 SBD val (published)",
    command="yolact-deploy train --recipe yolact_resnet50_pascal --data pascal.yaml",
    weights="imagenet",
    batch=8,
    iterations=120_000,
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(60_000, 100_000),
    gamma=0.1,
    warmup_iterations=500,
    warmup_lr=1e-4,
    clip=0.0,
    ema_decay=0.0,
    freeze_batch_norm="auto",
    amp="fp32",
)

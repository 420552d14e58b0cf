"""YOLACT++, ResNet-50 with deformable convolutions at 550, as the original.

Paper:     YOLACT++ (arXiv:1912.06218)
Expected:  mask AP 34.1 on COCO test-dev (published)
Duration:  not measured
Command:   yolact-deploy train --recipe yolact_plus_resnet50 --data coco/
"""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_plus_resnet50",
    config=get_config("yolact_plus_resnet50"),
    paper="YOLACT++ (arXiv:1912.06218)",
    expected="mask AP 34.1 on COCO test-dev (published)",
    command="yolact-deploy train --recipe yolact_plus_resnet50 --data coco/",
    weights="imagenet",
    batch=8,
    iterations=800_000,
    optimizer="sgd",
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(280_000, 600_000, 700_000, 750_000),
    gamma=0.1,
    warmup_iterations=500,
    warmup_lr=1e-4,
    clip=0.0,
    ema_decay=0.0,
    freeze_batch_norm="auto",
    amp="fp32",
)

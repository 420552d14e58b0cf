"""YOLACT, Darknet-53 at 550, as the original, which begins with the weights of YOLOv3's authors: give that file.

Paper:     YOLACT (arXiv:1904.02689)
Expected:  mask AP 28.7 on COCO test-dev (published)
Duration:  not measured
Command:   yolact-deploy train --recipe yolact_darknet53 --data coco/ --weights darknet53.pth
"""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_darknet53",
    config=get_config("yolact_darknet53"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="mask AP 28.7 on COCO test-dev (published)",
    command="yolact-deploy train --recipe yolact_darknet53 --data coco/ --weights darknet53.pth",
    weights="darknet53.pth",
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

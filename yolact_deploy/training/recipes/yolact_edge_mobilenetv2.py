"""YolactEdge's network for still pictures, MobileNetV2 at 550, with the schedule of YOLACT.

Paper:     YolactEdge (arXiv:2012.12259)
Expected:  mask AP 20.8 on COCO as INT8 + FP16 (published)
Duration:  not measured
Command:   yolact-deploy train --recipe yolact_edge_mobilenetv2 --data coco/
"""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_edge_mobilenetv2",
    config=get_config("yolact_edge_mobilenetv2"),
    paper="YolactEdge (arXiv:2012.12259)",
    expected="mask AP 20.8 on COCO as INT8 + FP16 (published)",
    command="yolact-deploy train --recipe yolact_edge_mobilenetv2 --data coco/",
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

"""A small network for the generated set `shapes`: the model of the demo, trained from random weights.

Paper:     YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)
Expected:  not measured
Duration:  not measured
Command:   yolact-deploy data shapes -o shapes --train 4000 --val 500
           yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes_demo
"""

from __future__ import annotations

from yolact_deploy.config import YolactConfig
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.data.shapes import KINDS
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="shapes_demo",
    config=YolactConfig(
        name="shapes_demo",
        backbone="mobilenet_v2",
        image_size=256,
        num_classes=len(KINDS),
        class_names=KINDS,
        prior_scales=((16.0,), (32.0,), (64.0,), (112.0,), (192.0,)),
        square_priors=False,
        num_prototypes=24,
        fpn_channels=64,
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    command="yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes_demo",
    weights="",
    batch=16,
    iterations=12_000,
    optimizer="adamw",
    lr=1e-3,
    momentum=0.9,
    weight_decay=0.02,
    milestones=(8_000, 10_500),
    gamma=0.1,
    warmup_iterations=500,
    warmup_lr=1e-4,
    clip=10.0,
    ema_decay=0.999,
    freeze_batch_norm="auto",
    amp="bf16",
    channels_last=True,
    # The set is generated, so it needs less variation than photographs.
    augmentation=Augmentation(size=256, expand=2.0),
    eval_interval=2_000,
    save_interval=500,
)

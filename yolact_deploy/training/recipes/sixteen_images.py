"""A proof on photographs: overfit sixteen COCO images on a CPU.

A network that fails has a fault in its losses, its matching or its data. One that succeeds is not thereby shown to
generalize. The command selects the images, trains, exports and scores. To use your own images, run
``yolact-deploy train --recipe sixteen_images --data my.yaml``.
"""

from __future__ import annotations

import dataclasses

from yolact_deploy.config import get_config
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="sixteen_images",
    config=dataclasses.replace(
        get_config("yolact_edge_mobilenetv2").with_size(384), name="sixteen_images", fpn_channels=128
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    expected="mask AP50 98.2 on the images it was trained on (measured)",
    duration="nine minutes on two cores of an AMD EPYC with AVX512-BF16",
    command="python -m yolact_deploy.benchmarks.scenarios.sixteen_photographs --coco coco/ -o result.json",
    weights="imagenet-int8",
    iterations=500,
    optimizer="adamw",
    lr=3e-4,
    weight_decay=0.0,
    milestones=(350, 450),
    gamma=0.2,
    # A longer warm-up from a lower rate than usual: at a higher rate the prototypes die in the first steps.
    warmup_iterations=100,
    warmup_lr=1e-6,
    clip=10.0,
    # 8-bit initial weights have their batch normalization folded into the convolutions, which must stay that way.
    freeze_batch_norm="always",
    amp="bf16",
    channels_last=True,
    augmentation=dataclasses.replace(Augmentation.plain(384), mirror=False),
    eval_interval=125,
    save_interval=250,
)

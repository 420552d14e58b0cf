"""A proof on photographs: learn sixteen images of COCO by heart, on a CPU.

A network that cannot do this has a fault in its losses, its matching or its data; one that can has not been shown to
generalise. The command chooses the images, trains, exports and scores; on images chosen by hand it is
``yolact-deploy train --recipe sixteen_images --data my.yaml``.

Paper:     YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)
Expected:  mask AP50 98.2 on the images it was trained on (measured)
Duration:  nine minutes on two cores of an AMD EPYC with AVX512-BF16
Command:   python -m yolact_deploy.benchmarks.scenarios.sixteen_photographs --coco coco/ -o result.json
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
    batch=8,
    iterations=500,
    optimizer="adamw",
    lr=3e-4,
    momentum=0.9,
    weight_decay=0.0,
    milestones=(350, 450),
    gamma=0.2,
    warmup_iterations=100,
    # A longer and lower start than usual: at a higher rate the prototypes die in the first steps.
    warmup_lr=1e-6,
    clip=10.0,
    ema_decay=0.0,
    # Initial weights of 8 bits come with their batch normalisations folded in, and these must stay as they are.
    freeze_batch_norm="always",
    amp="bf16",
    channels_last=True,
    augmentation=dataclasses.replace(Augmentation.plain(384), mirror=False),
    eval_interval=125,
    save_interval=250,
)

"""A small network for the generated dataset `shapes`: the demo model.

It trains at 192, 256 and 320 pixels in turn, because an iteration at 192 costs a third of one at 320, the size that
ships. The learning rate falls in the last part only, whose numbers are below. ``make demo-model`` runs all three parts:

    yolact-deploy data shapes -o shapes --train 12000 --val 500
    yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes_192 \\
        --set config.image_size=192 --set iterations=2250 --set milestones=2250 --set warmup_iterations=200
    yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes_256 \\
        --weights runs/shapes_192/last.safetensors \\
        --set iterations=2200 --set milestones=2200 --set warmup_iterations=100
    yolact-deploy train --recipe shapes_demo --data shapes/shapes.yaml --output runs/shapes_320 \\
        --weights runs/shapes_256/last.safetensors --set config.image_size=320
"""

from __future__ import annotations

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.shapes import KINDS
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="shapes_demo",
    config=YolactConfig(
        name="shapes_demo",
        backbone="mobilenet_v2",
        image_size=256,
        num_classes=len(KINDS),
        class_names=KINDS,
        prior_scales=((12.0, 18.0), (26.0, 38.0), (54.0, 76.0), (104.0, 140.0), (180.0, 230.0)),
        square_priors=False,
        num_prototypes=24,
        fpn_channels=64,
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    expected="box AP 68.3, mask AP 62.5 on the 500 held-out images (measured)",
    duration="one hour on two cores of an AMD EPYC with AVX512-BF16, beside other programs",
    command="make demo-model",
    weights="imagenet-int8",
    batch=16,
    iterations=1_300,
    optimizer="adamw",
    weight_decay=0.02,
    milestones=(500, 1_000),
    gamma=0.2,
    warmup_iterations=100,
    clip=10.0,
    ema_decay=0.999,
    # Saves a third of the time per step. The initial weights already detect edges and corners in photographs.
    freeze_stages=3,
    amp="bf16",
    channels_last=True,
    # Each generated object already has random colors and sizes, so only mirroring adds variation.
    augmentation=Augmentation(
        size=256, brightness=0.0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0.0, expand=1.0, crop=False
    ),
    eval_interval=0,
    save_interval=500,
)

"""A small network for cell nuclei in microscopy pictures: the second model that ships."""

from __future__ import annotations

from yolact_deploy.config import YolactConfig
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="nuclei",
    config=YolactConfig(
        name="nuclei",
        backbone="mobilenet_v2",
        image_size=320,
        num_classes=1,
        class_names=("nucleus",),
        prior_scales=((7.0, 12.0), (18.0, 26.0), (38.0, 54.0), (80.0, 110.0), (150.0, 220.0)),
        square_priors=False,
        num_prototypes=24,
        fpn_channels=64,
        # up to 375 nuclei were annotated in one picture
        top_k=500,
        max_detections=500,
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    weights="imagenet-int8",
    batch=16,
    iterations=3_000,
    optimizer="adamw",
    weight_decay=0.02,
    milestones=(2_000, 2_600),
    gamma=0.2,
    warmup_iterations=100,
    clip=10.0,
    ema_decay=0.998,
    channels_last=True,
    augmentation=Augmentation(size=320, expand=1.0, least_side=0.006),
    eval_interval=0,
    save_interval=50,
    log_interval=10,
)

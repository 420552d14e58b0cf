"""A small network for cell nuclei in microscopy pictures: the second model that ships, trained on real pictures.

The data is the corrected stage 1 training set of the 2018 Data Science Bowl (BBBC038v1, CC0), up to 375 nuclei in a
picture, most of them 10 to 20 pixels wide. So the priors are small, NMS and scoring keep 500 detections, and nothing
shrinks the pictures in training. Its first part trains at 320 pixels, where a step costs 0.6 of one at 416:

    yolact-deploy train --recipe nuclei --data nuclei.yaml --output runs/nuclei_320 --size 320 \\
        --weights yolact_deploy/samples/shapes_demo.safetensors
    yolact-deploy train --recipe nuclei --data nuclei.yaml --output runs/nuclei \\
        --weights runs/nuclei_320/last.safetensors --set lr=5e-4 --set iterations=600 --set 'milestones=(400,520)'
"""

from __future__ import annotations

from yolact_deploy.config import YolactConfig
from yolact_deploy.training.data.augment import Augmentation
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="nuclei",
    config=YolactConfig(
        name="nuclei",
        backbone="mobilenet_v2",
        image_size=416,
        num_classes=1,
        class_names=("nucleus",),
        prior_scales=((9.0, 16.0), (23.0, 34.0), (49.0, 70.0), (104.0, 143.0), (195.0, 286.0)),
        square_priors=False,
        num_prototypes=24,
        fpn_channels=64,
        top_k=500,
        max_detections=500,
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    command="make nuclei-model",
    weights="imagenet-int8",
    batch=16,
    iterations=1_500,
    optimizer="adamw",
    weight_decay=0.02,
    milestones=(1_200, 1_400),
    gamma=0.3,
    warmup_iterations=100,
    clip=10.0,
    ema_decay=0.995,
    freeze_stages=1,
    channels_last=True,
    augmentation=Augmentation(size=416, expand=1.0, flip=True),
    eval_interval=0,
    save_interval=250,
)

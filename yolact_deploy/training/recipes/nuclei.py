"""A small network for cell nuclei in microscopy pictures: the model that ships, trained on real pictures.

Most nuclei are 10 to 20 pixels wide, and a picture has up to 375. So the priors are small, NMS and scoring keep 500
detections, and no augmentation shrinks a picture. The first two parts train on crops of 256 pixels with the priors of
416: an object in a crop is as large as in the whole picture at 416, and an iteration costs 0.4 as much. The third part
trains briefly on whole pictures. On the 60 held-out ones: box AP 51.8, mask AP 44.4, mask AP50 80.0.

``make nuclei-model`` runs all three; `train --recipe nuclei` alone is the second at its full size. It took an hour on
two cores of an AMD EPYC with AVX2, beside other programs:

    yolact-deploy data nuclei nuclei-source -o nuclei
    yolact-deploy train --recipe nuclei --data nuclei/nuclei.yaml --output runs/nuclei_1 --size 256 --priors pixels \\
        --weights yolact_deploy/samples/shapes_demo.safetensors --set iterations=771 --set milestones=771 \\
        --set lr=8e-4 --set warmup_iterations=100
    yolact-deploy train --recipe nuclei --data nuclei/nuclei.yaml --output runs/nuclei_2 --size 256 --priors pixels \\
        --weights runs/nuclei_1/last.safetensors
    yolact-deploy train --recipe nuclei --data nuclei/nuclei.yaml --output runs/nuclei \\
        --weights runs/nuclei_2/last.safetensors --set iterations=100 --set 'milestones=(60,85)' --set lr=3e-4 \\
        --set ema_decay=0.98 --set warmup_iterations=5 --set augmentation.crop=no
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
        iou_threshold=0.6,  # nuclei touch: AP50 79.5 with the 0.5 of COCO, 80.0 with 0.6
        top_k=500,
        max_detections=500,
    ),
    paper="YOLACT (arXiv:1904.02689), with the backbone of YolactEdge (arXiv:2012.12259)",
    expected="box AP 51.8, mask AP 44.4, mask AP50 80.0",
    duration="an hour on two cores of an AMD EPYC with AVX2, beside other programs",
    command="make nuclei-model",
    weights="imagenet-int8",
    batch=8,
    iterations=600,
    optimizer="adamw",
    lr=7e-4,
    weight_decay=0.02,
    milestones=(320, 470, 560),
    gamma=0.3,
    warmup_iterations=20,
    clip=10.0,
    ema_decay=0.995,
    # Saves a third of the time per step. The initial weights already detect edges and corners in photographs.
    freeze_stages=3,
    channels_last=True,
    # Nuclei have no upper side, and turned pictures are as good as new ones.
    augmentation=Augmentation(size=416, expand=1.0, flip=True),
    eval_interval=0,
    save_interval=100,
)

"""YOLACT, Darknet-53 at 550 pixels, as the original.

The original starts from the weights of the YOLOv3 authors: get that file and pass it with ``--weights``.
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
)

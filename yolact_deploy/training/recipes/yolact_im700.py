"""YOLACT, ResNet-101 at 700 pixels, as the original; up to 300 masks per image take part in the loss."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_im700",
    config=get_config("yolact_im700"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="mask AP 31.2 on COCO test-dev (published)",
    command="yolact-deploy train --recipe yolact_im700 --data coco/",
)

"""YOLACT++, ResNet-101 with deformable convolutions at 550 pixels, as the original."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_plus_base",
    config=get_config("yolact_plus_base"),
    paper="YOLACT++ (arXiv:1912.06218)",
    expected="mask AP 34.6 on COCO test-dev (published)",
    command="yolact-deploy train --recipe yolact_plus_base --data coco/",
)

"""YOLACT, ResNet-101 at 550 pixels, as the original."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_base",
    config=get_config("yolact_base"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="mask AP 29.8 on COCO test-dev (published)",
    command="yolact-deploy train --recipe yolact_base --data coco/",
)

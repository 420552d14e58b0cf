"""YOLACT, ResNet-101 at 400 pixels, as the original."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_im400",
    config=get_config("yolact_im400"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="not measured",
    command="yolact-deploy train --recipe yolact_im400 --data coco/",
)

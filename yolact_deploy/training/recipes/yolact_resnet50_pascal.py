"""YOLACT, ResNet-50 at 550 pixels for the 20 classes of Pascal VOC (with SBD), as the original."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_resnet50_pascal",
    config=get_config("yolact_resnet50_pascal"),
    paper="YOLACT (arXiv:1904.02689)",
    expected="mask AP50 72.3 on Pascal 2012 SBD val (published)",
    command="yolact-deploy train --recipe yolact_resnet50_pascal --data pascal.yaml",
    iterations=120_000,
    milestones=(60_000, 100_000),
)

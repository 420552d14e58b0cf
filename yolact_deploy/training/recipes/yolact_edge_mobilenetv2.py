"""YolactEdge's network for still images, MobileNetV2 at 550 pixels, with the schedule of YOLACT."""

from __future__ import annotations

from yolact_deploy.config import get_config
from yolact_deploy.training.recipe import Recipe

RECIPE = Recipe(
    name="yolact_edge_mobilenetv2",
    config=get_config("yolact_edge_mobilenetv2"),
    paper="YolactEdge (arXiv:2012.12259)",
    expected="mask AP 20.8 on COCO as INT8 + FP16 (published)",
    command="yolact-deploy train --recipe yolact_edge_mobilenetv2 --data coco/",
)

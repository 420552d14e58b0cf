"""Yolact_minimal: the original's network with ReLU after P6 and P7 and another upsampling in the protonet.

Once renamed, its tensors fit the original's network, which computes other values with them: they are told by the names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from yolact_deploy.config import PASCAL_NAMES, YolactConfig
from yolact_deploy.errors import CheckpointError
from yolact_deploy.model.origins.origin import Origin, Rule, StateDict, renamed, reversed_level

_SIZE = 544
_SCALES = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
_RULES: tuple[Rule, ...] = (
    (r"fpn\.lat_layers\.([012])\.", reversed_level("fpn.lat_layers")),
    (r"fpn\.pred_layers\.([012])\.0\.", reversed_level("fpn.pred_layers")),
    (r"fpn\.downsample_layers\.([01])\.0\.", r"fpn.downsample_layers.\1."),
    (r"proto_net\.proto1\.([024])\.", r"proto_net.\1."),
    (r"proto_net\.proto2\.([02])\.", lambda match: f"proto_net.{8 + int(match[1])}."),
    (r"prediction_layers\.(upfeature|bbox_layer|conf_layer)\.", r"prediction_layers.0.\1."),
    (r"prediction_layers\.coef_layer\.0\.", "prediction_layers.0.mask_layer."),
)


def _convert(state: StateDict) -> StateDict:
    if "backbone.patch_embed.proj.weight" in state:
        raise CheckpointError(
            "a Yolact_minimal with a Swin transformer, which this version does not have: give one with a ResNet"
        )
    return renamed(state, _RULES)


def _configure(config: YolactConfig, state: StateDict, meta: Mapping[str, Any]) -> tuple[YolactConfig, str]:
    # The size is not in the file. Its own evaluation of the Pascal model uses these scales as well.
    network = dataclasses.replace(
        config,
        name=f"yolact_minimal_{config.backbone}",
        image_size=_SIZE,
        prior_scales=_SCALES,
        aspect_ratios=(1.0, 0.5, 2.0),
        square_priors=False,
        extra_levels_relu=True,
        prototype_align_corners=True,
        clip_boxes=True,
        fit="pad",
    )
    assumed = f"input size {_SIZE}"
    if config.num_classes == len(PASCAL_NAMES):
        network = dataclasses.replace(network, class_names=PASCAL_NAMES)
        assumed += ", the class names of Pascal VOC"
    return network, assumed


ORIGIN = Origin(
    name="Yolact_minimal",
    markers=("prediction_layers.coef_layer.0.weight", "proto_net.proto1.0.weight"),
    convert=_convert,
    configure=_configure,
)

"""YolactEdge (arXiv:2012.12259): the original's network with its pyramid in two modules.

A video model is the image network plus a flow network, which moves the pyramid of a key frame to the frames after it.
Its image network alone computes what the video model computes on a key frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.model.origins.origin import Origin, StateDict, renamed

#: the classes of its video and YouTube-VIS configurations
YOUTUBE_VIS_NAMES: tuple[str, ...] = (
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake", "monkey", "hand",
    "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear", "motorbike", "giraffe", "leopard",
    "fox", "deer", "owl", "surfboard", "airplane", "truck", "zebra", "tiger", "elephant", "snowboard", "boat",
    "shark", "mouse", "frog", "eagle", "earless_seal", "tennis_racket",
)  # fmt: skip


def _convert(state: StateDict) -> StateDict:
    return renamed(state, ((r"fpn_phase_[12]\.", "fpn."),))


def _configure(config: YolactConfig, state: StateDict, meta: Mapping[str, Any]) -> tuple[YolactConfig, str]:
    if config.num_classes != len(YOUTUBE_VIS_NAMES):
        return config, ""
    named = dataclasses.replace(config, class_names=YOUTUBE_VIS_NAMES)
    return named, "its 40 classes are called as those of YouTube-VIS in YolactEdge"


ORIGIN = Origin(
    name="YolactEdge",
    markers=("fpn_phase_1.lat_layers.0.weight",),
    convert=_convert,
    configure=_configure,
    unused=(
        ("flow_net.", "the flow network of a video model"),
        ("flow_net_pre_convs.", "the flow network of a video model"),
        ("spa.", "the flow network of a video model"),
        ("partial_backbone.", "a copy of the backbone's first stages"),
    ),
)

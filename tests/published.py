"""Figures published by the authors of the networks, or by others with their code."""

from __future__ import annotations

#: GMAC for one image, by configuration
GMAC = {
    "yolact_base": 82.34,
    "yolact_resnet50": 59.14,
    "yolact_im400": 42.72,
    "yolact_im700": 131.46,
    "yolact_darknet53": 77.35,
    "yolact_plus_base": 93.67,
    "yolact_plus_resnet50": 70.69,
    "yolact_edge_mobilenetv2": 34.4,
}

"""Accuracy and speed published by others, on their hardware: none of it was measured here.

Mask AP is COCO's (IoU 0.50:0.95) x 100, on test-dev for YOLACT and YOLACT++. What a time covers differs between
sources; for RTMDet-Ins it is one image on the GPU, including post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One figure of a table in ``source``; ``series`` groups figures."""

    series: str
    name: str
    mask_ap: float
    fps: float
    hardware: str
    source: str


_YOLACT = "YOLACT (Bolya et al., ICCV 2019)"
_PLUS = "YOLACT++ (Bolya et al., 2019)"
_EDGE = "YolactEdge (Liu et al., ICRA 2021), its model zoo"
_RTMDET = "RTMDet (Lyu et al., 2022), its model zoo"
_XP, _2080, _XAVIER, _3090 = "Titan Xp", "RTX 2080 Ti", "AGX Xavier", "RTX 3090"

PUBLISHED = (
    Published("YOLACT, eager", "ResNet-50, 550", 28.2, 42.5, _XP, _YOLACT),
    Published("YOLACT, eager", "Darknet-53, 550", 28.7, 40.0, _XP, _YOLACT),
    Published("YOLACT, eager", "ResNet-101, 550", 29.8, 33.5, _XP, _YOLACT),
    Published("YOLACT, eager", "ResNet-101, 700", 31.2, 23.6, _XP, _YOLACT),
    Published("YOLACT++, eager", "ResNet-50, 550", 34.1, 33.5, _XP, _PLUS),
    Published("YOLACT++, eager", "ResNet-101, 550", 34.6, 27.3, _XP, _PLUS),
    Published("YOLACT, eager", "ResNet-50, 550", 28.2, 45.0, _2080, _EDGE),
    Published("YOLACT, eager", "ResNet-101, 550", 29.8, 36.5, _2080, _EDGE),
    Published("YolactEdge, INT8+FP16", "MobileNetV2, 550", 20.8, 161.4, _2080, _EDGE),
    Published("YolactEdge, INT8+FP16", "ResNet-50, 550", 27.0, 140.3, _2080, _EDGE),
    Published("YolactEdge, INT8+FP16", "ResNet-101, 550", 29.5, 124.8, _2080, _EDGE),
    Published("YolactEdge, INT8+FP16", "ResNet-50, 550", 27.0, 30.7, _XAVIER, _EDGE),
    Published("YolactEdge, INT8+FP16", "ResNet-101, 550", 29.5, 27.3, _XAVIER, _EDGE),
    Published("RTMDet-Ins, FP16", "tiny, 640", 35.4, 1000 / 1.70, _3090, _RTMDET),
    Published("RTMDet-Ins, FP16", "s, 640", 38.7, 1000 / 1.93, _3090, _RTMDET),
    Published("RTMDet-Ins, FP16", "m, 640", 42.1, 1000 / 2.69, _3090, _RTMDET),
    Published("RTMDet-Ins, FP16", "l, 640", 43.7, 1000 / 3.68, _3090, _RTMDET),
    Published("RTMDet-Ins, FP16", "x, 640", 44.6, 1000 / 5.31, _3090, _RTMDET),
)

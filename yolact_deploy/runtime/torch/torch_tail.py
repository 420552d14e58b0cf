"""The tail of the eager model: detection and pasting as the original does them, with the functions of `torch_ops`.

Legend: n detections, P priors, C foreground classes, K mask coefficients, h x w prototypes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from yolact_deploy.config import YolactConfig
from yolact_deploy.mask_forms import MaskCrops, MaskWindows
from yolact_deploy.model import torch_ops as ops
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import DetectSettings, HeadOutputs, ImageDetections, Tail


def detect_image(
    boxes: Tensor, scores: Tensor, coeff: Tensor, config: YolactConfig, settings: DetectSettings
) -> ops.TorchDetected:
    """What NMS and the user's threshold leave of one image's boxes [P, 4], scores [P, C] and coeff [P, K]."""
    kept = ops.detect(
        boxes,
        scores,
        coeff,
        score_threshold=config.nms_score_threshold,
        iou_threshold=config.iou_threshold,
        top_k=config.top_k,
        max_detections=config.max_detections,
        nms=settings.nms,
        second_threshold=config.second_threshold,
        image_size=config.image_size,
    )
    above = kept.scores > settings.score_threshold
    return ops.TorchDetected(*(values[above] for values in kept))


class TorchTail(Tail):
    """Detection and pasting in PyTorch on the CPU.

    Args:
        rescorer: of a YOLACT++, from masks [n, 1, h, w] on ``place`` to their IoUs [n, C]
        place: torch's name of the rescorer's device
    """

    name = "torch"
    outputs = HeadOutputs
    stages = ("nms", "assembly")

    def __init__(self, config: YolactConfig, rescorer: Callable[[Tensor], Tensor] | None, place: str) -> None:
        self._config, self._rescorer, self._place = config, rescorer, place

    def with_config(self, config: YolactConfig) -> TorchTail:
        return TorchTail(config, self._rescorer, self._place)

    @torch.inference_mode()
    def detect(
        self, outputs: HeadOutputs, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        timer = timer or StageTimer()
        boxes, scores, coeff, proto = (torch.from_numpy(output[index]) for output in outputs)
        with timer.stage("nms"):
            kept = detect_image(boxes, scores, coeff, self._config, settings)
        with timer.stage("assembly"):
            masks = ops.assemble_masks(proto, kept.coeff, kept.boxes)
            height, width = masks.shape[1:]
            whole = MaskWindows(height, width, False, np.zeros((len(masks), 2), np.int64), tuple(masks.numpy()))
            mask_scores = None
            if self._rescorer is not None:
                on_device = (values.to(self._place) for values in (masks, kept.scores, kept.labels))
                mask_scores = ops.rescore_masks(self._rescorer, *on_device).cpu().numpy()
        return ImageDetections(kept.boxes.numpy(), kept.scores.numpy(), kept.labels.numpy(), whole, mask_scores)

    @torch.inference_mode()
    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        pasted = ops.paste_masks_full(torch.from_numpy(masks.dense()), height, width, masks.placement).numpy()
        return MaskCrops(height, width, np.zeros((len(pasted), 2), np.int64), tuple(pasted))

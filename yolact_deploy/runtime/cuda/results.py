"""Detections of a frame that stay on the GPU for other libraries.

Legend: D detection slots, h x w prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.priors import Placement
from yolact_deploy.runtime.cuda.arrays import SharedArray


@dataclass(frozen=True)
class DeviceDetections:
    """Detections of one frame in device memory, best first, which torch, CuPy and others use without a copy.

    With ``torch.from_dlpack(detections.boxes)`` or ``cupy.asarray(detections.masks)`` the consumer's stream waits for
    ours; the host does not wait. The memory belongs to the pipeline: **the second batch submitted after this one
    overwrites it**. Copy what you need for longer, and finish work on other streams that reads it before then.

    Slots past ``num_detections`` are zero. The last detections may score below the predictor's threshold, since only
    the host counts those above it.

    Attributes:
        num_detections: int32 [1]
        boxes: float32 [D, 4], xyxy normalized to the network's input, neither sorted nor clamped
        scores: float32 [D]
        labels: int32 [D], 0-based
        masks: float16 or float32 [D, h, w], probabilities at prototype resolution, 0 outside the boxes
        height: of the frame, in pixels
        width: of the frame, in pixels
        placement: where the frame lies in the network's input, which the boxes and masks cover
        mask_scores: float32 [D], of a YOLACT++ whose graph computes them
    """

    num_detections: SharedArray
    boxes: SharedArray
    scores: SharedArray
    labels: SharedArray
    masks: SharedArray
    height: int
    width: int
    placement: Placement
    mask_scores: SharedArray | None = None

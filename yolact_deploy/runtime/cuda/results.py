"""What was found in a frame, left on the GPU for other libraries.

Legend: D detection slots, h x w prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

from yolact_deploy.runtime.cuda.arrays import SharedArray


@dataclass(frozen=True)
class DeviceDetections:
    """Detections of one frame in device memory, best first, for torch, CuPy and others without a copy.

    ``torch.from_dlpack(found.boxes)``, ``cupy.asarray(found.masks)``: the consumer's stream waits for ours, the host
    for nothing. The memory is that of the pipeline: **the second batch submitted after this one overwrites it**, so
    what is wanted for longer must be copied, and work on other streams that reads it must be done by then.

    Slots past ``num_detections`` are zero. Detections below the predictor's score threshold may be among the last: how
    many there are above it is not known before the host asks.

    Attributes:
        num_detections: int32 [1]
        boxes: float32 [D, 4], xyxy normalised, neither sorted nor clamped
        scores: float32 [D]
        labels: int32 [D], 0-based
        masks: float16 or float32 [D, h, w], probabilities at prototype resolution, 0 outside the boxes
        height: of the frame, in pixels
        width: of the frame, in pixels
        mask_scores: float32 [D], of a YOLACT++ whose network gives them
    """

    num_detections: SharedArray
    boxes: SharedArray
    scores: SharedArray
    labels: SharedArray
    masks: SharedArray
    height: int
    width: int
    mask_scores: SharedArray | None = None

"""The eager PyTorch model as a backend: the reference to which every engine is compared.

It detects and pastes as the original does, with the torch functions of `ops`, so that nothing but the resized images is
shared with the other backends.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.paste import MaskCrops
from yolact_deploy.postprocess import MaskWindows
from yolact_deploy.preprocess import normalize
from yolact_deploy.runtime.backend import Backend, DetectSettings, HeadOutputs, ImageDetections, Outputs
from yolact_deploy.runtime.torch import ops


class Trunk(Protocol):
    """What the backend needs of a model: its configuration and its raw heads."""

    config: YolactConfig
    priors: torch.Tensor

    def heads(self, images: torch.Tensor) -> Any: ...
    def eval(self) -> Any: ...


class TorchBackend(Backend):
    """A YOLACT model in eager PyTorch, FP32, on the CPU.

    Args:
        model: in evaluation mode afterwards
        threads: of this process; by default PyTorch's choice
        input_dtype: "uint8" resizes as the exported graphs do, "float32" without rounding
    """

    name = "torch"
    precision = "fp32"
    fixed_batch = False
    max_batch = 16

    def __init__(self, model: Trunk, *, threads: int | None = None, input_dtype: str = "uint8") -> None:
        self.metadata = Metadata(config=model.config, tail="heads", input_dtype=input_dtype, batch=(1, 1, 16))
        self._model = model
        model.eval()
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(self, images: NDArray[Any]) -> Outputs:
        loc, logits, coeff, proto = self._model.heads(torch.from_numpy(normalize(images, self.metadata.config)))
        boxes = ops.decode_boxes(loc, self._model.priors)
        scores = logits.softmax(dim=-1)[..., 1:]
        return HeadOutputs(*(np.asarray(output) for output in (boxes, scores, coeff, proto)))

    @torch.inference_mode()
    def detect(self, outputs: Outputs, index: int, settings: DetectSettings) -> ImageDetections:
        assert isinstance(outputs, HeadOutputs)  # the only kind that run() gives
        config = self.metadata.config
        boxes, scores, coeff, proto = (torch.from_numpy(output[index]) for output in outputs)
        found = ops.detect(
            boxes,
            scores,
            coeff,
            score_threshold=config.score_threshold,
            iou_threshold=config.iou_threshold,
            top_k=config.top_k,
            max_detections=config.max_detections,
            nms=settings.nms,
            image_size=config.image_size,
        )
        keep = found.scores > settings.score_threshold
        boxes, scores, labels, coeff = (values[keep] for values in found)
        masks = ops.assemble_masks(proto, coeff, boxes).numpy()
        height, width = proto.shape[:2]
        whole = MaskWindows(height, width, False, np.zeros((len(masks), 2), np.int64), tuple(masks))
        return ImageDetections(boxes.numpy(), scores.numpy(), labels.numpy(), whole)

    @torch.inference_mode()
    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        pasted = ops.paste_masks_full(torch.from_numpy(masks.dense()), height, width).numpy()
        return MaskCrops(height, width, np.zeros((len(pasted), 2), np.int64), tuple(pasted))

    def describe(self) -> dict[str, Any]:
        return {"backend": self.name, "version": torch.__version__, "threads": torch.get_num_threads()}

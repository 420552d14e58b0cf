"""Tails: from a network's outputs to detections, and from masks at prototype resolution to masks at image size.

`HostTail` runs Fast NMS and mask assembly in NumPy, `GraphTail` takes the results of a graph that has run both itself.
The tail of the eager model is in `runtime.torch.torch_tail`; the CUDA frame path has kernels of its own.

Legend: N images, P priors, C classes, K coefficients, D detection slots, n detections, h x w prototypes.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, PackedMasks
from yolact_deploy.mask_iou import HostMaskIouNet
from yolact_deploy.paste import paste_windows
from yolact_deploy.postprocess import detect, mask_windows
from yolact_deploy.runtime.stage_timer import StageTimer

Floats = NDArray[np.float32]


class HeadOutputs(NamedTuple):
    """Outputs of a graph that stops after decoding (``tail="heads"``)."""

    boxes: Floats  #: [N, P, 4] xyxy normalized
    scores: Floats  #: [N, P, C] foreground probabilities
    coeff: Floats  #: [N, P, K]
    proto: Floats  #: [N, h, w, K]


class DetectionOutputs(NamedTuple):
    """Outputs of a graph that ends in detections (``tail="functions"``); slots past num_detections are zero."""

    num_detections: NDArray[np.int32]  #: [N]
    boxes: Floats  #: [N, D, 4] xyxy normalized
    scores: Floats  #: [N, D]
    labels: NDArray[np.int32]  #: [N, D]
    masks: NDArray[Any]  #: [N, D, h, w] probabilities, cropped
    mask_scores: Floats | None = None  #: [N, D], of a YOLACT++


Outputs = HeadOutputs | DetectionOutputs


#: axes of the outputs, by the legend above; axes of one letter have one length
_AXES: dict[type, tuple[str, ...]] = {
    HeadOutputs: ("NP4", "NPC", "NPK", "NhwK"),
    DetectionOutputs: ("N", "ND4", "ND", "ND", "NDhw", "ND"),
}


def output_axes(outputs: Outputs) -> dict[str, str]:
    """The axes of each output, by the legend of this module; P, h and w depend on the size of the input."""
    return dict(zip(outputs._fields, _AXES[type(outputs)], strict=True))


def require_shapes(outputs: Outputs, source: str) -> None:
    """Raise :class:`BackendError` if outputs do not fit each other, as those of a graph that somebody has changed."""
    lengths = {"4": 4}
    for name, axes, values in zip(outputs._fields, _AXES.get(type(outputs), ()), outputs, strict=False):
        if values is None:
            continue
        fits = len(values.shape) == len(axes)
        if not fits or any(lengths.setdefault(axis, n) != n for axis, n in zip(axes, values.shape, strict=True)):
            shapes = ", ".join(str(list(value.shape)) for value in outputs if value is not None)
            raise BackendError(
                f"{name} of {source} does not fit the other outputs ({shapes}): the file was changed. Export it again"
            )


class ImageDetections(NamedTuple):
    """Detections of one image as a tail or a frame hook returns them, best first."""

    boxes: Floats  #: [n, 4] xyxy normalized
    scores: Floats  #: [n]
    labels: NDArray[np.int64]  #: [n]
    masks: MaskWindows | MaskCrops | PackedMasks
    mask_scores: Floats | None = None  #: [n] for a YOLACT++: scores times the predicted IoUs of the masks

    def select(self, rows: NDArray[np.intp]) -> ImageDetections:
        """Some of the detections."""
        if len(rows) == len(self.scores):  # all of them: rows are distinct
            return self
        mask_scores = None if self.mask_scores is None else self.mask_scores[rows]
        return ImageDetections(
            self.boxes[rows], self.scores[rows], self.labels[rows], self.masks.select(rows), mask_scores
        )


@dataclass(frozen=True)
class DetectSettings:
    """What the user may choose about detection after the model is loaded."""

    score_threshold: float  #: detections must score above it
    nms: str  #: one of vocabulary.NMS_VARIANTS, for graphs that end in heads


class Tail(abc.ABC):
    """From a network's outputs to detections."""

    #: where it runs, for reports: "host", "graph", "torch"
    name: ClassVar[str]
    #: the outputs that it takes
    outputs: ClassVar[Callable[..., Outputs]]
    #: stages of :meth:`detect` before "detect", as :mod:`~yolact_deploy.runtime.stage_timer` names them
    stages: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def detect(
        self, outputs: Any, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        """Detections of image ``index`` of a batch.

        Args:
            outputs: of the type :attr:`outputs`
            timer: receives the time of each of :attr:`stages`
        """

    def with_config(self, config: YolactConfig) -> Tail:
        """The same tail with other settings of NMS; only those have it that run NMS themselves."""
        raise NotImplementedError

    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        """Masks from :meth:`detect` at the size of the image."""
        return paste_windows(masks, height, width)


class HostTail(Tail):
    """NMS and mask assembly in NumPy.

    Args:
        mask_iou: predicts the mask IoUs of a YOLACT++
    """

    name = "host"
    outputs = HeadOutputs
    stages = ("nms", "assembly")

    def __init__(self, config: YolactConfig, mask_iou: HostMaskIouNet | None = None) -> None:
        self._config, self._mask_iou = config, mask_iou

    def with_config(self, config: YolactConfig) -> HostTail:
        return HostTail(config, self._mask_iou)

    def detect(
        self, outputs: HeadOutputs, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        timer, config = timer or StageTimer(), self._config
        with timer.stage("nms"):
            kept = detect(
                outputs.boxes[index],
                outputs.scores[index],
                outputs.coeff[index],
                score_threshold=config.nms_score_threshold,
                iou_threshold=config.iou_threshold,
                top_k=config.top_k,
                max_detections=config.max_detections,
                nms=settings.nms,
                second_threshold=config.second_threshold,
                image_size=config.image_size,
            )
            kept = kept.select(kept.scores > settings.score_threshold)
        with timer.stage("assembly"):
            masks = mask_windows(outputs.proto[index], kept.coeff, kept.boxes)
            mask_scores = None
            if self._mask_iou is not None:
                mask_scores = kept.scores * self._mask_iou(masks.probabilities(), kept.labels)
        return ImageDetections(kept.boxes, kept.scores, kept.labels, masks, mask_scores)


class GraphTail(Tail):
    """For graphs that run NMS and mask assembly themselves: what is left is the user's score threshold."""

    name = "graph"
    outputs = DetectionOutputs

    def detect(
        self, outputs: DetectionOutputs, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        with (timer or StageTimer()).stage("detect"):
            count = int(outputs.num_detections[index])
            keep = np.flatnonzero(outputs.scores[index, :count] > settings.score_threshold)
            return ImageDetections(
                outputs.boxes[index, keep],
                outputs.scores[index, keep],
                outputs.labels[index, keep].astype(np.int64),
                MaskWindows.from_dense(outputs.masks[index, keep]),
                None if outputs.mask_scores is None else outputs.mask_scores[index, keep],
            )


def numpy_tail(config: YolactConfig, *, heads: bool, mask_iou: HostMaskIouNet | None = None) -> Tail:
    """The tail in NumPy for a network that ends in heads or in detections."""
    return HostTail(config, mask_iou) if heads else GraphTail()

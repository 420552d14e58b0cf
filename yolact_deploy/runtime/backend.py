"""What every backend is: a network that takes resized images and gives raw outputs as NumPy arrays.

A backend on a GPU has in addition a frame hook, which takes frames as they are and gives pasted masks.

Legend: N images, P priors, C classes, K coefficients, D detection slots, h x w prototypes, S input side.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.mask_forms import MaskCrops, MaskWindows, PackedMasks
from yolact_deploy.mask_iou import HostMaskIouNet
from yolact_deploy.paste import paste_windows
from yolact_deploy.postprocess import detect, mask_windows
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL, StageTimer

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections

Floats = NDArray[np.float32]


class HeadOutputs(NamedTuple):
    """Outputs of a graph that stops after decoding (``tail="heads"``)."""

    boxes: Floats  #: [N, P, 4] xyxy normalised
    scores: Floats  #: [N, P, C] foreground probabilities
    coeff: Floats  #: [N, P, K]
    proto: Floats  #: [N, h, w, K]


class DetectionOutputs(NamedTuple):
    """Outputs of a graph that ends in detections (``tail="functions"``); slots past num_detections are zero."""

    num_detections: NDArray[np.int32]  #: [N]
    boxes: Floats  #: [N, D, 4] xyxy normalised
    scores: Floats  #: [N, D]
    labels: NDArray[np.int32]  #: [N, D]
    masks: NDArray[Any]  #: [N, D, h, w] probabilities, cropped
    mask_scores: Floats | None = None  #: [N, D], of a YOLACT++


Outputs = HeadOutputs | DetectionOutputs


class ImageDetections(NamedTuple):
    """Detections of one image as a tail or a frame hook returns them, best first."""

    boxes: Floats  #: [n, 4] xyxy normalized
    scores: Floats  #: [n]
    labels: NDArray[np.int64]  #: [n]
    masks: MaskWindows | MaskCrops | PackedMasks
    mask_scores: Floats | None = None  #: [n] for a YOLACT++: scores times the predicted IoUs of the masks


@dataclass(frozen=True)
class DetectSettings:
    """What the user may choose about detection after the model is loaded."""

    score_threshold: float  #: of the final scores
    nms: str  #: one of vocabulary.NMS_VARIANTS, for graphs that end in heads


class FrameTicket(abc.ABC):
    """A batch of frames under way."""

    #: milliseconds of each stage of the hook's ``stages`` once the result is there; of all frames together
    timings: dict[str, float]

    @abc.abstractmethod
    def result(self, *, copy: bool = True) -> list[ImageDetections]:
        """Wait for the detections of each frame; asking again gives the same.

        Args:
            copy: False leaves the masks in the hook's own memory, which is overwritten when ``depth`` further batches
                have been submitted
        """

    @abc.abstractmethod
    def device_result(self) -> list[DeviceDetections]:
        """What was found in each frame as arrays on the device, without waiting for it."""


class FrameHook(abc.ABC):
    """Takes frames of any size as they are, in host memory or on the device. Several threads may use it at once."""

    #: keys of :attr:`FrameTicket.timings`
    stages: tuple[str, ...]
    #: how many batches can be under way before submitting another one waits
    depth: int

    @abc.abstractmethod
    def serves(self, settings: DetectSettings) -> bool:
        """Whether these settings can be had; otherwise :meth:`Backend.run` and :meth:`Backend.detect` serve them."""

    @abc.abstractmethod
    def is_device_array(self, value: object) -> bool:
        """Whether this is an array on a device; says nothing about its shape and dtype."""

    @abc.abstractmethod
    def submit(self, frames: Sequence[Any], settings: DetectSettings, *, for_device: bool = False) -> FrameTicket:
        """Start on up to ``max_batch`` frames and return at once.

        Args:
            frames: uint8 BGR [H, W, 3], NumPy arrays or arrays on the device, of which the latter must not be written
                to before the result is there
            for_device: the result is wanted on the device

        Raises:
            InputError: a frame of another shape, dtype or memory layout.
            BackendError: the GPU failed, or the backend is closed.
        """


class Backend(abc.ABC):
    """One network loaded into one runtime."""

    #: "onnxruntime", "openvino", "torch", ...
    name: str
    #: the precision the trunk computes in, for reports
    precision: str
    metadata: Metadata
    #: largest batch of one call, and whether smaller ones must be filled up
    max_batch: int = 1
    fixed_batch: bool = True
    #: gives heads' detections their mask scores, where the backend has such a network beside its graph
    mask_iou: HostMaskIouNet | None = None
    #: takes frames as they are, where the backend has such a way
    frames: FrameHook | None = None

    @abc.abstractmethod
    def run(self, images: NDArray[Any]) -> Outputs:
        """Run BGR images [N, S, S, 3] of ``metadata.input_dtype``; called by one thread at a time."""

    @property
    def gives_heads(self) -> bool:
        """Whether :meth:`run` gives heads, and not detections."""
        return self.metadata.tail == "heads"

    @property
    def run_stages(self) -> tuple[str, ...]:
        """Stages of :meth:`run`, as :mod:`~yolact_deploy.runtime.stage_timer` names them."""
        return ("network" if self.gives_heads else NETWORK_WITH_TAIL,)

    def run_timed(self, images: NDArray[Any], timer: StageTimer) -> Outputs:
        """:meth:`run`, with the time of each of :attr:`run_stages` added to ``timer``."""
        (stage,) = self.run_stages
        with timer.stage(stage):
            return self.run(images)

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-ready facts about the runtime: versions, threads, device."""

    def detect(
        self, outputs: Outputs, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        """Detections of image ``index`` of a batch.

        Args:
            timer: gets the time of heads' "nms" and "assembly", of detections' "detect"
        """
        timer = timer or StageTimer()
        if not isinstance(outputs, HeadOutputs):
            with timer.stage("detect"):
                return _above(outputs, index, settings.score_threshold)
        config = self.metadata.config
        with timer.stage("nms"):
            found = detect(
                outputs.boxes[index],
                outputs.scores[index],
                outputs.coeff[index],
                score_threshold=config.score_threshold,
                iou_threshold=config.iou_threshold,
                top_k=config.top_k,
                max_detections=config.max_detections,
                nms=settings.nms,
                image_size=config.image_size,
            )
            found = found.select(found.scores > settings.score_threshold)
        with timer.stage("assembly"):
            masks = mask_windows(outputs.proto[index], found.coeff, found.boxes)
            mask_scores = None
            if self.mask_iou is not None:
                mask_scores = found.scores * self.mask_iou(masks.probabilities(), found.labels)
        return ImageDetections(found.boxes, found.scores, found.labels, masks, mask_scores)

    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        """Masks as :meth:`detect` gave them, at the size of the image."""
        return paste_windows(masks, height, width)

    def close(self) -> None:  # noqa: B027  # most backends leave it to the garbage collector
        """Free the runtime's memory."""


def _above(outputs: DetectionOutputs, index: int, score_threshold: float) -> ImageDetections:
    """Detections of image ``index`` that score above the threshold."""
    count = int(outputs.num_detections[index])
    keep = np.flatnonzero(outputs.scores[index, :count] > score_threshold)
    return ImageDetections(
        outputs.boxes[index, keep],
        outputs.scores[index, keep],
        outputs.labels[index, keep].astype(np.int64),
        MaskWindows.from_dense(outputs.masks[index, keep]),
        None if outputs.mask_scores is None else outputs.mask_scores[index, keep],
    )

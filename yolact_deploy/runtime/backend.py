"""What every backend is: a network that takes resized images and gives raw outputs as NumPy arrays.

Legend: N images, P priors, C classes, K coefficients, D detection slots, h x w prototypes, S input side.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata

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


Outputs = HeadOutputs | DetectionOutputs


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

    @abc.abstractmethod
    def run(self, images: NDArray[Any]) -> Outputs:
        """Run BGR images [N, S, S, 3] of ``metadata.input_dtype``; called by one thread at a time."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-ready facts about the runtime: versions, threads, device."""

    def close(self) -> None:  # noqa: B027  # most backends leave it to the garbage collector
        """Free the runtime's memory."""

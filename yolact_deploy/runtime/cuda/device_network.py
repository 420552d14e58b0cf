"""The interface of a network on the GPU that the frame path uses, whichever runtime it comes from.

Legend: N images, P priors, C classes, K coefficients, D detection slots, h x w prototypes, S input side.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from yolact_deploy.runtime.backend import Network
from yolact_deploy.runtime.cuda.driver import Stream


class DeviceTensor(NamedTuple):
    """A tensor of a network in device memory, contiguous."""

    pointer: int  #: address; 0 if a bindable network has no memory of its own for it
    shape: tuple[int, ...]  #: at the largest batch; smaller batches use the start of the memory
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class DeviceNetwork(Network):
    """A loaded network whose input and outputs stay in device memory.

    ``input`` is [N, S, S, 3] BGR of ``metadata.input_dtype``; ``outputs`` have the exported names. With tail
    "functions": num_detections int32 [N], boxes float32 [N, D, 4], scores float32 [N, D], labels int32 [N, D], masks
    float16 or float32 [N, D, h, w], and for YOLACT++ mask_scores float32 [N, D]. With tail "heads": boxes, scores and
    coeff float32, proto float16 or float32.

    The pipeline calls :meth:`enqueue` from one thread at a time, with the device current. All work of a network runs on
    one stream, so overlapping frames can share its memory.
    """

    #: whether ``enqueue`` may be captured into a CUDA graph; read again before each capture
    capturable: bool = False
    #: whether :meth:`bind_outputs` chooses where outputs are written; otherwise the network owns that memory
    bindable: bool = False
    input: DeviceTensor
    outputs: Mapping[str, DeviceTensor]

    @abc.abstractmethod
    def enqueue(self, stream: Stream, batch: int) -> None:
        """Enqueue one inference of the first ``batch`` images (``max_batch`` if the batch is fixed) on the stream.

        Only the first run of each batch size may wait for the GPU.
        """

    def bind_outputs(self, pointers: Mapping[str, int]) -> None:
        """Write each output to this address from the next ``enqueue`` on; only for ``bindable`` networks.

        Graphs captured earlier keep writing to the addresses of their capture.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def close(self) -> None:
        """Free the runtime's memory; the stream must have finished."""

"""What the frame path needs of a network on the GPU, whichever runtime it comes from.

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

    pointer: int  #: address; 0 where a bindable network has no memory of its own for it
    shape: tuple[int, ...]  #: at the largest batch; smaller batches use the beginning of the memory
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class DeviceNetwork(Network):
    """A loaded network whose input and outputs stay in device memory.

    ``input`` is [N, S, S, 3] BGR of ``metadata.input_dtype``; ``outputs`` have the exported names: with tail
    "functions" num_detections int32 [N], boxes float32 [N, D, 4], scores float32 [N, D], labels int32 [N, D], masks
    float16 or float32 [N, D, h, w], and of a YOLACT++ mask_scores float32 [N, D]; with tail "heads" boxes, scores and
    coeff float32, proto float16 or float32.

    The pipeline calls :meth:`enqueue` from one thread at a time, with the device current. Work of one network is on one
    stream only, so its memory needs no copies for frames that overlap.
    """

    #: whether ``enqueue`` may be captured into a CUDA graph; asked anew before each capture
    capturable: bool = False
    #: whether outputs are written where :meth:`bind_outputs` says, instead of to memory of the network's own
    bindable: bool = False
    input: DeviceTensor
    outputs: Mapping[str, DeviceTensor]

    @abc.abstractmethod
    def enqueue(self, stream: Stream, batch: int) -> None:
        """Put one inference of the first ``batch`` images (``max_batch`` where the batch is fixed) on the stream.

        Never waits for the GPU once the same batch has run before; the first run of a batch may.
        """

    def bind_outputs(self, pointers: Mapping[str, int]) -> None:
        """Write each output to this address from the next ``enqueue`` on; only of networks that are ``bindable``.

        Graphs that were captured before go on writing to the addresses of their capture.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def close(self) -> None:
        """Free the runtime's memory, after the stream has come to its end."""

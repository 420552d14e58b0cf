"""One of the slots for a batch in flight: its memory on host and device, and its marks in the stream.

Legend: N images at the largest batch, D detection slots, K coefficients, h x w prototypes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.cuda.layout import Arrays, Layout, aligned
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.frame_pipeline import Ticket

_LEAST_CAPACITY = 4096


class Slot:
    """Memory of one batch, and its user. Hold ``lock`` to touch anything else.

    Attributes:
        arrays: shape and dtype of the results: num_detections int32 [N], boxes float32 [N, D, 4], scores float32
            [N, D], labels int32 [N, D], windows int32 [N, D, 6], words_needed int32 [N], wanted int32 [N] (detections
            above the user's threshold) and masks [N, D, h, w]; coeff [N, D, K] if the network ends in heads;
            mask_scores float32 [N, D] for a YOLACT++ that ends in detections
        pointers: device addresses of these, of image_sizes int32 [N, 2], and of bits uint32 [N, capacity], which is
            pinned host memory
        host: the arrays that are downloaded: all up to wanted, and mask_scores
        detections: D
        capacity: room for packed masks, in words per image
        marks: events by name: "start", and the end of each of :func:`stream_stages`
        done: an event at the end of the batch
        ticket: waits for the results of the slot
        busy: whether the stream may still use the slot
        memory: on the device
    """

    def __init__(self, device: Device, network: DeviceNetwork, index: int) -> None:
        self.index = index
        self.lock = threading.Lock()
        self.ticket: Ticket | None = None
        self.busy = False
        self.marks = {mark: device.event() for mark in ("start", *stream_stages(network))}
        self.done = device.event(timing=False)
        self._device, self._network, self._batch = device, network, network.max_batch
        self.pointers: dict[str, int] = {}
        self.make_results(detection_slots(network, "fast"))
        self._header = aligned(network.max_batch * 8)
        self.make_room(())
        self.make_bits(_LEAST_CAPACITY)

    def occupy(self, frames: Sequence[Any]) -> None:
        """The stream uses the slot from now on; frames on the device are kept alive until it is released."""
        self.busy, self._owners = True, frames

    def release(self) -> None:
        """The stream no longer uses the slot."""
        self.ticket, self.busy, self._owners = None, False, ()

    def close(self) -> None:
        """Drop the memory, which is freed once no result refers to it."""
        for event in (*self.marks.values(), self.done):
            event.close()
        del self.memory, self.host, self._host, self.bits, self._bits
        del self._bytes, self._sizes, self._staging, self._frames

    # -- frames in --------------------------------------------------------------------------------------------------

    def fits(self, nbytes: Sequence[int]) -> bool:
        """Whether there is room for frames of these sizes."""
        return self._header + sum(map(aligned, nbytes)) <= self._staging.nbytes

    def make_room(self, nbytes: Sequence[int]) -> None:
        """Make room for frames of these sizes; the stream must no longer use the slot, nor graphs its addresses."""
        # A quarter more, so that images of varying sizes do not reallocate each time.
        total = self._header + sum(map(aligned, nbytes)) * 5 // 4
        staging = self._device.pinned(total, "frames")
        # If CPU and GPU share one memory, the kernels read the frames in place.
        self.needs_upload = not self._device.integrated
        self._frames = self._device.allocate(total, "frames") if self.needs_upload else staging
        self._staging = staging
        self._bytes: NDArray[np.uint8] = staging.array(np.uint8, (total,))
        self._sizes = self._bytes[: self._batch * 8].view(np.int32).reshape(self._batch, 2)
        self.pointers["image_sizes"] = self._frames.pointer

    def stage(self, frames: Sequence[NDArray[np.uint8]]) -> tuple[list[int], int]:
        """Copy frames from host memory into pinned memory.

        Returns:
            the device address of each frame after the upload, and the bytes to upload for all of them
        """
        offset, pointers = self._header, []
        for frame in frames:
            np.copyto(self._bytes[offset : offset + frame.size].reshape(frame.shape), frame)
            pointers.append(self._frames.pointer + offset)
            offset += aligned(frame.size)
        return pointers, offset

    def set_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Set height and width of each frame; they are uploaded ahead of the frames."""
        self._sizes[: len(sizes)] = sizes

    def upload(self, nbytes: int) -> tuple[int, int, int]:
        """Target, source and bytes of the upload."""
        return self._frames.pointer, self._staging.host_pointer, nbytes

    # -- results out ------------------------------------------------------------------------------------------------

    def make_results(self, detections: int) -> None:
        """Make room for this many detections per image; same conditions as for :meth:`make_room`."""
        small, large = _results(self._network, detections)
        first, both = Layout(small), Layout({**small, **large})
        memory = self._device.allocate(both.nbytes, "results")
        self._host = self._device.pinned(first.nbytes, "results")
        self.host = first.views(self._host)
        self.memory, self._downloaded = memory, first.nbytes
        self.pointers |= both.pointers(memory.pointer)
        self.detections, self.arrays = detections, {**small, **large}

    def make_bits(self, capacity: int) -> None:
        """Make room for this many words of packed masks per image; same conditions as for :meth:`make_room`."""
        self._bits = self._device.pinned(self._batch * capacity * 4, "packed masks")
        self.bits: NDArray[np.uint32] = self._bits.array(np.uint32, (self._batch, capacity))
        self.pointers["bits"] = self._bits.pointer
        self.capacity = capacity

    def download(self) -> tuple[int, int, int]:
        """Target, source and bytes of the download."""
        return self._host.host_pointer, self.memory.pointer, self._downloaded

    def timings(self, stages: Sequence[str]) -> dict[str, float]:
        """Milliseconds of each stage of the last finished batch; ``stages`` are the stages that it had."""
        marks = [self.marks["start"], *(self.marks[stage] for stage in stages)]
        return {stage: end.elapsed_since(start) for stage, start, end in zip(stages, marks, marks[1:], strict=False)}


def network_stage(network: DeviceNetwork) -> str:
    """Name of the network's stage."""
    return "network" if network.metadata.tail == "heads" else NETWORK_WITH_TAIL


def stream_stages(network: DeviceNetwork) -> tuple[str, ...]:
    """Stages of a batch of frames on the stream, in order."""
    tail = ("nms", "assembly") if network.metadata.tail == "heads" else ()
    return ("upload", "preprocess", network_stage(network), *tail, "paste", "download")


def detection_slots(network: DeviceNetwork, nms: str) -> int:
    """Most detections per image; cross-class NMS is limited only by the length of its list."""
    if network.metadata.tail != "heads":
        return network.outputs["scores"].shape[1]
    config = network.metadata.config
    return min(config.top_k, config.num_priors) if nms == "cross-class" else config.max_detections


def _results(network: DeviceNetwork, detections: int) -> tuple[Arrays, Arrays]:
    """The arrays that are downloaded, and those that stay on the device."""
    n, d, outputs = network.max_batch, detections, network.outputs
    small: Arrays = {
        "num_detections": ((n,), "int32"),
        "boxes": ((n, d, 4), "float32"),
        "scores": ((n, d), "float32"),
        "labels": ((n, d), "int32"),
        "windows": ((n, d, 6), "int32"),
        "words_needed": ((n,), "int32"),
        "wanted": ((n,), "int32"),
    }
    if network.metadata.tail != "heads":
        if "mask_scores" in outputs:
            small["mask_scores"] = ((n, d), "float32")
        return small, {"masks": (outputs["masks"].shape, outputs["masks"].dtype.name)}
    _, h, w, k = outputs["proto"].shape
    return small, {"masks": ((n, d, h, w), outputs["proto"].dtype.name), "coeff": ((n, d, k), "float32")}

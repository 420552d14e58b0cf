"""One of the slots for a batch in flight: its memory on host and device, and its marks in the stream.

Legend: N images at the largest batch, D detection slots, K coefficients, h x w prototypes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.priors import Placement
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.cuda.layout import Arrays, Layout, aligned
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.frame_pipeline import Ticket

_LEAST_CAPACITY = 4096
_PLACEMENT_BYTES = 4 * len(Placement._fields)


class Slot:
    """Memory of one batch, and its user. Hold ``lock`` to touch anything else.

    Attributes:
        arrays: shape and dtype of the results on the device: num_detections int32 [N], boxes float32 [N, D, 4], scores
            float32 [N, D], labels int32 [N, D], windows int32 [N, D, 6] and masks [N, D, h, w]; coeff [N, D, K] if the
            network ends in heads; mask_scores float32 [N, D] for a YOLACT++ that ends in detections
        host: results in pinned host memory, which the kernels write: wanted int32 [N] (detections above the user's
            threshold), words_needed int32 [N], and found_boxes, found_scores, found_labels, found_windows and
            found_mask_scores, of which the first ``wanted`` of each image are valid
        pointers: device addresses of both, of placements int32 [N, 6], and of bits uint32 [N, capacity], which is
            pinned host memory
        detections: D
        capacity: room for packed masks, in words per image
        marks: events by name: "start", and the end of each of :func:`stream_stages` and of "download"
        uploaded, ready: events that order the streams: the frames are on the device, and the masks are
        done: an event at the end of the batch
        ticket: waits for the results of the slot
        busy: whether the stream may still use the slot
        memory: on the device
    """

    def __init__(self, device: Device, network: DeviceNetwork, index: int, *, in_place: bool) -> None:
        """Args:
        in_place: the kernels read frames in pinned host memory, without an upload
        """
        self.index = index
        self.needs_upload = not in_place
        self.lock = threading.Lock()
        self.ticket: Ticket | None = None
        self.busy = False
        self.marks = {mark: device.event() for mark in ("start", *stream_stages(network), "download")}
        self.uploaded, self.ready, self.done = (device.event(timing=False) for _ in range(3))
        self._device, self._network, self._batch = device, network, network.max_batch
        self.pointers: dict[str, int] = {}
        self.make_results(detection_slots(network, "fast"))
        self._header = aligned(network.max_batch * _PLACEMENT_BYTES)
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
        for event in (*self.marks.values(), self.uploaded, self.ready, self.done):
            event.close()
        del self.memory, self.host, self._host, self.bits, self._bits
        del self._bytes, self._placements, self._staging, self._frames

    # -- frames in --------------------------------------------------------------------------------------------------

    def fits(self, nbytes: Sequence[int]) -> bool:
        """Whether there is room for frames of these sizes."""
        return self._header + sum([aligned(size) for size in nbytes]) <= self._staging.nbytes

    def make_room(self, nbytes: Sequence[int]) -> None:
        """Make room for frames of these sizes; the stream must no longer use the slot, nor graphs its addresses."""
        # A quarter more, so that images of varying sizes do not reallocate each time.
        total = self._header + sum(map(aligned, nbytes)) * 5 // 4
        staging = self._device.pinned(total, "frames")
        self._frames = self._device.allocate(total, "frames") if self.needs_upload else staging
        self._staging = staging
        self._bytes: NDArray[np.uint8] = staging.array(np.uint8, (total,))
        self._placements = self._bytes[: self._batch * _PLACEMENT_BYTES].view(np.int32).reshape(self._batch, -1)
        self._placed: list[Placement] = []
        self.pointers["placements"] = self._frames.pointer

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

    def set_placements(self, placements: list[Placement]) -> None:
        """Set where each frame lies in the network's input; they are uploaded ahead of the frames."""
        if placements != self._placed:  # frames of a video all lie alike
            self._placements[: len(placements)] = placements
            self._placed = placements

    def upload(self, nbytes: int) -> tuple[int, int, int]:
        """Target, source and bytes of the upload."""
        return self._frames.pointer, self._staging.host_pointer, nbytes

    # -- results out ------------------------------------------------------------------------------------------------

    def make_results(self, detections: int) -> None:
        """Make room for this many detections per image; same conditions as for :meth:`make_room`."""
        arrays, for_host = _results(self._network, detections)
        there, here = Layout(arrays), Layout(for_host)
        memory = self._device.allocate(there.nbytes, "results")
        self._host = self._device.pinned(here.nbytes, "results")
        self.host = here.views(self._host)
        self.memory = memory
        self.pointers |= {**there.pointers(memory.pointer), **here.pointers(self._host.pointer)}
        self.detections, self.arrays = detections, arrays

    def make_bits(self, capacity: int) -> None:
        """Make room for this many words of packed masks per image; same conditions as for :meth:`make_room`."""
        self._bits = self._device.pinned(self._batch * capacity * 4, "packed masks")
        self.bits: NDArray[np.uint32] = self._bits.array(np.uint32, (self._batch, capacity))
        self.pointers["bits"] = self._bits.pointer
        self.capacity = capacity

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
    return ("upload", "preprocess", network_stage(network), *tail, "paste")


def detection_slots(network: DeviceNetwork, nms: str) -> int:
    """Most detections per image; cross-class NMS is limited only by the length of its list."""
    if network.metadata.tail != "heads":
        return network.outputs["scores"].shape[1]
    config = network.metadata.config
    return min(config.top_k, config.num_priors) if nms == "cross-class" else config.max_detections


def _results(network: DeviceNetwork, detections: int) -> tuple[Arrays, Arrays]:
    """The results on the device, and those in host memory."""
    n, d, outputs = network.max_batch, detections, network.outputs
    small: Arrays = {
        "boxes": ((n, d, 4), "float32"),
        "scores": ((n, d), "float32"),
        "labels": ((n, d), "int32"),
        "windows": ((n, d, 6), "int32"),
    }
    if "mask_scores" in outputs:
        small["mask_scores"] = ((n, d), "float32")
    found = {f"found_{name}": array for name, array in small.items()}
    host: Arrays = {"wanted": ((n,), "int32"), "words_needed": ((n,), "int32"), **found}
    if network.metadata.tail != "heads":
        large: Arrays = {"masks": (outputs["masks"].shape, outputs["masks"].dtype.name)}
    else:
        _, h, w, k = outputs["proto"].shape
        large = {"masks": ((n, d, h, w), outputs["proto"].dtype.name), "coeff": ((n, d, k), "float32")}
    return {"num_detections": ((n,), "int32"), **small, **large}, host

"""From frames to pasted detections on the GPU, with one launch and one wait per batch if possible.

A batch takes one of two slots. Its frames are copied into pinned memory, and the stream does the rest, up to packed
masks in host memory. So the CPU prepares one batch while the GPU works on the one before.

Several threads may use a pipeline: each slot has a lock, and the stream has another, which is always taken last. This
module does not know which runtime the network comes from.

Legend: N images, D detection slots, H x W a frame.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import PackedMasks
from yolact_deploy.preprocess import check_image
from yolact_deploy.priors import place
from yolact_deploy.runtime.backend import FrameHook, FrameTicket
from yolact_deploy.runtime.cuda.arrays import DeviceArray, SharedArray, is_device_array
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.cuda.frame_work import Frame, FrameJob, FrameWork
from yolact_deploy.runtime.cuda.jpeg import JpegDecoder
from yolact_deploy.runtime.cuda.results import DeviceDetections
from yolact_deploy.runtime.cuda.slot import Slot, detection_slots, network_stage, stream_stages
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import DetectSettings, ImageDetections

#: initial room for packed masks, in masks that cover a whole frame
_FULL_MASKS = 8


class FramePipeline(FrameHook):
    """The frame hook of a network on a GPU.

    Args:
        device: where it runs
        network: closed together with the pipeline
        graphs: False enqueues everything directly, for comparison and debugging
        in_place: whether the kernels read frames in pinned host memory, without an upload; by default where CPU and
            GPU share their memory
        jpeg: decodes JPEG files on the device; by default OpenCV does
    """

    depth = 2

    def __init__(
        self,
        device: Device,
        network: DeviceNetwork,
        *,
        graphs: bool = True,
        in_place: bool | None = None,
        jpeg: JpegDecoder | None = None,
    ) -> None:
        self.device, self.network, self._jpeg = device, network, jpeg
        self.stage_times = False
        self.stream_stages = stream_stages(network)
        self.in_place = device.integrated if in_place is None else in_place
        #: stages of :meth:`infer`
        self.infer_stages = ("upload", network_stage(network), "download")
        self._lock = threading.Lock()
        self._turn = itertools.count()
        self._closed = False
        with device:
            self._work = FrameWork(device, network, graphs=graphs)
            self.stream = self._work.stream
            self._slots = [Slot(device, network, index, in_place=self.in_place) for index in range(self.depth)]

    # -- the hook ---------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[str, ...]:  # type: ignore[override]
        """Copy (frames into pinned memory), launch, wait and read (masks out of it) are times of the host."""
        return ("copy", *(self.stream_stages if self.stage_times else ("launch", "wait")), "read")

    def serves(self, settings: DetectSettings) -> bool:
        return self.network.metadata.tail != "heads" or settings.nms in ("fast", "cross-class")

    def is_device_array(self, value: object) -> bool:
        return is_device_array(value)

    def read(self, path: str | os.PathLike[str]) -> Any | None:
        if self._jpeg is None:
            return None
        with self.device:
            return self._jpeg.read(path)

    def submit(self, frames: Sequence[Any], settings: DetectSettings, *, for_device: bool = False) -> Ticket:
        if not 1 <= len(frames) <= self.network.max_batch:
            raise InputError(f"expected 1 to {self.network.max_batch} frames, got {len(frames)}")
        images = {i: check_image(frame) for i, frame in enumerate(frames) if not is_device_array(frame)}
        slot = self._slots[next(self._turn) % self.depth]
        with slot.lock:
            self._vacate(slot)
            start = time.perf_counter()
            pointers, upload = self._stage(slot, list(images.values()))
            copy_ms = (time.perf_counter() - start) * 1e3
            with self._lock, self.device:
                placed = self._place(frames, images, pointers)
                config = self.network.metadata.config
                slot.set_placements([place(frame.height, frame.width, config) for frame in placed])
                self._reserve(slot, detection_slots(self.network, settings.nms))
                if not for_device:
                    self._reserve_bits(slot, _FULL_MASKS * max(f.height * -(-f.width // 32) for f in placed))
                job = FrameJob(slot.index, len(placed), settings, for_device, self.stage_times)
                ticket = Ticket(self, slot, job, placed)
                slot.occupy(tuple(frames))
                overlap = any(other.busy for other in self._slots if other is not slot)
                launch = time.perf_counter()
                self._work.enqueue(slot, job, placed, upload, overlap=overlap)
                ticket.add("launch", launch)
            ticket.timings["copy"] = copy_ms
            slot.ticket = None if for_device else ticket
        return ticket

    def infer(self, images: NDArray[Any], timer: StageTimer | None = None) -> dict[str, NDArray[Any]]:
        """Outputs of the network alone for images [N, h, w, 3]; see :meth:`FrameWork.infer`.

        Args:
            timer: receives the time of each of :attr:`infer_stages`
        """
        slot = self._slots[next(self._turn) % self.depth]
        with slot.lock:
            self._vacate(slot)
            with self._lock, self.device:
                outputs = self._work.infer(images, slot)
                if timer is not None:
                    timer.add(slot.timings(self.infer_stages))
                return outputs

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts: use of graphs, and bytes of device and pinned memory by label, for all pipelines."""
        decode = "cpu" if self._jpeg is None else "gpu"
        memory = {"device_bytes": self.device.usage(), "pinned_bytes": self.device.pinned_usage()}
        return {
            **self._work.describe(),
            "frames": "in place" if self.in_place else "uploaded",
            "decode": decode,
            **memory,
        }

    def close(self) -> None:
        """Finish the batches in flight and free everything. Results that were not read yet stay available."""
        for slot in self._slots:
            slot.lock.acquire()
        try:
            if self._closed:
                return
            for slot in self._slots:
                self._vacate(slot)
            self._closed = True
            with self._lock, self.device:
                self._work.close()
                for slot in self._slots:
                    slot.close()
                self.network.close()
                self._work.close_streams()
        finally:
            for slot in self._slots:
                slot.lock.release()

    # -- before the stream ------------------------------------------------------------------------------------------

    def _vacate(self, slot: Slot) -> None:
        """Free a slot: take its results out for their ticket, or wait until the device has finished."""
        if self._closed:
            raise BackendError("this model is closed: load it again")
        if slot.ticket is not None:
            slot.ticket.collect(copy=True)
        elif slot.busy:
            slot.done.synchronize()
            slot.release()

    def _stage(self, slot: Slot, images: list[NDArray[np.uint8]]) -> tuple[list[int], int]:
        sizes = [image.nbytes for image in images]
        if not slot.fits(sizes):
            with self._lock, self.device:
                self._work.forget(slot)
                slot.make_room(sizes)
        return slot.stage(images)

    def _place(
        self, frames: Sequence[Any], images: dict[int, NDArray[np.uint8]], pointers: list[int]
    ) -> tuple[Frame, ...]:
        """Where the GPU reads each frame; our stream waits for frames that other streams still write."""
        if len(images) == len(frames):
            return tuple(
                [Frame(p, f.shape[0], f.shape[1], 3 * f.shape[1]) for p, f in zip(pointers, frames, strict=True)]
            )
        staged = {
            index: Frame(pointer, image.shape[0], image.shape[1], 3 * image.shape[1])
            for pointer, (index, image) in zip(pointers, images.items(), strict=True)
        }
        return tuple(staged[i] if i in staged else self._take(frame) for i, frame in enumerate(frames))

    def _take(self, frame: Any) -> Frame:
        array = DeviceArray.from_any(frame, self.stream)
        images = array.as_images()
        if len(array.shape) != 3:
            raise InputError(f"expected frames [H, W, 3], got {list(array.shape)}: pass a list of its images")
        return Frame(images.pointers[0], images.height, images.width, images.pitch)

    def _reserve(self, slot: Slot, detections: int) -> None:
        """Make room for this many detections per image."""
        if detections != slot.detections:
            self._work.forget(slot)
            slot.make_results(detections)

    def _reserve_bits(self, slot: Slot, words: int) -> None:
        """Make room for this many words of packed masks per image."""
        if words > slot.capacity:
            self._work.forget(slot)
            slot.make_bits(words)

    # -- after the stream -------------------------------------------------------------------------------------------

    def wait(self, slot: Slot, job: FrameJob) -> None:
        """Wait for the end of a batch; if its masks did not fit, make enough room and paste them again."""
        slot.done.synchronize()
        needed = max(slot.host["words_needed"][: job.batch].tolist())
        if needed > slot.capacity:
            with self._lock, self.device:
                self._reserve_bits(slot, needed * 5 // 4)
                self._work.paste_again(slot, job)
            slot.done.synchronize()


class Ticket(FrameTicket):
    """A batch in a slot."""

    def __init__(self, pipeline: FramePipeline, slot: Slot, job: FrameJob, frames: tuple[Frame, ...]) -> None:
        self._pipeline, self._slot, self._job, self._frames = pipeline, slot, job, frames
        self._results: list[ImageDetections] | None = None
        self._error: BackendError | None = None
        self.timings = dict.fromkeys(pipeline.stages, 0.0)

    def add(self, stage: str, start: float) -> None:
        """Note the milliseconds since a time of the host, if the stages are those of the host."""
        if not self._job.timed:
            self.timings[stage] = (time.perf_counter() - start) * 1e3

    def result(self, *, copy: bool = True) -> list[ImageDetections]:
        if self._job.for_device:
            raise BackendError("this batch was submitted for results on the device: see device_result()")
        if self._results is None and self._error is None:
            with self._slot.lock:
                if self._slot.ticket is self:  # else another thread was faster
                    self.collect(copy=copy)
        if self._error is not None:
            raise self._error
        assert self._results is not None
        return self._results

    def collect(self, *, copy: bool) -> None:
        """Take the results out of the slot and free it; its lock must be held."""
        slot = self._slot
        try:
            start = time.perf_counter()
            self._pipeline.wait(slot, self._job)
            self.add("wait", start)
            self._results = [self._read(index, frame, copy) for index, frame in enumerate(self._frames)]
            if self._job.timed:
                self.timings.update(slot.timings(self._pipeline.stream_stages))
        except BackendError as error:  # raised to the reader of this result, not to the next user of the slot
            self._error = error
        finally:
            slot.release()

    def _read(self, index: int, frame: Frame, copy: bool) -> ImageDetections:
        host = self._slot.host
        count = host["wanted"][index]
        # Only detections above the user's threshold were pasted.
        bits = self._slot.bits[index, : host["words_needed"][index]]
        if copy:
            start = time.perf_counter()
            bits = bits.copy()
            self.timings["read"] += (time.perf_counter() - start) * 1e3
        mask_scores = host.get("found_mask_scores")
        return ImageDetections(
            host["found_boxes"][index, :count].copy(),
            host["found_scores"][index, :count].copy(),
            host["found_labels"][index, :count].astype(np.int64),
            PackedMasks(host["found_windows"][index, :count].copy(), bits, frame.height, frame.width),
            None if mask_scores is None else mask_scores[index, :count].copy(),
        )

    def device_result(self) -> list[DeviceDetections]:
        if not self._job.for_device:
            raise BackendError("this batch was submitted for results in host memory: see result()")
        return [self._shared(index, frame) for index, frame in enumerate(self._frames)]

    def _shared(self, index: int, frame: Frame) -> DeviceDetections:
        slot, pipeline = self._slot, self._pipeline

        def share(name: str) -> SharedArray:
            shape, dtype = slot.arrays[name][0][1:] or (1,), np.dtype(slot.arrays[name][1])
            pointer = slot.pointers[name] + index * math.prod(shape) * dtype.itemsize
            return SharedArray(slot.memory, pointer, shape, dtype, pipeline.device, pipeline.stream, slot.done)

        names = ("num_detections", "boxes", "scores", "labels", "masks", "mask_scores")
        shared = {name: share(name) for name in names if name in slot.arrays}
        where = place(frame.height, frame.width, pipeline.network.metadata.config)
        return DeviceDetections(**shared, height=frame.height, width=frame.width, placement=where)

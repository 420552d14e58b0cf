"""The work of a batch of frames on one stream, as one CUDA graph if possible.

There are three parts: *before* the network (upload, resize), the network, and *after* it (NMS and masks if the network
ends in heads, paste, download). The network and the part after it do not depend on the sizes of the frames, so one
graph serves all sizes. Sizes that occur again get a graph of all three parts. A network that cannot be captured has
graphs around it.

Used by one thread at a time, with the device current.

Legend: N images, H x W a frame, S input side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device, Stream
from yolact_deploy.runtime.cuda.frame_kernels import FrameKernels
from yolact_deploy.runtime.cuda.graph_cache import GraphCache
from yolact_deploy.runtime.cuda.layout import Layout
from yolact_deploy.runtime.cuda.slot import Slot, network_stage
from yolact_deploy.runtime.tails import DetectSettings


class Frame(NamedTuple):
    """A frame that the GPU can read."""

    pointer: int
    height: int
    width: int
    pitch: int  #: bytes from one row to the next


class FrameJob(NamedTuple):
    """The work on the frames of a slot, whatever their sizes; hashable, as a key of graphs."""

    slot: int
    batch: int  #: frames
    settings: DetectSettings
    for_device: bool  #: leave the masks whole and on the device


def equal_frames(frames: Sequence[Frame]) -> Iterator[tuple[int, int, int]]:
    """Runs of frames of one size that are equally far apart: index of the first, number, and bytes between two."""
    index = 0
    while index < len(frames):
        count, stride = 1, 0
        for before, frame in itertools.pairwise(frames[index:]):
            step = frame.pointer - before.pointer
            if frame[1:] != before[1:] or (count > 1 and step != stride):
                break
            count, stride = count + 1, step
        yield index, count, stride
        index += count


class FrameWork:
    """Enqueues batches on the stream.

    Args:
        graphs: False enqueues everything directly
    """

    def __init__(self, device: Device, network: DeviceNetwork, stream: Stream, *, graphs: bool) -> None:
        self.network, self.stream = network, stream
        self._heads = network.metadata.tail == "heads"
        #: outputs of a network that ends in detections; the slot has arrays of the same names
        self._detections = () if self._heads else network.metadata.outputs
        self._network_stage = network_stage(network)
        self._graphs = GraphCache(stream) if graphs else None
        self._network_in_graphs = graphs
        self._memory = None
        pointers = {name: tensor.pointer for name, tensor in network.outputs.items()}
        if self._heads and network.bindable:
            layout = Layout({name: (tensor.shape, tensor.dtype.name) for name, tensor in network.outputs.items()})
            self._memory = device.allocate(layout.nbytes, "heads")
            pointers = layout.pointers(self._memory.pointer)
            network.bind_outputs(pointers)
        self._outputs = pointers
        self._kernels = FrameKernels(device, network, pointers)
        # A fixed batch is padded with images of earlier batches; before the first batch these must be defined.
        stream.fill(network.input.pointer, 0, network.input.nbytes)

    def enqueue(self, slot: Slot, job: FrameJob, frames: tuple[Frame, ...], upload: int) -> None:
        """All work of a batch.

        Args:
            upload: bytes to upload from the slot's pinned memory
        """
        if self._graphs is None:
            self._before(slot, frames, upload)
            self._network(slot, job)
            self._after(slot, job)
        elif self._network_in_graphs and self.network.capturable:
            self._enqueue_in_one(self._graphs, slot, job, frames, upload)
        else:
            self._graphs.run((slot.index, frames, upload), lambda: self._before(slot, frames, upload))
            self._network(slot, job)
            self._graphs.run((slot.index, job, "after"), lambda: self._after(slot, job))

    def _enqueue_in_one(
        self, graphs: GraphCache, slot: Slot, job: FrameJob, frames: tuple[Frame, ...], upload: int
    ) -> None:
        def rest() -> None:
            self._network(slot, job)
            self._after(slot, job)

        def everything() -> None:
            self._before(slot, frames, upload)
            rest()

        key = (slot.index, job, frames, upload)
        if graphs.comes_again(key) and graphs.launch(key, everything):
            return
        self._before(slot, frames, upload)
        graphs.run((slot.index, job), rest)
        # After one refusal, graphs are captured around the network only.
        self._network_in_graphs = not graphs.refused

    # -- the three parts --------------------------------------------------------------------------------------------

    def _before(self, slot: Slot, frames: tuple[Frame, ...], upload: int) -> None:
        record = self.stream.record
        record(slot.marks["start"])
        if slot.needs_upload:
            self.stream.upload(*slot.upload(upload))
        record(slot.marks["upload"])
        for index, count, stride in equal_frames(frames):
            self._kernels.resize(index, count, stride, *frames[index]).enqueue(self.stream)
        record(slot.marks["preprocess"])

    def _network(self, slot: Slot, job: FrameJob) -> None:
        network = self.network
        if network.bindable and not self._heads:
            network.bind_outputs({name: slot.pointers[name] for name in self._detections})
        network.enqueue(self.stream, network.max_batch if network.fixed_batch else job.batch)
        if not network.bindable and not self._heads:
            for name in self._detections:
                tensor = network.outputs[name]
                # The next batch may overwrite the network's own memory before this one is collected.
                nbytes = tensor.nbytes // network.max_batch * job.batch
                self.stream.copy(slot.pointers[name], tensor.pointer, nbytes)
        self.stream.record(slot.marks[self._network_stage])

    def _after(self, slot: Slot, job: FrameJob) -> None:
        record = self.stream.record
        if self._heads:
            self._kernels.nms(slot, job.batch, job.settings).enqueue(self.stream)
            record(slot.marks["nms"])
            self._kernels.masks(slot, job.batch, zero_outside=job.for_device).enqueue(self.stream)
            record(slot.marks["assembly"])
        if not job.for_device:
            self.paste(slot, job)

    def paste(self, slot: Slot, job: FrameJob) -> None:
        """Masks to packed bits, and the small results to the host."""
        self._kernels.wanted(slot, job.batch, job.settings).enqueue(self.stream)
        self._kernels.paste(slot, job.batch).enqueue(self.stream)
        self.stream.record(slot.marks["paste"])
        self.stream.download(*slot.download())
        self.stream.record(slot.marks["download"])

    # -- without frames ---------------------------------------------------------------------------------------------

    def infer(self, images: NDArray[Any], slot: Slot) -> dict[str, NDArray[Any]]:
        """Outputs of the network alone, by name, for images [N, S, S, 3]; waits for the GPU.

        Args:
            slot: its memory and its marks of upload, network and download are used
        """
        network, outputs, record = self.network, {}, self.stream.record
        record(slot.marks["start"])
        self.stream.upload(network.input.pointer, images.ctypes.data, images.nbytes)
        record(slot.marks["upload"])
        if network.bindable and not self._heads:
            network.bind_outputs({name: slot.pointers[name] for name in self._detections})
        network.enqueue(self.stream, network.max_batch if network.fixed_batch else len(images))
        record(slot.marks[self._network_stage])
        for name, tensor in network.outputs.items():
            outputs[name] = np.empty((len(images), *tensor.shape[1:]), tensor.dtype)
            pointer = self._pointer(name, slot)
            self.stream.download(outputs[name].ctypes.data, pointer, outputs[name].nbytes)
        record(slot.marks["download"])
        self.stream.synchronize()
        return outputs

    def _pointer(self, name: str, slot: Slot) -> int:
        bound_to_slot = self.network.bindable and not self._heads
        return slot.pointers[name] if bound_to_slot else self._outputs[name]

    # -- housekeeping -----------------------------------------------------------------------------------------------

    def forget(self, slot: Slot) -> None:
        """Drop plans and graphs on the slot's memory, which is about to change; the stream must no longer use it."""
        self._kernels.forget(slot)
        if self._graphs is not None:
            self._graphs.drop(lambda key: key[0] == slot.index)

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready facts about the graphs."""
        if self._graphs is None:
            return {"graphs": "off"}
        in_one = self._network_in_graphs and self.network.capturable
        facts = {"graphs": "whole frame" if in_one else "around the network", "graphs_held": len(self._graphs)}
        return {**facts, "graphs_refused": self._graphs.refused} if self._graphs.refused else facts

    def close(self) -> None:
        """Free graphs and memory; the stream must be idle."""
        if self._graphs is not None:
            self._graphs.drop()
        self._kernels.close()
        if self._memory is not None:
            self._memory.free()

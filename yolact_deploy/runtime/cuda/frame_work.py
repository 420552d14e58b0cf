"""The work of a batch of frames on the GPU, as one CUDA graph if possible.

There are four parts: upload, resize, the network with NMS and masks, and paste, which writes all results into host
memory. From the network on nothing depends on the sizes of the frames, so one graph serves all sizes. Sizes that occur
again get a graph of all parts. A network that cannot be captured has graphs around it.

A batch that is alone runs on one stream. A batch that follows another one is spread over three: its upload runs while
the network works on the batch before, and its paste, which is bound by the transfer to the host, while the network
works on the batch after. Events order the streams.

Marks for the times of stages are recorded only for jobs that ask for them, and these run on one stream: the stages of
batches that overlap have no times of their own.

Used by one thread at a time, with the device current.

Legend: N images, H x W a frame, S input side.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.runtime.cuda import nvtx_ranges as ranges
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device, Stream
from yolact_deploy.runtime.cuda.frame_kernels import FrameKernels
from yolact_deploy.runtime.cuda.graph_cache import GraphCache, Key
from yolact_deploy.runtime.cuda.layout import Layout
from yolact_deploy.runtime.cuda.slot import Slot, network_stage
from yolact_deploy.runtime.tails import DetectSettings

_NO_RANGE = contextlib.nullcontext()


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
    timed: bool = False  #: record the marks of the stages


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
    """Enqueues batches.

    Args:
        graphs: False enqueues everything directly

    Attributes:
        stream: of the network and the kernels
        uploads, results: of what overlaps with it
    """

    def __init__(self, device: Device, network: DeviceNetwork, *, graphs: bool) -> None:
        self.network = network
        self.stream, self.uploads, self.results = (device.stream() for _ in range(3))
        self._heads = network.metadata.tail == "heads"
        #: outputs of a network that ends in detections; the slot has arrays of the same names
        self._detections = () if self._heads else network.metadata.outputs
        self._network_stage = network_stage(network)
        self._graphs = GraphCache(self.stream) if graphs else None
        self._pastes = GraphCache(self.results) if graphs else None
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
        self.stream.fill(network.input.pointer, 0, network.input.nbytes)

    def enqueue(self, slot: Slot, job: FrameJob, frames: tuple[Frame, ...], upload: int, *, overlap: bool) -> None:
        """All work of a batch, up to the event ``slot.done``.

        Args:
            upload: bytes to upload from the slot's pinned memory
            overlap: another batch is in flight
        """
        try:
            if overlap and not job.timed:
                self._enqueue_spread(slot, job, frames, upload)
            else:
                self._enqueue_alone(slot, job, frames, upload)
        except BaseException:  # what was enqueued uses the slot as well
            for stream, event in ((self.uploads, slot.uploaded), (self.stream, slot.ready)):
                stream.record(event)
                self.results.wait(event)
            self.results.record(slot.done)
            raise

    def _enqueue_alone(self, slot: Slot, job: FrameJob, frames: tuple[Frame, ...], upload: int) -> None:
        def before() -> None:
            if job.timed:
                self.stream.record(slot.marks["start"])
            with self._stage(slot, job, "upload"):
                if slot.needs_upload:
                    self.stream.upload(*slot.upload(upload))
            self._resize(slot, job, frames)

        def after() -> None:
            self._detect(slot, job)
            if not job.for_device:
                with self._stage(slot, job, "paste"):
                    self.paste(slot, job, self.stream)

        with ranges.named("frame") if job.timed else _NO_RANGE:
            self._in_graphs(slot, job, (slot.index, job, frames, upload), before, after)
        self.stream.record(slot.done)

    def _enqueue_spread(self, slot: Slot, job: FrameJob, frames: tuple[Frame, ...], upload: int) -> None:
        if slot.needs_upload:
            self.uploads.upload(*slot.upload(upload))
            self.uploads.record(slot.uploaded)
            self.stream.wait(slot.uploaded)
        self._in_graphs(
            slot,
            job,
            (slot.index, job, frames, "spread"),
            lambda: self._resize(slot, job, frames),
            lambda: self._detect(slot, job),
        )
        if job.for_device:
            self.stream.record(slot.done)
            return
        self.stream.record(slot.ready)
        self.results.wait(slot.ready)
        if self._pastes is None:
            self.paste(slot, job, self.results)
        else:
            self._pastes.run((slot.index, job), lambda: self.paste(slot, job, self.results))
        self.results.record(slot.done)

    def _in_graphs(
        self, slot: Slot, job: FrameJob, key: Key, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """What runs before the network, the network, and what runs after it, on its stream.

        Args:
            key: of all three, with the frames as its third part and the way they run as its last
        """
        graphs = self._graphs
        if graphs is None:
            before()
            self._network(slot, job)
            after()
        elif self._network_in_graphs and self.network.capturable:
            self._in_one_graph(graphs, slot, job, key, before, after)
        else:
            graphs.run((*key, "before"), before)
            self._network(slot, job)
            graphs.run((*key[:2], key[3] == "spread", "after"), after)

    def _in_one_graph(
        self,
        graphs: GraphCache,
        slot: Slot,
        job: FrameJob,
        key: Key,
        before: Callable[[], None],
        after: Callable[[], None],
    ) -> None:
        def rest() -> None:
            self._network(slot, job)
            after()

        def everything() -> None:
            before()
            rest()

        if graphs.comes_again(key) and graphs.launch(key, everything):
            return
        before()
        graphs.run((*key[:2], key[3] == "spread"), rest)
        # After one refusal, graphs are captured around the network only.
        self._network_in_graphs = not graphs.refused

    # -- the parts ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _stage(self, slot: Slot, job: FrameJob, name: str) -> Iterator[None]:
        """Mark the end of a stage in the stream, and what the host does for it as a range, if the job is timed."""
        if not job.timed:
            yield
            return
        with ranges.named(name):
            yield
        self.stream.record(slot.marks[name])

    def _resize(self, slot: Slot, job: FrameJob, frames: tuple[Frame, ...]) -> None:
        with self._stage(slot, job, "preprocess"):
            for index, count, stride in equal_frames(frames):
                self._kernels.resize(index, count, stride, *frames[index]).enqueue(self.stream)

    def _network(self, slot: Slot, job: FrameJob) -> None:
        with self._stage(slot, job, self._network_stage):
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

    def _detect(self, slot: Slot, job: FrameJob) -> None:
        """NMS and masks, if the network ends in heads."""
        if self._heads:
            with self._stage(slot, job, "nms"):
                self._kernels.nms(slot, job.batch, job.settings).enqueue(self.stream)
            with self._stage(slot, job, "assembly"):
                self._kernels.masks(slot, job.batch, zero_outside=job.for_device).enqueue(self.stream)

    def paste(self, slot: Slot, job: FrameJob, stream: Stream) -> None:
        """Masks to packed bits, and all results into host memory."""
        self._kernels.paste(slot, job.batch, job.settings).enqueue(stream)

    def paste_again(self, slot: Slot, job: FrameJob) -> None:
        """Paste a batch whose masks are still in its slot, up to ``slot.done``."""
        self.paste(slot, job, self.results)
        self.results.record(slot.done)

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
        if self._pastes is not None:
            self._pastes.drop(lambda key: key[0] == slot.index)

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready facts about the graphs."""
        if self._graphs is None:
            return {"graphs": "off"}
        in_one = self._network_in_graphs and self.network.capturable
        held = len(self._graphs) + (0 if self._pastes is None else len(self._pastes))
        facts = {"graphs": "whole frame" if in_one else "around the network", "graphs_held": held}
        facts["graph_nodes"] = self._graphs.nodes
        return {**facts, "graphs_refused": self._graphs.refused} if self._graphs.refused else facts

    def close(self) -> None:
        """Free graphs and memory, once the streams are idle."""
        for stream in (self.uploads, self.stream, self.results):
            stream.synchronize()
        for graphs in filter(None, (self._graphs, self._pastes)):
            graphs.drop()
        self._kernels.close()
        if self._memory is not None:
            self._memory.free()

    def close_streams(self) -> None:
        """Destroy the streams, once the network that used them is closed."""
        for stream in (self.uploads, self.stream, self.results):
            stream.close()

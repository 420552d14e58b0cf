"""Streams and events: ordered work for the GPU, and marks in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from yolact_deploy.runtime.cuda.driver import calls
from yolact_deploy.runtime.cuda.driver.capture import Capture
from yolact_deploy.runtime.cuda.driver.module import Arguments, Function

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver.device import Device

Size3 = tuple[int, int, int]

#: the waiting thread has no current context; it then gets that of the stream or event
_INVALID_CONTEXT = 201


def _wait(name: str, wait: Callable[[int], int], handle: int, device: Device) -> None:
    error = wait(handle)
    if error == _INVALID_CONTEXT:
        device.use()
        error = wait(handle)
    if error:
        raise calls.failure(name, error)


class Event:
    """A mark in a stream, to wait for or to measure time from.

    Attributes:
        handle: the CUevent as a number
        timing: whether times can be measured from it
    """

    def __init__(self, device: Device, timing: bool = True, blocking: bool = False) -> None:
        """See :meth:`Device.event`."""
        bindings = calls.start()
        kinds = bindings.CUevent_flags
        flags = 0 if timing else int(kinds.CU_EVENT_DISABLE_TIMING)
        with device:
            self.raw: Any = calls.call("cuEventCreate", flags | (int(kinds.CU_EVENT_BLOCKING_SYNC) if blocking else 0))
        self.device = device
        self.timing = timing
        self.handle = int(self.raw)
        self._query = bindings.cuEventQuery
        self._wait = calls.blocking("cuEventSynchronize", 2000)
        self._close = weakref.finalize(self, calls.release, device.context, "cuEventDestroy", self.raw)

    def synchronize(self) -> None:
        """Wait until the GPU has reached the mark (at once for an unused event); other Python threads keep running."""
        _wait("cuEventSynchronize", self._wait, self.handle, self.device)

    @property
    def done(self) -> bool:
        """Whether the GPU has reached the mark."""
        error = calls.code_of("cuEventQuery", self._query, self.raw)
        if error and error.name != "CUDA_ERROR_NOT_READY":
            raise calls.failure("cuEventQuery", error)
        return not error

    def elapsed_since(self, start: Event) -> float:
        """Milliseconds from ``start`` to this event; both must have timing and must have been reached."""
        return float(calls.call("cuEventElapsedTime", start.raw, self.raw))

    def close(self) -> None:
        """Destroy the event."""
        self._close()


class KernelQueue:
    """Launches kernels on a stream, which may belong to another library.

    Args:
        raw: the CUstream, as an object of cuda.bindings or as a number
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._launch = calls.start().cuLaunchKernel

    def launch(self, function: Function, grid: Size3, block: Size3, shared: int, arguments: Arguments) -> None:
        """Run a kernel; the values of the arguments are read now.

        Args:
            grid: blocks along x, y, z
            block: threads per block along x, y, z
            shared: bytes of dynamic shared memory, at most 48 KiB
        """
        error = calls.code_of(
            "cuLaunchKernel", self._launch, function.raw, *grid, *block, shared, self.raw, arguments.address, 0
        )
        if error:
            raise calls.failure("cuLaunchKernel", error, f"kernel {function.name}, grid {grid}, block {block}")


class Stream(KernelQueue):
    """A queue of work for the GPU. Methods return at once; only :meth:`synchronize` waits.

    The device must be current in the calling thread (:meth:`Device.use`); buffers must live until the work is done.

    Attributes:
        handle: the CUstream as a number, for TensorRT and others
        raw: the same as an object of cuda.bindings
        capturing: whether :meth:`capture` is in progress
    """

    def __init__(self, device: Device, high_priority: bool = True) -> None:
        """See :meth:`Device.stream`."""
        bindings = calls.start()
        with device:
            least, greatest = calls.call("cuCtxGetStreamPriorityRange")
            # Non-blocking: work on the legacy default stream (other libraries) neither waits for ours nor delays it.
            flags = int(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING)
            super().__init__(calls.call("cuStreamCreateWithPriority", flags, greatest if high_priority else least))
        self.device = device
        self.handle = int(self.raw)
        self.capturing = False
        self._joint: Event | None = None
        self._look_up(bindings)
        self._close = weakref.finalize(self, calls.release, device.context, "cuStreamDestroy", self.raw)

    def _look_up(self, bindings: Any) -> None:
        """Look up the functions that every frame calls."""
        self._upload = bindings.cuMemcpyHtoDAsync
        self._download = bindings.cuMemcpyDtoHAsync
        self._copy = bindings.cuMemcpyDtoDAsync
        self._fill = bindings.cuMemsetD8Async
        self._record = bindings.cuEventRecord
        self._wait = bindings.cuStreamWaitEvent
        self._synchronize = calls.blocking("cuStreamSynchronize", 2000)

    def upload(self, device_pointer: int, host_pointer: int, nbytes: int) -> None:
        """Copy from host to device memory."""
        calls.check("cuMemcpyHtoDAsync", self._upload, device_pointer, host_pointer, nbytes, self.raw)

    def download(self, host_pointer: int, device_pointer: int, nbytes: int) -> None:
        """Copy from device to host memory."""
        calls.check("cuMemcpyDtoHAsync", self._download, host_pointer, device_pointer, nbytes, self.raw)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within device memory."""
        calls.check("cuMemcpyDtoDAsync", self._copy, target, source, nbytes, self.raw)

    def fill(self, pointer: int, byte: int, nbytes: int) -> None:
        """Set every byte of device memory to ``byte``, 0 to 255."""
        calls.check("cuMemsetD8Async", self._fill, pointer, byte, nbytes, self.raw)

    def record(self, event: Event) -> None:
        """Mark the current end of the queue.

        During a capture, every launch of the graph records an event with timing, so that the parts of a graph can be
        measured; an event without timing orders the streams of the capture.
        """
        if self.capturing and event.timing:
            flags = int(calls.start().CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
            calls.call("cuEventRecordWithFlags", event.raw, self.raw, flags)
            return
        calls.check("cuEventRecord", self._record, event.raw, self.raw)

    def wait(self, event: Event) -> None:
        """Let later work wait for the mark, which may be in another stream."""
        calls.check("cuStreamWaitEvent", self._wait, self.raw, event.raw, 0)

    def wait_for(self, other: int) -> None:
        """Let later work wait for the current work of a stream given by number (1: the legacy default stream)."""
        self._join(other, self.raw, other)

    def let_wait(self, other: int) -> None:
        """Let later work of a stream given by number wait for the current work of this one."""
        self._join(self.raw, other, other)

    def _join(self, first: Any, second: Any, other: int) -> None:
        if self._joint is None:
            self._joint = Event(self.device, timing=False)
        error = calls.code_of("cuEventRecord", self._record, self._joint.raw, first)
        if not error:
            error = calls.code_of("cuStreamWaitEvent", self._wait, second, self._joint.raw, 0)
        if error:
            raise calls.failure("cuEventRecord", error, f"cannot wait for stream {other:#x} of another library")

    def synchronize(self) -> None:
        """Wait until the queue is empty; other Python threads keep running."""
        _wait("cuStreamSynchronize", self._synchronize, self.handle, self.device)

    def capture(self) -> Capture:
        """``with stream.capture() as graph:`` records the work instead of running it; then ``graph.launch(stream)``.

        Prepare everything before: allocations, first runs, and whatever else waits for the GPU. Other threads may use
        the GPU during the capture.
        """
        return Capture(self)

    def embed(self, graph: int) -> None:
        """During a capture, add a graph that another library recorded as the next work of this stream.

        Args:
            graph: its CUgraph as a number; it is copied, but its memory must live as long as the captured graph
        """
        bindings = calls.start()
        info = calls.call("cuStreamGetCaptureInfo", self.raw)
        parent, before = info[2], list(info[3])
        node = calls.call("cuGraphAddChildGraphNode", parent, before, len(before), bindings.CUgraph(graph))
        follow = bindings.CUstreamUpdateCaptureDependencies_flags.CU_STREAM_SET_CAPTURE_DEPENDENCIES
        edges = (None,) if len(info) > 5 else ()  # since CUDA 13, with data about the edges
        calls.call("cuStreamUpdateCaptureDependencies", self.raw, [node], *edges, 1, int(follow))

    def close(self) -> None:
        """Destroy the stream; pending work still completes."""
        self._close()

"""Streams and events: work for the GPU in order, and marks in it."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from yolact_deploy.runtime.cuda.driver import calls
from yolact_deploy.runtime.cuda.driver.capture import Capture
from yolact_deploy.runtime.cuda.driver.module import Arguments, Function

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver.device import Device

Size3 = tuple[int, int, int]

#: where a thread that waits has no context; it then gets the one of what it waits for
_INVALID_CONTEXT = 201


class Event:
    """A mark in a stream, to wait for or to measure time from.

    Attributes:
        handle: the CUevent as a number
        timing: whether it can be measured from
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
        """Wait until the GPU has reached the mark; other Python threads run meanwhile. An unused event is reached."""
        error = self._wait(self.handle)
        if error == _INVALID_CONTEXT:
            self.device.use()
            error = self._wait(self.handle)
        if error:
            raise calls.failure("cuEventSynchronize", error)

    @property
    def done(self) -> bool:
        """Whether the GPU has reached the mark."""
        (error,) = self._query(self.raw)
        if error and error.name != "CUDA_ERROR_NOT_READY":
            raise calls.failure("cuEventQuery", error)
        return not error

    def elapsed_since(self, start: Event) -> float:
        """Milliseconds from ``start`` to this event; both were recorded with timing, and both are reached."""
        return float(calls.call("cuEventElapsedTime", start.raw, self.raw))

    def close(self) -> None:
        """Destroy the event."""
        self._close()


class Stream:
    """A queue of work for the GPU. Its methods return at once, :meth:`synchronize` waits.

    The device must be current in the calling thread (:meth:`Device.use`); buffers must live until the work is done.

    Attributes:
        handle: the CUstream as a number, for TensorRT and others
        raw: the same as an object of cuda.bindings
        capturing: whether :meth:`capture` is under way
    """

    def __init__(self, device: Device, high_priority: bool = True) -> None:
        """See :meth:`Device.stream`."""
        bindings = calls.start()
        with device:
            least, greatest = calls.call("cuCtxGetStreamPriorityRange")
            # Non-blocking: work on the legacy default stream (other libraries) neither waits for ours nor holds it up.
            flags = int(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING)
            self.raw: Any = calls.call("cuStreamCreateWithPriority", flags, greatest if high_priority else least)
        self.device = device
        self.handle = int(self.raw)
        self.capturing = False
        self._joint: Event | None = None
        self._look_up(bindings)
        self._close = weakref.finalize(self, calls.release, device.context, "cuStreamDestroy", self.raw)

    def _look_up(self, bindings: Any) -> None:
        """What every frame calls, looked up once."""
        self._upload = bindings.cuMemcpyHtoDAsync
        self._download = bindings.cuMemcpyDtoHAsync
        self._copy = bindings.cuMemcpyDtoDAsync
        self._fill = bindings.cuMemsetD8Async
        self._launch = bindings.cuLaunchKernel
        self._record = bindings.cuEventRecord
        self._wait = bindings.cuStreamWaitEvent
        self._synchronize = calls.blocking("cuStreamSynchronize", 2000)

    def upload(self, device_pointer: int, host_pointer: int, nbytes: int) -> None:
        """Copy from host to device memory."""
        (error,) = self._upload(device_pointer, host_pointer, nbytes, self.raw)
        if error:
            raise calls.failure("cuMemcpyHtoDAsync", error)

    def download(self, host_pointer: int, device_pointer: int, nbytes: int) -> None:
        """Copy from device to host memory."""
        (error,) = self._download(host_pointer, device_pointer, nbytes, self.raw)
        if error:
            raise calls.failure("cuMemcpyDtoHAsync", error)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy within device memory."""
        (error,) = self._copy(target, source, nbytes, self.raw)
        if error:
            raise calls.failure("cuMemcpyDtoDAsync", error)

    def fill(self, pointer: int, byte: int, nbytes: int) -> None:
        """Set every byte of device memory to ``byte``, 0 to 255."""
        (error,) = self._fill(pointer, byte, nbytes, self.raw)
        if error:
            raise calls.failure("cuMemsetD8Async", error)

    def launch(self, function: Function, grid: Size3, block: Size3, shared: int, arguments: Arguments) -> None:
        """Run a kernel; the values of the arguments are taken now.

        Args:
            grid: blocks along x, y, z
            block: threads of a block along x, y, z
            shared: bytes of dynamic shared memory; for more than 48 KiB see :meth:`Function.allow_shared`
        """
        (error,) = self._launch(function.raw, *grid, *block, shared, self.raw, arguments.address, 0)
        if error:
            raise calls.failure("cuLaunchKernel", error, f"kernel {function.name}, grid {grid}, block {block}")

    def record(self, event: Event) -> None:
        """Mark the present end of the queue.

        While this stream is captured, an event with timing is recorded by every launch of the graph, so that the parts
        of a graph can be measured; one without timing orders the streams of the capture.
        """
        if self.capturing and event.timing:
            flags = int(calls.start().CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL)
            calls.call("cuEventRecordWithFlags", event.raw, self.raw, flags)
            return
        (error,) = self._record(event.raw, self.raw)
        if error:
            raise calls.failure("cuEventRecord", error)

    def wait(self, event: Event) -> None:
        """Let what comes later wait for the mark, which may be in another stream."""
        (error,) = self._wait(self.raw, event.raw, 0)
        if error:
            raise calls.failure("cuStreamWaitEvent", error)

    def wait_for(self, other: int) -> None:
        """Let what comes later wait for the present work of a stream given by number (1: the legacy default stream)."""
        self._join(other, self.raw, other)

    def let_wait(self, other: int) -> None:
        """Let the later work of a stream given by number wait for the present work of this one."""
        self._join(self.raw, other, other)

    def _join(self, first: Any, second: Any, other: int) -> None:
        if self._joint is None:
            self._joint = Event(self.device, timing=False)
        (error,) = self._record(self._joint.raw, first)
        if not error:
            (error,) = self._wait(second, self._joint.raw, 0)
        if error:
            raise calls.failure("cuEventRecord", error, f"stream {other:#x}, of another library, cannot be waited for")

    def synchronize(self) -> None:
        """Wait until the queue is empty; other Python threads run meanwhile."""
        error = self._synchronize(self.handle)
        if error == _INVALID_CONTEXT:
            self.device.use()
            error = self._synchronize(self.handle)
        if error:
            raise calls.failure("cuStreamSynchronize", error)

    def capture(self) -> Capture:
        """``with stream.capture() as graph:`` records the work instead of running it; then ``graph.launch(stream)``.

        What the body calls is prepared before: allocations, first runs, and everything else that waits for the GPU.
        Other threads may use the GPU meanwhile.
        """
        return Capture(self)

    def close(self) -> None:
        """Destroy the stream; its work still completes."""
        self._close()

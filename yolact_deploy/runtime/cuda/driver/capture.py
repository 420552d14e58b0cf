"""Captured graphs: the work of a frame is recorded once and then launched with one call."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import calls

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver.stream import Stream


class Graph:
    """Work recorded by :meth:`Stream.capture`; it can be launched any number of times.

    Pointers and arguments are those of the capture; buffers, modules and networks must live as long as the graph.

    Attributes:
        nodes: number of copies, fills and kernels
    """

    def __init__(self) -> None:
        self.nodes = 0
        self._exec: Any = None
        self._launch: Any = None
        self._close: weakref.finalize[Any, Any] | None = None

    def _take(self, recorded: Any, context: Any) -> None:
        """Instantiate the recorded work."""
        bindings = calls.start()
        self.nodes = int(calls.call("cuGraphGetNodes", recorded)[1])
        # If a network allocates from the memory pool while it runs, the next launch frees that memory.
        flags = int(bindings.CUgraphInstantiate_flags.CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        self._exec = calls.call("cuGraphInstantiate", recorded, flags)
        self._launch = bindings.cuGraphLaunch
        self._close = weakref.finalize(self, calls.release, context, "cuGraphExecDestroy", self._exec)

    def launch(self, stream: Stream) -> None:
        """Run the work in a stream, after any launch that is still running."""
        if self._exec is None:
            raise BackendError("this graph cannot be launched: its capture is unfinished or failed, or it was closed")
        calls.check("cuGraphLaunch", self._launch, self._exec, stream.raw)

    def close(self) -> None:
        """Destroy the graph."""
        self._exec = None
        if self._close is not None:
            self._close()


class Capture:
    """The context manager of :meth:`Stream.capture`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._graph = Graph()

    def __enter__(self) -> Graph:
        # THREAD_LOCAL: calls of other threads that cannot be captured (allocations) do not invalidate the capture.
        mode = calls.start().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        calls.call("cuStreamBeginCapture", self._stream.raw, mode)
        self._stream.capturing = True
        return self._graph

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.capturing = False
        try:
            recorded = calls.call("cuStreamEndCapture", self._stream.raw)
        except calls.CudaError as failed:
            if error is None:  # the error of the body says more than an invalid capture
                raise failed.during("the work of a frame cannot be recorded") from failed
            return
        try:
            if error is None:
                self._graph._take(recorded, self._stream.device.context)
        finally:
            if int(recorded):
                calls.start().cuGraphDestroy(recorded)

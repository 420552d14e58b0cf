"""ONNX Runtime on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from yolact_deploy.config import Size
from yolact_deploy.errors import BackendError, import_optional
from yolact_deploy.graph.cpu_session import first_line, open_cpu_session
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.graph.onnx_int8 import wants_unsigned
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.tails import Outputs, numpy_tail


class OnnxRuntimeBackend(Backend):
    """An exported ONNX file in ONNX Runtime's CPU provider.

    It computes in FP32 and rounds the results of operators to the file's precision. An INT8 file is computed in INT8,
    fitted to the kernels of this CPU.

    Args:
        path: the ONNX file
        threads: of one operator; by default as many as there are cores
        tail: "graph" runs Fast NMS and mask assembly in the graph, "auto" and "host" in NumPy, which is faster here
        size: the one input of a file that takes a range of sizes: a side, or (height, width). None leaves the input to
            each picture
        callers: threads that may call :meth:`run` at once, each with ``threads`` of its own

    Raises:
        ArtifactError: not one of our ONNX files.
        BackendError: ONNX Runtime is missing or rejects the file.
        InputError: a size that the file does not take.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        tail: str = "auto",
        size: Size | None = None,
        callers: int = 1,
    ) -> None:
        self._ort = import_optional("onnxruntime", "onnx", "Running an ONNX file")
        graph = load_graph(path, tail, half="round", unsigned=wants_unsigned())
        self.metadata = graph.metadata if size is None else graph.metadata.at_size(size, path)
        self.precision = self.metadata.precision
        self.tail = numpy_tail(self.metadata.config, heads=graph.on_host, mask_iou=graph.mask_iou)
        self._threads = threads
        self._session = open_cpu_session(graph.data, threads, str(path))
        self.callers = callers
        self._reopen = partial(OnnxRuntimeBackend, path, tail=tail, size=size)

    def for_callers(self, most: int) -> Backend | None:
        cores = self._threads or usable_cores()
        callers = min(most, cores)
        return self._reopen(threads=cores // callers, callers=callers) if callers > 1 else None

    def run(self, images: NDArray[Any]) -> Outputs:
        try:
            return self.tail.outputs(*self._session.run(None, {"images": images}))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": self._ort.__version__,
            "precision": self.precision,
            "providers": self._session.get_providers(),
            "threads": self._threads or "all cores",
            "tail": self.tail.name,
        }

    def close(self) -> None:
        del self._session

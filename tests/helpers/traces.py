"""Traces that tests share: the same weights and options are traced once a session, which is most of an export's time.

A trace depends on nothing else, so files come out as they would. A test marked ``fresh_trace`` traces by itself.
"""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

#: bytes of the traces that are kept; those not used for longest go first
_MOST_BYTES = 3 << 30


class TraceCache:
    """Stands for ``yolact_deploy.export.onnx._trace`` and calls it for what it has not seen yet."""

    def __init__(self, trace: Callable[[Any, Any], Any]) -> None:
        self.own = trace
        self._graphs: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __call__(self, pipeline: Any, metadata: Any) -> Any:
        key = self._key(pipeline, metadata)
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._copy(self._graphs[key][0])
        graph = self.own(pipeline, metadata)
        self._graphs[key] = (self._copy(graph), graph.ByteSize())
        while sum(size for _, size in self._graphs.values()) > _MOST_BYTES:
            self._graphs.popitem(last=False)
        return graph

    @staticmethod
    def _copy(graph: Any) -> Any:
        copy = type(graph)()
        copy.CopyFrom(graph)
        return copy

    @staticmethod
    def _key(pipeline: Any, metadata: Any) -> str:
        """Weights, buffers and all that `_Pipeline` and its export read of the metadata."""
        digest = hashlib.sha256()
        for name, tensor in pipeline.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        digest.update(pipeline.priors.numpy().tobytes())
        read = (metadata.config, metadata.tail, metadata.cross_class, metadata.batch, metadata.input_dtype,
                metadata.precision == "bf16", metadata.tail == "functions" and pipeline.mask_dtype)  # fmt: skip
        digest.update(repr(read).encode())
        return digest.hexdigest()


@pytest.fixture(autouse=True)
def shared_traces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter, once a test has imported it, take its traces from the cache of this session."""
    exporter = sys.modules.get("yolact_deploy.export.onnx")
    if exporter is None:
        return
    if not isinstance(exporter._trace, TraceCache):
        exporter._trace = TraceCache(exporter._trace)  # type: ignore[attr-defined]
    if request.node.get_closest_marker("fresh_trace"):
        monkeypatch.setattr(exporter, "_trace", exporter._trace.own)

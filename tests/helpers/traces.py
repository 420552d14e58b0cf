"""Traces that tests share: a network is traced once a run, whatever its weights, which is most of an export's time.

Weights pass through a trace unchanged, as initializers with the names of the parameters. A trace is kept without them,
in a folder that the workers of pytest-xdist share, and another network of the same structure puts in its own. Files
come out as they would: tests/export/test_onnx.py checks it. A test marked ``fresh_trace`` traces by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest


class TraceCache:
    """Stands for ``yolact_deploy.export.onnx._trace`` and calls it for structures that no worker has traced."""

    def __init__(self, trace: Callable[[Any, Any], Any], folder: Path) -> None:
        self.own = trace
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, pipeline: Any, metadata: Any) -> Any:
        from filelock import FileLock

        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in pipeline.state_dict().items()}
        file = self._folder / f"{self._key(pipeline, metadata, weights)}.onnx"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                _keep_registry()
                _compare_operators_first()
                graph = self.own(pipeline, metadata)
                file.write_bytes(_without(graph, weights))
                return graph
        return _with(file.read_bytes(), weights)

    @staticmethod
    def _key(pipeline: Any, metadata: Any, weights: dict[str, Any]) -> str:
        """All that a trace depends on: buffers, what it reads of the metadata, and of the weights their structure.

        Which are equal and which are zero counts as structure, because the exporter merges equal ones.
        """
        digest = hashlib.sha256(pipeline.priors.numpy().tobytes())
        first: dict[bytes, str] = {}
        for name, tensor in weights.items():
            values = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
            alike = first.setdefault(values.digest(), name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {alike} {bool(tensor.any())}".encode())
        from yolact_deploy.export.onnx import _read_by_trace

        digest.update(repr(_read_by_trace(metadata)).encode())
        return digest.hexdigest()


@cache
def _keep_registry() -> None:
    """Let torch build its table of operators once in this process, and not for each export (a fifth of its time)."""
    with contextlib.suppress(ImportError, AttributeError):  # internals, which may change
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


@cache
def _compare_operators_first() -> None:
    """Let onnxscript's optimizer try a rule only where the operator is the rule's (a fifth of an export's time).

    It would find out, after it has looked at the whole graph for rules with several outputs.
    """
    with contextlib.suppress(ImportError, AttributeError):  # internals, which may change
        from onnxscript.rewriter._basics import MatchResult
        from onnxscript.rewriter._matcher import SimplePatternMatcher

        match = SimplePatternMatcher.match

        def quick(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
            first = self.pattern.output_nodes[0]
            if first.op.matches(node.op_type) and first.domain.matches(node.domain):
                return match(self, model, graph, node, **options)
            return MatchResult().fail("another operator")

        SimplePatternMatcher.match = quick  # type: ignore[method-assign,assignment]


def _without(graph: Any, weights: dict[str, Any]) -> bytes:
    bare = type(graph)()
    bare.CopyFrom(graph)
    for initializer in bare.graph.initializer:
        if initializer.name in weights:
            assert initializer.raw_data == weights[initializer.name].numpy().tobytes(), initializer.name
            initializer.raw_data = b""
    return bytes(bare.SerializeToString())


def _with(content: bytes, weights: dict[str, Any]) -> Any:
    import onnx

    graph = onnx.ModelProto.FromString(content)
    for initializer in graph.graph.initializer:
        if initializer.name in weights:
            initializer.raw_data = weights[initializer.name].numpy().tobytes()
    return graph


@pytest.fixture(scope="session")
def run_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file that the first worker to need it makes; it must not be changed."""
    from filelock import FileLock

    path.parent.mkdir(exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            (folder := path.parent / "unfinished").mkdir(exist_ok=True)
            make(folder / path.name)
            (folder / path.name).rename(path)
    return path


@pytest.fixture(autouse=True)
def shared_traces(request: pytest.FixtureRequest, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter, once a test has imported it, take its traces from those of this run."""
    exporter = sys.modules.get("yolact_deploy.export.onnx")
    if exporter is None:
        return
    if not isinstance(exporter._trace, TraceCache):
        exporter._trace = TraceCache(exporter._trace, run_folder / "traces")  # type: ignore[attr-defined]
    if request.node.get_closest_marker("fresh_trace"):
        monkeypatch.setattr(exporter, "_trace", exporter._trace.own)

"""Reading exported ONNX files and fitting them to a CPU runtime in memory: cutting the tail off, inlining functions.

Fast NMS and mask assembly have static shapes in the graph, as GPUs want them. On a CPU, NumPy does the same work only
where there is something to do, in a few milliseconds; so the CPU backends cut the graph before FastNMS by default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.errors import ArtifactError, import_optional

_EXPORT_AGAIN = "make it with: yolact-deploy export --weights WEIGHTS"


def read_onnx(path: str | os.PathLike[str]) -> Any:
    """The ``onnx.ModelProto`` of a file; raises :class:`ArtifactError` when it is not ONNX."""
    onnx = import_optional("onnx", "onnx", "Reading an ONNX file")
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(os.fspath(path))
    except FileNotFoundError as error:
        raise ArtifactError(f"no such ONNX file: {path}") from error
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}") from error
    except (DecodeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an ONNX file, or a truncated one: {_EXPORT_AGAIN}") from error
    if not model.graph.node or not model.graph.output:
        raise ArtifactError(f"{path} is not an ONNX file, or an empty one: {_EXPORT_AGAIN}")
    return model


def onnx_metadata(model: Any, path: str | os.PathLike[str]) -> Metadata:
    """Our metadata in a ``ModelProto``; raises :class:`ArtifactError` when there is none."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return Metadata.from_json(entry.value, str(path))
    raise ArtifactError(f"{path} was not exported by yolact-deploy (no {METADATA_KEY!r} metadata): {_EXPORT_AGAIN}")


def cut_tail(model: Any) -> None:
    """End the graph before FastNMS, in place: its outputs become boxes, scores, coeff and proto."""
    onnx = import_optional("onnx", "onnx", "Cutting the tail off an ONNX file")
    graph = model.graph
    nms = _only(graph, "FastNMS")
    assembly = _only(graph, "MaskAssembly")
    ends = [*nms.input, assembly.input[0]]
    needed, kept = set(ends), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:], graph.output[:], model.functions[:]
    graph.node.extend(reversed(kept))
    for name in ends:
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _only(graph: Any, op: str) -> Any:
    found = [node for node in graph.node if node.op_type == op and node.domain == "yolact"]
    if len(found) != 1:
        raise ArtifactError(f"expected one yolact::{op} node in the graph, found {len(found)}: export the file again")
    return found[0]


def inline_functions(model: Any) -> Any:
    """A model without local functions, for runtimes that do not know them."""
    if not model.functions:
        return model
    inliner = import_optional("onnx.inliner", "onnx", "Inlining ONNX functions")
    return inliner.inline_local_functions(model)


def load_for_cpu(path: Path, tail: str) -> tuple[bytes, Metadata, bool]:
    """Bytes of the model as a CPU runtime should get it, its metadata, and whether the tail runs on the host."""
    model = read_onnx(path)
    metadata = onnx_metadata(model, path)
    on_host = metadata.tail == "heads" or tail != "graph"
    if metadata.tail == "functions":
        if on_host:
            cut_tail(model)
        else:
            model = inline_functions(model)
    return model.SerializeToString(), metadata, on_host

"""Reads exported ONNX files and fits them to a runtime in memory: cuts the tail off, inlines functions.

Fast NMS and mask assembly have static shapes in the graph, as GPUs require. On a CPU, NumPy works only where there is
something to do, which takes a few milliseconds, so the CPU backends cut the graph before FastNMS by default. The
mask-IoU network of a YOLACT++, which follows the masks, then runs in NumPy as well.

The deformable convolutions of a YOLACT++ are functions in the file, for TensorRT. ONNX Runtime on a CPU and OpenVINO
get the operator itself, which is several times as fast.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.errors import ArtifactError, import_optional
from yolact_deploy.graph.half_precision import widen
from yolact_deploy.graph.inlined_tail import has_nodes, restore_tail
from yolact_deploy.graph.onnx_int8 import use_unsigned
from yolact_deploy.mask_iou import PARAMETERS, HostMaskIouNet
from yolact_deploy.ops import DOMAIN, ONNX_DEFORM_CONV, is_deform_conv
from yolact_deploy.untrusted import read_bytes

_EXPORT_AGAIN = "make it with: yolact-deploy export --weights WEIGHTS"
_MOST_NODES = 1_000_000
_log = logging.getLogger(__name__)


def read_onnx(path: str | os.PathLike[str]) -> Any:
    """The ``onnx.ModelProto`` of a file; raises :class:`ArtifactError` if it is not ONNX."""
    onnx = import_optional("onnx", "onnx", "Reading an ONNX file")
    from google.protobuf.message import DecodeError

    data = read_bytes(path, "ONNX file", ArtifactError)
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ArtifactError(f"{path} is not an ONNX file, or a truncated one: {_EXPORT_AGAIN}") from error
    if not model.graph.node or not model.graph.output:
        raise ArtifactError(f"{path} is not an ONNX file, or an empty one: {_EXPORT_AGAIN}")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(Path(path).parent))
    except Exception as error:  # of many types, MemoryError included
        raise ArtifactError(
            f"{path} keeps weights in other files, which cannot be read ({_first_words(error)}): put them beside it"
        ) from error
    _check_structure(onnx, model, path)
    return model


def _check_structure(onnx: Any, model: Any, path: str | os.PathLike[str]) -> None:
    """Refuse graphs that are not what ONNX allows: TensorRT's parser crashes on some of them."""
    bodies = {(function.domain, function.name): function for function in model.functions}
    calls = {key: [(node.domain, node.op_type) for node in _nodes(body)] for key, body in bodies.items()}
    size: dict[tuple[str, str], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            size[key] = 1 + sum(size[called] for called in calls.get(key, ()))
        with _shapes_of_outputs(onnx, model.graph):
            onnx.checker.check_model(model)
    except CycleError as error:
        raise ArtifactError(f"{path} has a function that calls itself: {_EXPORT_AGAIN}") from error
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path} has a damaged graph ({_first_words(error)}): {_EXPORT_AGAIN}") from error
    nodes = sum(size.get((node.domain, node.op_type), 1) for node in _nodes(model.graph))
    if nodes > _MOST_NODES:
        raise ArtifactError(f"{path} has {nodes} operators in its functions, above {_MOST_NODES}: {_EXPORT_AGAIN}")


@contextlib.contextmanager
def _shapes_of_outputs(onnx: Any, graph: Any) -> Iterator[None]:
    """Give outputs types and shapes for the checker, which demands them; no runtime does."""
    bare = [output for output in graph.output if not output.type.tensor_type.HasField("shape")]
    types = [onnx.TypeProto.FromString(output.type.SerializeToString()) for output in bare]
    for output in bare:
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, onnx.TensorProto.FLOAT, []))
    try:
        yield
    finally:
        for output, type_ in zip(bare, types, strict=True):
            output.type.CopyFrom(type_)


def _nodes(body: Any) -> Iterator[Any]:
    """The nodes of a graph or function and of the graphs in their attributes."""
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def onnx_metadata(model: Any, path: str | os.PathLike[str]) -> Metadata:
    """Our metadata in a ``ModelProto``; raises :class:`ArtifactError` if there is none."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            metadata = Metadata.from_json(entry.value, str(path))
            if metadata.precision == "int8":
                _check_scales(model, path)
            return metadata
    raise ArtifactError(f"{path} was not exported by yolact-deploy (no {METADATA_KEY!r} metadata): {_EXPORT_AGAIN}")


def _check_scales(model: Any, path: str | os.PathLike[str]) -> None:
    """Raise :class:`ArtifactError` if a scale is not positive and finite: then all would be zero, without an error."""
    numpy_helper = import_optional("onnx.numpy_helper", "onnx", "Reading an ONNX file")
    quantizers = [node for node in _nodes(model.graph) if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1] for node in quantizers if len(node.input) > 1}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            if not (np.isfinite(values) & (values > 0)).all():
                raise ArtifactError(
                    f"{path}: the scale {tensor.name} is not positive and finite: {_EXPORT_AGAIN} --int8"
                )


def cut_tail(model: Any) -> None:
    """End the graph before FastNMS, in place: its outputs become boxes, scores, coeff and proto."""
    onnx = import_optional("onnx", "onnx", "Cutting the tail off an ONNX file")
    graph = model.graph
    nms = _only(graph, "FastNMS")
    assembly = _only(graph, "MaskAssembly")
    if not assembly.input:
        raise ArtifactError("yolact::MaskAssembly has no inputs in the graph: export the file again")
    end_graph_at(graph, [*nms.input, assembly.input[0]])
    for output in graph.output:
        output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    _drop_functions(model)


def end_graph_at(graph: Any, tensors: Iterable[str]) -> None:
    """Make these tensors the outputs of a ``GraphProto``, in place, and drop the nodes that they do not depend on."""
    onnx = import_optional("onnx", "onnx", "Changing the outputs of an ONNX file")
    outputs = [onnx.ValueInfoProto(name=name) for name in tensors]
    needed, kept = {output.name for output in outputs}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:], graph.output[:]
    graph.node.extend(reversed(kept))
    graph.output.extend(outputs)


def copy_model(model: Any) -> Any:
    """A copy of a ``ModelProto``."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def _drop_functions(model: Any) -> None:
    """Drop the functions that no node of the graph uses."""
    used = {(node.domain, node.op_type) for node in model.graph.node}
    for function in [f for f in model.functions if (f.domain, f.name) not in used]:
        model.functions.remove(function)


def use_deform_conv(model: Any) -> None:
    """Replace our deformable convolution by ONNX's operator, in place, for runtimes that have it."""
    for node in filter(is_deform_conv, model.graph.node):
        node.domain, node.op_type = "", ONNX_DEFORM_CONV
    _drop_functions(model)


def fit_trunk(model: Any) -> None:
    """Keep only the trunk, with deformable convolutions as operators, for CPU runtimes; in place."""
    if any(node.op_type == "FastNMS" and node.domain == DOMAIN for node in model.graph.node):
        cut_tail(model)
    use_deform_conv(model)


def mask_iou_net(model: Any) -> HostMaskIouNet | None:
    """The mask-IoU network of a file that ends in detections, before its tail is cut; None if it has none."""
    numpy_helper = import_optional("onnx.numpy_helper", "onnx", "Reading an ONNX file")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    parameters = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or (name := node.input[1].removeprefix("model.")) not in PARAMETERS:
            continue
        weight, *bias = (numpy_helper.to_array(tensors[value]) for value in node.input[1:])
        # The exporter omits a bias of zeros, and writes equal ones once.
        parameters[name] = weight
        parameters[name.removesuffix("weight") + "bias"] = bias[0] if bias else np.zeros(len(weight), np.float32)
    if not parameters:
        return None
    missing = [name for name in PARAMETERS if name not in parameters]
    if missing:
        raise ArtifactError(f"the file has no {', '.join(missing)}: export it again")
    return HostMaskIouNet(parameters)


def _only(graph: Any, op: str) -> Any:
    nodes = [node for node in graph.node if node.op_type == op and node.domain == DOMAIN]
    if len(nodes) != 1:
        raise ArtifactError(f"expected one yolact::{op} node in the graph, got {len(nodes)}: export the file again")
    return nodes[0]


def _require_finite(model: Any, path: Path) -> None:
    """Raise :class:`ArtifactError` for weights that are not finite: nothing would be detected, without an error."""
    onnx = import_optional("onnx", "onnx", "Reading an ONNX file")
    floats = {getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")}
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and tensor.dims and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise ArtifactError(
                f"{path}: {tensor.name} has values that are not finite: the file is damaged. Export it again"
            )


def inline_functions(model: Any) -> Any:
    """A model without local functions, for runtimes that do not support them."""
    if not model.functions:
        return model
    inliner = import_optional("onnx.inliner", "onnx", "Inlining ONNX functions")
    return inliner.inline_local_functions(model)


def _can_cut(model: Any, metadata: Metadata, tail: str, path: Path) -> bool:
    """Whether the tail can be cut off, once the nodes that other tools have inlined are restored; in place.

    Raises:
        ArtifactError: it cannot, and ``tail`` demands it.
    """
    if has_nodes(model) or restore_tail(model, metadata) or model.functions:
        return True  # of files with functions, :func:`cut_tail` says what is wrong
    lost = f"{path}: another tool has inlined Fast NMS and masks and renamed the tensors before them, so they"
    if tail != "auto":
        raise ArtifactError(f"{lost} cannot run on the host: load it with tail=graph, or export it again")
    _log.warning("%s run in the graph, with NMS as exported", lost)
    return False


@dataclass(frozen=True)
class LoadedGraph:
    """An exported file as a runtime gets it.

    Attributes:
        data: the serialized model
        on_host: whether Fast NMS and masks run on the host
        mask_iou: rescores masks on the host; None if the graph does, or if there are no mask scores
    """

    data: bytes
    metadata: Metadata
    on_host: bool
    mask_iou: HostMaskIouNet | None = None


def load_graph(path: Path, tail: str, *, gpu: bool = False, half: str = "keep", unsigned: bool = False) -> LoadedGraph:
    """Read an exported file and fit it to a runtime.

    Args:
        tail: "graph" keeps Fast NMS and masks in the graph, if they are there; anything else cuts them off. "auto"
            keeps them as well, with a warning, if other tools have changed the file so that they cannot be cut off
        gpu: keep deformable convolutions as functions
        half: how a runtime computes what the trunk has in FP16 or BF16: "keep" it; "round": in FP32, with the results
            of operators rounded; "fp32": in FP32 without rounding
        unsigned: fit an INT8 trunk to ONNX Runtime on x86, see :mod:`yolact_deploy.graph.onnx_int8`
    """
    model = read_onnx(path)
    metadata = onnx_metadata(model, path)
    _require_finite(model, path)
    on_host = metadata.tail == "heads" or (tail != "graph" and _can_cut(model, metadata, tail, path))
    mask_iou = None
    if not gpu:
        use_deform_conv(model)
    if metadata.tail == "functions" and on_host:
        mask_iou = mask_iou_net(model)
        cut_tail(model)
    # No CPU runtime computes the FP16 rest of an INT8 trunk as a GPU does; in FP32 its kernels in 8 bits apply.
    if metadata.half and (half != "keep" or (metadata.precision == "int8" and not gpu)):
        widen(model, metadata.half, rounding=half == "round")
    if unsigned and metadata.precision == "int8":
        use_unsigned(model)
    return LoadedGraph(inline_functions(model).SerializeToString(), metadata, on_host, mask_iou)

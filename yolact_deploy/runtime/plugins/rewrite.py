"""Fits an exported ONNX graph to plugins, in memory.

TensorRT's parser prefers a function body in the file to a plugin of the same name, so the bodies are dropped. Some
versions look up a plugin by the node's domain and others by attributes, so nodes get both. Casts around MaskAssembly
are removed, because its kernel reads and writes half precision itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.ops import DOMAIN, FLOAT16, FLOAT32, MASK_ASSEMBLY, OPS, PLUGIN_VERSION, Op

_DTYPES = {FLOAT32: "float32", 6: "int32", FLOAT16: "float16"}
_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": PLUGIN_VERSION}


@dataclass(frozen=True)
class TailNode:
    """One of our nodes in a graph, with the shapes and dtypes of its inputs.

    Attributes:
        node: the ``onnx.NodeProto``, part of the graph
        attributes: all attributes of the op
        shapes: of the inputs; None is a batch that is only known at run time
        dtypes: of the inputs
    """

    node: Any
    op: Op
    attributes: dict[str, int | float]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def problem(self) -> tuple[Op, tuple[tuple[int | None, ...], ...], tuple[str, ...], dict[str, int | float]]:
        """Op, shapes, dtypes and attributes."""
        return self.op, self.shapes, self.dtypes, self.attributes

    def shapes_of(self, batch: int) -> list[tuple[int, ...]]:
        """The inputs' shapes with ``batch`` in place of None."""
        return [tuple(batch if size is None else size for size in shape) for shape in self.shapes]


def has_tail(model: Any) -> bool:
    """Whether the graph has nodes of ours."""
    return any(True for _ in _our_nodes(model.graph))


def with_shapes(model: Any) -> Any:
    """A copy with the shapes of all tensors, which other tools drop."""
    inference = import_optional("onnx.shape_inference", "onnx", "Fitting an ONNX graph to plugins")
    return inference.infer_shapes(model, data_prop=True)


def bare_copy(model: Any) -> Any:
    """A copy of a ``ModelProto`` without the function bodies of the tail and without casts around MaskAssembly."""
    copy = type(model)()
    copy.CopyFrom(model)
    replaced = {op.name for op in OPS}
    kept = [function for function in copy.functions if function.domain != DOMAIN or function.name not in replaced]
    del copy.functions[:]
    copy.functions.extend(kept)
    for node, op in list(_our_nodes(copy.graph)):
        if op is MASK_ASSEMBLY:
            _read_half(copy.graph, node)
            _write_half(copy.graph, node)
    return copy


def tail_nodes(model: Any) -> list[TailNode]:
    """Our nodes in the order of the graph.

    Raises:
        ExportError: the file lacks the shape or dtype of an input.
    """
    known = _types(model.graph)
    tails = []
    for node, op in _our_nodes(model.graph):
        missing = [name for name in node.input if name not in known]
        if missing:
            raise ExportError(
                f"the file lacks the shape of {', '.join(missing)}, input of {op.name}: export it again, or build with "
                "--plugin off"
            )
        shapes, dtypes = zip(*(known[name] for name in node.input), strict=True)
        tails.append(TailNode(node, op, _attributes(node, op), shapes, dtypes))
    return tails


def make_plugin_node(tail: TailNode) -> None:
    """Give the node everything by which parsers of all versions look up its plugin, and all attributes."""
    for name, value in {**tail.attributes, **_PLUGIN}.items():
        _set(tail.node, name, value)


def replace_nodes(model: Any, successors: Mapping[str, Sequence[Any]]) -> None:
    """Replace nodes, named by their first output, with other nodes."""
    nodes = [new for node in model.graph.node for new in successors.get(node.output[0], [node])]
    kept = type(model.graph)()
    kept.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(kept.node)


def plugin_node(name: str, op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    """A new node for a plugin in our namespace."""
    return _helper().make_node(op_type, list(inputs), list(outputs), name=name, domain=DOMAIN, **attributes, **_PLUGIN)


def _set(node: Any, name: str, value: Any) -> None:
    """Set an attribute unless the node already has it."""
    if all(attribute.name != name for attribute in node.attribute):
        node.attribute.append(_helper().make_attribute(name, value))


def _helper() -> Any:
    return import_optional("onnx", "onnx", "Fitting an ONNX graph to plugins").helper


def _our_nodes(graph: Any) -> Iterator[tuple[Any, Op]]:
    ours = {op.name: op for op in OPS}
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type in ours:
            yield node, ours[node.op_type]


def _attributes(node: Any, op: Op) -> dict[str, int | float]:
    names = {attribute.name for attribute in op.attributes}
    helper = _helper()
    return op.attribute_values({a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in names})


def _types(graph: Any) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Shape and dtype of each value for which the file has both; only the batch may be unknown."""
    types = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
        if tensor.HasField("shape") and None not in shape[1:] and tensor.elem_type in _DTYPES:
            types[value.name] = shape, _DTYPES[tensor.elem_type]
    return types


# -- half precision -------------------------------------------------------------------------------------------------


def _read_half(graph: Any, node: Any) -> None:
    """Let MaskAssembly read half-precision prototypes directly if they are cast to single precision only for it."""
    name = node.input[0]
    cast = next((other for other in graph.node if name in other.output and other.op_type == "Cast"), None)
    if cast is None or _types(graph).get(cast.input[0], ((), ""))[1] != "float16":
        return
    node.input[0] = cast.input[0]
    if not _readers(graph, name):
        _remove(graph, cast)


def _write_half(graph: Any, node: Any) -> None:
    """Let MaskAssembly write half precision directly if its masks are only cast to it."""
    name = node.output[0]
    readers = _readers(graph, name)
    if len(readers) != 1 or readers[0] is None or readers[0].op_type != "Cast":
        return
    cast = readers[0]
    if _helper().get_attribute_value(cast.attribute[0]) != FLOAT16:
        return
    result, unused = cast.output[0], node.output[0]
    cast.output[0] = unused
    _remove(graph, cast)
    node.output[0] = result
    _set(node, "mask_dtype", FLOAT16)


def _readers(graph: Any, name: str) -> list[Any]:
    """Nodes that read a value, and None if it is an output of the graph."""
    outputs = [None for output in graph.output if output.name == name]
    return [*outputs, *(node for node in graph.node if name in node.input)]


def _remove(graph: Any, node: Any) -> None:
    """Remove a node with an unused output."""
    for value in [value for value in graph.value_info if value.name == node.output[0]]:
        graph.value_info.remove(value)
    graph.node.remove(node)

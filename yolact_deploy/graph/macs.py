"""Counts multiply-accumulates and bytes of a network, layer by layer, from an exported graph.

A multiply-accumulate (MAC) is one multiplication and one addition; a GMAC is 10^9 of them. Convolutions and matrix
products count, as in the tables of papers; biases, activations, resizing and normalization do not.

Bytes are the inputs, weights and outputs of each product, once each. This assumes that the operations after a product
(activation, shortcut, resizing) cause no traffic, and that no cache keeps a tensor for the next product.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from yolact_deploy.errors import ArtifactError, InputError, import_optional
from yolact_deploy.graph.onnx_graph import inline_functions, onnx_metadata, read_onnx, use_deform_conv
from yolact_deploy.graph.trunk_graph import CONVERTING, trunk_nodes

#: bytes per element, by the precision that a runtime computes in
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
#: parts of a network in order; "other" are layers with unknown names
PARTS = ("backbone", "fpn", "protonet", "heads", "tail", "other")

#: first word of the name of a layer, and its part
_MODULES = {"backbone": "backbone", "fpn": "fpn", "proto_net": "protonet", "prediction_layers": "heads"}

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerMacs:
    """One product of a network.

    Attributes:
        name: name of the layer, with ``#2`` and so on if its weights are used again; in the tail, name of the node
        part: one of :data:`PARTS`
        op_type: ONNX operator
        macs: multiply-accumulates
        inputs: elements read that are not weights
        weights: elements of weights and biases
        outputs: elements written
    """

    name: str
    part: str
    op_type: str
    macs: int
    inputs: int
    weights: int
    outputs: int

    @property
    def elements(self) -> int:
        """Elements read and written."""
        return self.inputs + self.weights + self.outputs


@dataclass(frozen=True)
class Macs:
    """What one call of a network multiplies and moves.

    Attributes:
        images: images per call
        precision: precision of the trunk in the file or model, a key of :data:`ELEMENT_BYTES`
        layers: in the order in which they run
    """

    images: int
    precision: str
    layers: tuple[LayerMacs, ...]

    @property
    def gmac(self) -> float:
        """GMAC per call without the tail (NMS and masks); for one image, comparable with the tables of papers."""
        return sum(layer.macs for layer in self.layers if layer.part != "tail") / 1e9

    def part_gmac(self) -> dict[str, float]:
        """GMAC per call by part; parts without products are omitted."""
        return {part: sum(layer.macs for layer in layers) / 1e9 for part, layers in self._parts().items()}

    def part_bytes(self, precision: str | None = None) -> dict[str, int]:
        """Bytes moved per call by part; arguments and errors as in :meth:`moved_bytes`."""
        size = element_bytes(precision or self.precision)
        return {part: size * sum(layer.elements for layer in layers) for part, layers in self._parts().items()}

    def moved_bytes(self, precision: str | None = None) -> int:
        """Bytes moved per call, without the tail.

        Args:
            precision: precision that the runtime computes in; by default :attr:`precision`

        Raises:
            InputError: a precision that is not in :data:`ELEMENT_BYTES`.
        """
        return sum(size for part, size in self.part_bytes(precision).items() if part != "tail")

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "precision": self.precision,
            "gmac": self.gmac,
            "bytes": self.moved_bytes(),
            "part_gmac": self.part_gmac(),
            "part_bytes": self.part_bytes(),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def _parts(self) -> dict[str, list[LayerMacs]]:
        layers = {part: [layer for layer in self.layers if layer.part == part] for part in PARTS}
        return {part: present for part, present in layers.items() if present}


def element_bytes(precision: str) -> int:
    """Bytes per element; raises :class:`InputError` for a precision that is not in :data:`ELEMENT_BYTES`."""
    if precision not in ELEMENT_BYTES:
        raise InputError(f"unknown precision {precision!r}: expected one of {', '.join(ELEMENT_BYTES)}")
    return ELEMENT_BYTES[precision]


def count_macs(path: str | os.PathLike[str], *, batch: int = 1) -> Macs:
    """Count an exported ONNX file, including its functions (Fast NMS, masks); one of a range of sizes at its usual one.

    Args:
        batch: images per call, if the file has a dynamic batch

    Raises:
        ArtifactError: the file was not exported by this package, or the shapes of a product are unknown.
    """
    inference = import_optional("onnx.shape_inference", "onnx", "Counting an ONNX file")
    model = read_onnx(path)
    metadata = onnx_metadata(model, path)
    images = _fix_batch(model.graph, batch)
    if metadata.sizes is not None:
        _fix_size(model.graph, metadata.config.input_shape)
    use_deform_conv(model)
    graph = inference.infer_shapes(inline_functions(model), data_prop=True).graph
    return Macs(images, metadata.precision, tuple(_graph_layers(graph, os.fspath(path))))


def _fix_batch(graph: Any, batch: int) -> int:
    """Replace a dynamic batch of the graph by ``batch``; returns the number of images per call."""
    first = graph.input[0].type.tensor_type.shape.dim[0]
    if first.WhichOneof("value") == "dim_value":
        return int(first.dim_value)
    name = first.dim_param
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == name:
                dim.dim_value = batch  # takes the place of dim_param
    return batch


def _fix_size(graph: Any, shape: tuple[int, int]) -> None:
    """Give the input a height and width, and forget the shapes that depend on them."""
    for dim, side in zip(graph.input[0].type.tensor_type.shape.dim[1:3], shape, strict=True):
        dim.dim_value = side
    for value in (*graph.value_info, *graph.output):
        if any(dim.WhichOneof("value") != "dim_value" for dim in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")


def _graph_layers(graph: Any, path: str) -> Iterator[LayerMacs]:
    shapes = _shapes(graph)
    fixed = _fixed(graph)
    trunk_names = {node.index: node.name for node in trunk_nodes(graph)}
    for index, node in enumerate(graph.node):
        if node.op_type not in _COUNTERS or node.domain:
            continue
        try:
            macs = _COUNTERS[node.op_type](node, shapes)
            read, written = (sum(math.prod(shapes[n]) for n in names if n) for names in (node.input, node.output))
        except KeyError as error:
            raise ArtifactError(
                f"{path}: {node.op_type} cannot be counted, the shape of {error} is unknown: export the file again"
            ) from error
        weights = sum(math.prod(shapes[name]) for name in node.input if name in fixed)
        yield LayerMacs(
            name=trunk_names.get(index) or node.name or node.output[0],
            part=part_of(trunk_names[index]) if index in trunk_names else "tail",
            op_type=node.op_type,
            macs=macs,
            inputs=read - weights,
            weights=weights,
            outputs=written,
        )


def _shapes(graph: Any) -> dict[str, _Shape]:
    """Shapes of the tensors of which all dimensions are known."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in shape.dim)
    return shapes


def _fixed(graph: Any) -> set[str]:
    """Tensors that are weights, even if they are converted or transposed first."""
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        moves = node.op_type in (*CONVERTING, "Transpose") and node.input[0] in fixed
        if moves or node.op_type == "Constant":
            fixed.update(node.output)
    return fixed


def part_of(name: str) -> str:
    return _MODULES.get(name.partition(".")[0], "other")


def _convolution(node: Any, shapes: dict[str, _Shape]) -> int:
    """Weights [out, in / groups, ...]: one kernel per output element."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed_convolution(node: Any, shapes: dict[str, _Shape]) -> int:
    """Weights [in, out / groups, ...]: one kernel per input element."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: Any, shapes: dict[str, _Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _matmul(node: Any, shapes: dict[str, _Shape]) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _einsum(node: Any, shapes: dict[str, _Shape]) -> int:
    """All operands multiplied at once, over all indices; a single operand costs nothing."""
    equation = next(attribute.s for attribute in node.attribute if attribute.name == "equation").decode()
    sizes: dict[str, int] = {}
    for term, name in zip(equation.replace(" ", "").partition("->")[0].split(","), node.input, strict=True):
        shape = shapes[name]
        spread = range(len(shape) - len(term.replace("...", "")))  # dimensions of the ellipsis, named by digits
        for index, size in zip(term.replace("...", "".join(map(str, reversed(spread)))), shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))  # a size of 1 is broadcast
    return math.prod(sizes.values()) * (len(node.input) - 1)


_COUNTERS: dict[str, Callable[[Any, dict[str, _Shape]], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}

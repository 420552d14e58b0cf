"""Makes a graph that was traced at one size take every size of a range, in place.

Convolutions take any size. What a trace fixes are the sizes to which the pyramid enlarges its maps, the shapes of the
heads, and the prior boxes. The first two follow from the shapes of other tensors. The priors become nodes: their
centers follow from the shape of the input, and their widths and heights are constant shares of it, or constant pixels.
The one exception is between squares, where `YolactConfig.with_size` truncates whole scales, as the original does: these
sizes are in a table by the side.

Legend: P priors, A priors of a cell, h x w a map of the pyramid, H x W the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ExportError
from yolact_deploy.priors import make_priors, prior_shapes
from yolact_deploy.size_range import SizeRange

#: an input that is no square, for the sizes of priors that all such inputs share
_OBLONG = (64, 96)
#: names of the dimensions that vary, for each output behind the batch
_DIMENSIONS = {"boxes": ("priors",), "scores": ("priors",), "coeff": ("priors",), "proto": ("rows", "columns")}


def free_sizes(model: onnx.ModelProto, config: YolactConfig, sizes: SizeRange) -> None:
    """Let the input of a graph that ends in heads have any height and width of a range.

    Args:
        model: traced at the input of ``config``

    Raises:
        ExportError: the graph is not what PyTorch's exporter is known to write.
    """
    graph = model.graph
    padded = next((node.name for node in graph.node if node.op_type == "Pad"), None)
    if padded is not None:  # widths that the trace has computed from its size
        raise ExportError(f"the padding of {padded} is that of one size: export this network for one --size")
    _free_resizes(graph)
    _free_reshapes(graph)
    _compute_priors(graph, config, sizes)
    _name_dimensions(graph)
    drop_unused(graph)
    constant = {tensor.name for tensor in graph.initializer}
    for value in graph.value_info:
        if value.name not in constant:  # of the others, the shape is that of one size
            value.type.tensor_type.ClearField("shape")
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True))


def _free_resizes(graph: Any) -> None:
    """Enlarge each map of the pyramid to the size of the one that is added to it, whatever that is."""
    for resize in [node for node in graph.node if node.op_type == "Resize" and len(node.input) == 4]:
        users = [node for node in graph.node if resize.output[0] in node.input]
        if len(users) != 1 or users[0].op_type != "Add":
            raise ExportError(f"the size of {resize.name} is fixed: export this network for one --size")
        (other,) = (name for name in users[0].input if name != resize.output[0])
        shape = f"{resize.output[0]}_shape"
        moved = onnx.NodeProto()
        moved.CopyFrom(resize)
        moved.input[3] = shape
        graph.node.remove(resize)
        place = list(graph.node).index(users[0])  # where the other map is known
        graph.node.insert(place, moved)
        graph.node.insert(place, helper.make_node("Shape", [other], [shape], f"node_{shape}"))


def _free_reshapes(graph: Any) -> None:
    """Let the heads have as many priors as there are."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Reshape" and node.input[1] in constants]:
        shape = numpy_helper.to_array(constants[node.input[1]])
        if len(shape) != 3:
            raise ExportError(f"the shape of {node.name} is fixed: export this network for one --size")
        name = f"{node.output[0]}_shape"
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1, shape[2]], np.int64), name))
        node.input[1] = name
        del node.attribute[:]  # a 0 stands for the same dimension of the input


def _compute_priors(graph: Any, config: YolactConfig, sizes: SizeRange) -> None:
    """Put nodes in the place of the constant prior boxes, or of the halves into which the exporter folds small ones."""
    priors, builder = make_priors(config), _PriorNodes()
    builder.build(config, sizes, "shape_priors")
    found: set[int] = set()
    for tensor in list(graph.initializer):
        for first, last in ((0, 4), (0, 2), (2, 4)):
            part = priors[:, first:last]
            if list(tensor.dims) == list(part.shape) and np.array_equal(numpy_helper.to_array(tensor), part):
                found.update(range(first, last))
                graph.initializer.remove(tensor)
                builder.columns("shape_priors", first, last, tensor.name)
                break
    if len(found) != 4:
        raise ExportError("the graph has no tensor of prior boxes: export this network for one --size")
    graph.initializer.extend(builder.tensors)
    for place, node in enumerate(builder.nodes):
        graph.node.insert(place, node)


def _name_dimensions(graph: Any) -> None:
    """Name the dimensions of the input and the outputs that vary."""
    for value, names in ((graph.input[0], ("height", "width")), *((v, _DIMENSIONS[v.name]) for v in graph.output)):
        for dim, name in zip(value.type.tensor_type.shape.dim[1:], names, strict=False):
            dim.dim_param = name


def drop_unused(graph: Any) -> None:
    """Drop nodes and constants that no output depends on."""
    needed, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    values = [value for value in graph.value_info if value.name in needed]
    fresh = onnx.GraphProto()
    fresh.node.extend(reversed(kept))
    fresh.initializer.extend(tensors)
    fresh.value_info.extend(values)
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
        getattr(graph, field).extend(getattr(fresh, field))


class _PriorNodes:
    """The nodes that compute what :func:`yolact_deploy.priors.make_priors` returns, from the shape of ``images``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def build(self, config: YolactConfig, sizes: SizeRange, output: str) -> None:
        """Priors [P, 4] as (cx, cy, w, h), normalized, in the tensor ``output``."""
        side = self._op("Shape", "images", start=1, end=3)  # int64 [2]: H, W
        shapes = self._sizes_at(side, config, sizes)
        one, two = self._whole([1]), self._whole([2])
        levels = []
        for number in range(2 + len(shapes)):
            side = self._op("Div", self._op("Add", side, one), two)  # halved and rounded up, as strided convolutions do
            if number >= 2:
                levels.append(self._cells(side, shapes[number - 2], config.priors_per_cell))
        self.nodes.append(helper.make_node("Concat", levels, [output], "node_shape_priors", axis=0))

    def columns(self, boxes: str, first: int, last: int, output: str) -> None:
        """Columns of [P, 4] in the tensor ``output``."""
        bounds = (self._whole([number]) for number in (first, last, 1))
        self.nodes.append(helper.make_node("Slice", [boxes, *bounds], [output], f"node_{output}"))

    def _sizes_at(self, side: str, config: YolactConfig, sizes: SizeRange) -> list[str]:
        """Normalized width and height of the priors of a cell on each level, [A, 2] each."""
        shares = _prior_sizes(sizes.config_at(config, _OBLONG))
        if sizes.priors == "pixels":
            pixels = shares * np.array(_OBLONG[::-1])
            order = self._whole([1, 0])
            width_height = self._op("Cast", self._op("Gather", side, order), to=onnx.TensorProto.FLOAT)
            return [self._op("Div", self._constant(level.astype(np.float32)), width_height) for level in pixels]
        general = [self._constant(level.astype(np.float32)) for level in shares]
        table = _squares(config, sizes)
        if table is None:
            return general
        zero, end = self._whole([0]), self._whole([1])
        height, width = self._op("Gather", side, zero), self._op("Gather", side, end)
        square = self._op("Equal", height, width)
        row = self._op("Sub", height, self._whole([max(sizes.low)]))
        row = self._op("Max", row, zero)
        row = self._op("Min", row, self._whole([len(table) - 1]))
        return [
            self._op("Where", square, self._op("Squeeze", self._op("Gather", by_side, row), zero), level)
            for level, by_side in zip(general, map(self._constant, table.swapaxes(0, 1)), strict=True)
        ]

    def _cells(self, side: str, shapes: str, count: int) -> str:
        """The priors of one level [h * w * A, 4], in the order of its rows, columns and shapes."""
        zero, last = self._whole([0]), self._whole([1])
        height, width = self._op("Gather", side, zero), self._op("Gather", side, last)
        each = self._whole([count])
        cells = self._op("Concat", height, width, each, last, axis=0)
        rows = self._op("Expand", self._centers(height, [-1, 1, 1, 1]), cells)
        columns = self._op("Expand", self._centers(width, [1, -1, 1, 1]), cells)
        pairs = self._op("Concat", height, width, each, self._whole([2]), axis=0)
        repeated = self._op("Expand", shapes, pairs)
        boxes = self._op("Concat", columns, rows, repeated, axis=3)
        return self._op("Reshape", boxes, self._whole([-1, 4]))

    def _centers(self, count: str, shape: Sequence[int]) -> str:
        """Centers of so many cells, normalized, in a shape. Exact: one division of whole and half numbers."""
        zero = self._whole([0])
        numbers = self._op("Range", self._whole(0), self._op("Squeeze", count, zero), self._whole(1))
        middle = self._op("Add", self._op("Cast", numbers, to=onnx.TensorProto.FLOAT), self._constant(np.float32(0.5)))
        centers = self._op("Div", middle, self._op("Cast", count, to=onnx.TensorProto.FLOAT))
        return self._op("Reshape", centers, self._whole(shape))

    def _op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"shape_priors_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], f"node_{name}", **attributes))
        return name

    def _whole(self, numbers: int | Sequence[int]) -> str:
        return self._constant(np.asarray(numbers, np.int64))

    def _constant(self, value: Any) -> str:
        array: NDArray[Any] = np.asarray(value)
        for tensor in self.tensors:
            known = numpy_helper.to_array(tensor)
            if known.dtype == array.dtype and np.array_equal(known, array) and known.shape == array.shape:
                return tensor.name
        name = f"shape_priors_constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name


def _prior_sizes(config: YolactConfig) -> NDArray[np.float64]:
    """Normalized width and height of the priors of a cell, [5, A, 2]."""
    return np.array(prior_shapes(config), np.float64)


def _squares(config: YolactConfig, sizes: SizeRange) -> NDArray[np.float32] | None:
    """The sizes for each square of the range [n, 5, A, 2]; None if squares are like all other inputs."""
    shares = _prior_sizes(sizes.config_at(config, _OBLONG)).astype(np.float32)
    sides = range(max(sizes.low), min(sizes.high) + 1)
    if not sides:
        return None
    table = np.array([_prior_sizes(sizes.config_at(config, (side, side))) for side in sides]).astype(np.float32)
    return None if bool((table == shares).all()) else table

"""Files for tools that know standard ONNX operators only: no functions, plain constants, static shapes.

Our functions are legal ONNX, and so are constants written as attributes and ``Shape`` of a part of the axes. Other
tools still fail on them: OpenVINO's converter has no functions, onnxslim and Polygraphy turn ``value_float`` into
double precision, and Polygraphy folds a part of a shape as if it were the whole. The results stay the same, bit for
bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from yolact_deploy.errors import import_optional
from yolact_deploy.graph.onnx_graph import inline_functions
from yolact_deploy.ops import DOMAIN

_DTYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def make_portable(model: Any) -> Any:
    """A copy of a ``ModelProto`` in standard operators; metadata, inputs and outputs stay."""
    inlined = inline_functions(model)
    if inlined is model:
        inlined = type(model)()
        inlined.CopyFrom(model)
    use_tensors(inlined.graph.node)
    _fix_shapes(inlined)
    for entry in [entry for entry in inlined.opset_import if entry.domain == DOMAIN]:
        inlined.opset_import.remove(entry)
    return inlined


def use_tensors(nodes: Iterable[Any]) -> None:
    """Write the numbers of ``Constant`` nodes as tensors, in place.

    Those in functions that take the value of an attribute of the function stay: a tensor cannot.
    """
    onnx = import_optional("onnx", "onnx", "Rewriting an ONNX file")
    for node in nodes:
        if node.op_type != "Constant" or len(node.attribute) != 1:
            continue
        (attribute,) = node.attribute
        dtype = _DTYPES.get(attribute.name)
        if dtype is None or attribute.ref_attr_name:
            continue
        value = np.asarray(onnx.helper.get_attribute_value(attribute), dtype)
        tensor = onnx.numpy_helper.from_array(value)
        node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))


def _fix_shapes(model: Any) -> None:
    """Replace ``Shape`` of axes whose lengths are known by constants, and of a part of others by a Slice of the whole.

    In place.
    """
    onnx = import_optional("onnx", "onnx", "Rewriting an ONNX file")
    known = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*known.input, *known.output, *known.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    nodes = []
    for node in model.graph.node:
        span = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "Shape" or node.domain or not span:
            nodes.append(node)
            continue
        start, end = span.get("start", 0), span.get("end", np.iinfo(np.int64).max)
        every = shapes[node.input[0]][start:end] if node.input[0] in shapes else [None]
        lengths = [length for length in every if length is not None]
        if len(lengths) < len(every):
            nodes += _sliced_shape(onnx, node, start, end)
        else:
            nodes.append(_constant(onnx, node.output[0], lengths))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _sliced_shape(onnx: Any, node: Any, start: int, end: int) -> list[Any]:
    result = node.output[0]
    whole, first, last = (f"{result}_{part}" for part in ("whole", "start", "end"))
    return [
        onnx.helper.make_node("Shape", [node.input[0]], [whole], whole),
        _constant(onnx, first, [start]),
        _constant(onnx, last, [end]),
        onnx.helper.make_node("Slice", [whole, first, last], [result], result),
    ]


def _constant(onnx: Any, name: str, values: list[int]) -> Any:
    return onnx.helper.make_node(
        "Constant", [], [name], name, value=onnx.numpy_helper.from_array(np.array(values, np.int64), name)
    )

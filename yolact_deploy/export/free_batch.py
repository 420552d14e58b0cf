"""Makes a graph that was traced with one number of images take any number, in place.

PyTorch's exporter can trace an open batch, but computes with symbols then, which takes twice as long or longer. The
networks here keep the images in the first dimension, so a trace of fixed size differs in little: in the shapes to which
the heads are brought, in the sizes to which the pyramid enlarges its maps, and in the shapes that are declared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from yolact_deploy.export.free_sizes import drop_unused

#: images of the trace: a number that is easy to tell from others
TRACED_BATCH = 13
#: operators whose constants are shapes or sizes of their outputs, apart from those that are changed here
_FIXED_SHAPES = ("CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "Split", "Tile", "Upsample")
#: operators whose constants are weights, of any number of channels
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu")


def free_batch(model: onnx.ModelProto) -> bool:
    """Let a graph that was traced with :data:`TRACED_BATCH` images take any number of them.

    Returns:
        whether it could be done; if not, the graph is as it was.
    """
    graph, freed = model.graph, onnx.GraphProto()
    freed.CopyFrom(graph)
    constants = {tensor.name: tensor for tensor in freed.initializer}
    varying = _varying(freed)
    for node in list(freed.node):
        if varying.isdisjoint(node.input):
            continue
        shape = constants.get(node.input[-1])
        if node.op_type == "Reshape" and shape is not None:
            free = _free_reshape(freed, node, shape)
        elif node.op_type == "Resize" and len(node.input) == 4 and shape is not None:
            free = _free_resize(freed, node, shape)
        else:
            per_image = node.op_type not in _WEIGHTED and any(_per_image(constants.get(name)) for name in node.input)
            free = node.op_type not in _FIXED_SHAPES and not per_image
        if not free:
            return False
    values = (*freed.input, *freed.output, *freed.value_info)
    if not all(_name_batch(value) for value in values if value.name in varying):
        return False
    drop_unused(freed)
    graph.CopyFrom(freed)
    return True


def _varying(graph: Any) -> set[str]:
    """Names of the values that depend on the images."""
    varying = {value.name for value in graph.input}
    for node in graph.node:
        if not varying.isdisjoint(node.input):
            varying.update(node.output)
    return varying


def _per_image(constant: Any) -> bool:
    """Whether a constant seems to have a part for each image."""
    return constant is not None and len(constant.dims) > 1 and constant.dims[0] % TRACED_BATCH == 0


def _free_reshape(graph: Any, node: Any, shape: Any) -> bool:
    first, *rest = numpy_helper.to_array(shape).tolist()
    if first <= 0 or first % TRACED_BATCH or min(rest, default=1) <= 0:
        return False
    name = f"{node.output[0]}_per_image"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, *rest], np.int64), name))
    node.input[1] = name
    return True


def _free_resize(graph: Any, node: Any, sizes: Any) -> bool:
    """The sizes are those of the input in front, and fixed behind."""
    batch, _, *rest = numpy_helper.to_array(sizes).tolist()
    if batch != TRACED_BATCH:
        return False
    front, behind, whole = (f"{node.output[0]}_{part}" for part in ("front", "size", "sizes"))
    graph.initializer.append(numpy_helper.from_array(np.array(rest, np.int64), behind))
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Concat", [front, behind], [whole], f"node_{whole}", axis=0))
    graph.node.insert(place, helper.make_node("Shape", [node.input[0]], [front], f"node_{front}", start=0, end=2))
    node.input[3] = whole
    return True


def _name_batch(value: Any) -> bool:
    """Declare that the first dimension is the batch, or a multiple of it."""
    shape = value.type.tensor_type.shape
    if not shape.dim:
        return False
    times, rest = divmod(shape.dim[0].dim_value, TRACED_BATCH)
    if rest or not times:
        return False
    shape.dim[0].dim_param = "batch" if times == 1 else f"{times}*batch"
    return True

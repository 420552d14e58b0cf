"""Nodes behind the heads of a traced network: Fast NMS and mask assembly.

They are appended instead of traced, so that one trace serves both tails and every precision. Names are those that
PyTorch's exporter gives.

Legend: N images, P priors, C classes, K coefficients, D detections, h x w prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, ValueInfoProto, helper

from yolact_deploy import ops
from yolact_deploy.artifact import Metadata
from yolact_deploy.graph.inlined_tail import PADDING, nms_attributes

_ORIGINAL_NAME = "pkg.torch.onnx.original_node_name"
_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def append_tail(model: onnx.ModelProto, metadata: Metadata) -> None:
    """Turn a traced graph that ends in heads into one that ends in ``metadata.outputs``, in place.

    Heads are boxes [N, P, 4], scores [N, P, C], coeff [N, P, K] and proto [N, h, w, K]. The masks [N, D, h, w] are
    float32 in FP32 files and float16 in others: FP16 holds every probability that either kind of half precision does.
    """
    graph = model.graph
    heads = _release_names(graph)
    boxes, scores, coeff, proto = heads
    half = metadata.precision != "fp32"

    attributes = nms_attributes(metadata)
    outputs = ("num_detections", "boxes", "scores", "labels", "getitem_4")
    nms, detections = _node(
        ops.FAST_NMS, "node__symbolic_multi_out__4", (boxes, scores, coeff), outputs, dict(attributes)
    )
    assembly, (masks,) = _node(
        ops.MASK_ASSEMBLY, "node__symbolic_multi_out_1__0", (proto, detections[4], detections[1]),
        ("getitem_5" if half else "masks",), PADDING,
    )  # fmt: skip
    graph.node.insert(len(graph.node) - 1, nms)  # before the last, which transposes the prototypes
    graph.node.append(assembly)
    inner = [*heads, detections[4]]
    if half:
        inner.append(masks)
        graph.node.append(helper.make_node("Cast", [masks.name], ["masks"], "node__to_copy_1", to=TensorProto.FLOAT16))
        masks = helper.make_tensor_value_info("masks", TensorProto.FLOAT16, _shape(masks))
    del graph.output[:]
    graph.output.extend((*detections[:4], masks))
    _describe(graph, inner)
    model.opset_import.append(helper.make_opsetid(ops.DOMAIN, ops.DOMAIN_VERSION))


def _release_names(graph: onnx.GraphProto) -> list[ValueInfoProto]:
    """The outputs of a traced graph, with the names that they have inside of larger graphs."""
    names = {
        value.name: entry.value
        for value in graph.output
        for entry in value.metadata_props
        if entry.key == _ORIGINAL_NAME
    }
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    return [
        helper.make_tensor_value_info(names[value.name], TensorProto.FLOAT, _shape(value)) for value in graph.output
    ]


def _node(
    op: ops.Op, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[str], attributes: dict[str, int | float]
) -> tuple[onnx.NodeProto, list[ValueInfoProto]]:
    """A node of our domain, and its outputs."""
    node = onnx.NodeProto(name=name, op_type=op.name, domain=ops.DOMAIN)
    node.input.extend(value.name for value in inputs)
    node.output.extend(outputs)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    shapes = op.output_shapes([_shape(value) for value in inputs], attributes)
    return node, [
        helper.make_tensor_value_info(output, _TYPES[tensor.dtypes[0]], shape)
        for output, tensor, shape in zip(outputs, op.outputs, shapes, strict=True)
    ]


def _shape(value: ValueInfoProto) -> list[Any]:
    """Dimensions: numbers, or names of those that vary."""
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _describe(graph: onnx.GraphProto, inner: Sequence[ValueInfoProto]) -> None:
    """Add values inside the graph, in the order of their nodes."""
    place = {name: number for number, node in enumerate(graph.node) for name in node.output}
    values = sorted((*graph.value_info, *inner), key=lambda value: place.get(value.name, -1))
    del graph.value_info[:]
    graph.value_info.extend(values)

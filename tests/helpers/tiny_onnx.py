"""A file like an exported one, of a few kilobytes: images in, heads or detections out, which all depend on the images.

Legend: N images, P priors, C classes, K coefficients, h x w prototypes, S input side.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.export import functions
from yolact_deploy.mask_iou import PARAMETERS, SMALLEST_SIDE
from yolact_deploy.size_range import SizeRange

CONFIG = YolactConfig(image_size=64, num_classes=2, top_k=4, max_detections=3)
PRIORS, PROTO_SIDE, COEFFICIENTS = 5, 6, 3
_SHAPES = {
    "boxes": (PRIORS, 4),
    "scores": (PRIORS, 2),
    "coeff": (PRIORS, COEFFICIENTS),
    "proto": (PROTO_SIDE, PROTO_SIDE, COEFFICIENTS),
}


def make_model(
    *,
    tail: str = "functions",
    batch: tuple[int, int, int] = (1, 2, 4),
    precision: str = "fp32",
    mask_iou: bool = False,
    quantization: dict[str, Any] | None = None,
    sizes: SizeRange | None = None,
) -> onnx.ModelProto:
    """Heads are constants plus a small multiple of the mean gray level; masks may have their own scores.

    With a range of sizes, only the input varies: the heads stay as they are.
    """
    count: Any = batch[0] if batch[0] == batch[2] else "batch"
    nodes, constants = _trunk()
    value = helper.make_tensor_value_info
    sides = [64, 64] if sizes is None else ["height", "width"]
    images = value("images", TensorProto.UINT8, [count, *sides, 3])
    if tail == "heads":
        outputs = [value(f"node_{name}", TensorProto.FLOAT, [count, *shape]) for name, shape in _SHAPES.items()]
        opsets, bodies = [helper.make_opsetid("", functions.OPSET)], []
    else:
        nodes += _tail()
        if mask_iou:
            added, weights = _mask_iou()
            nodes, constants = nodes + added, constants + weights
        shapes = {"boxes": (3, 4), "scores": (3,), "labels": (3,), "masks": (3, PROTO_SIDE, PROTO_SIDE)}
        if mask_iou:
            shapes["mask_scores"] = (3,)
        kinds = {"labels": TensorProto.INT32}
        outputs = [value("num_detections", TensorProto.INT32, [count])]
        outputs += [value(name, kinds.get(name, TensorProto.FLOAT), [count, *shape]) for name, shape in shapes.items()]
        opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)]
        bodies = [functions.fast_nms_function(), functions.mask_assembly_function()]
    graph = helper.make_graph(nodes, "tiny", [images], outputs, initializer=constants)
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    config = dataclasses.replace(CONFIG, mask_iou=mask_iou)
    metadata = Metadata(
        config=config, tail=tail, batch=batch, precision=precision, quantization=quantization, sizes=sizes
    )
    helper.set_model_props(model, {"yolact_deploy": metadata.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def write_model(path: Path, **options: Any) -> Path:
    onnx.save(make_model(**options), str(path))
    return path


def _trunk() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    rng = np.random.default_rng(5)
    corners = np.array([[0, 0, 0.4, 0.4], [0.02, 0, 0.42, 0.4], [0.5, 0.5, 1, 1], [0, 0.6, 0.3, 1], [0, 0, 1, 1]])
    heads = {name: rng.random((1, *shape), np.float32) for name, shape in _SHAPES.items()}
    heads["boxes"] = corners[None].astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["gray"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["gray", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "little"], ["step"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.float32(1e-4), "little"),
    ]
    for name, array in heads.items():
        constants += [
            numpy_helper.from_array(array, f"constant_{name}"),
            numpy_helper.from_array(np.array([-1] + [1] * (array.ndim - 1), np.int64), f"rank_{name}"),
        ]
        nodes += [
            helper.make_node("Reshape", ["step", f"rank_{name}"], [f"step_{name}"]),
            helper.make_node("Add", [f"constant_{name}", f"step_{name}"], [f"node_{name}"]),
        ]
    return nodes, constants


def _tail() -> list[onnx.NodeProto]:
    nms = helper.make_node(
        "FastNMS",
        ["node_boxes", "node_scores", "node_coeff"],
        ["num_detections", "boxes", "scores", "labels", "found_coeff"],
        domain="yolact",
        score_threshold=0.05,
        iou_threshold=0.5,
        top_k=4,
        max_detections=3,
        cross_class=0,
        second_threshold=-1.0,
    )
    inputs = ["node_proto", "found_coeff", "boxes"]
    return [nms, helper.make_node("MaskAssembly", inputs, ["masks"], domain="yolact", padding=1.0)]


def _mask_iou() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """From masks [N, 3, 6, 6] to mask_scores [N, 3]; the second convolution has no bias, as if it were zero."""
    rng = np.random.default_rng(6)
    node, array = helper.make_node, numpy_helper.from_array
    missing = SMALLEST_SIDE - PROTO_SIDE
    constants = [
        array(np.array([-1, 1, PROTO_SIDE, PROTO_SIDE], np.int64), "one_by_one"),
        array(np.array([0, 0, 0, 0, 0, 0, missing, missing], np.int64), "missing"),
        array(np.array([2, 3], np.int64), "rows_columns"),
        array(np.array([-1, 3, 2], np.int64), "by_image"),
        array(np.array([2], np.int64), "last"),
    ]
    nodes = [node("Reshape", ["masks", "one_by_one"], ["single"]), node("Pad", ["single", "missing"], ["layer_0"])]
    channels = (1, 8, 16, 32, 64, 128, 2)
    for i in range(6):
        side, stride = (3, 2) if i < 5 else (1, 1)
        weight = rng.standard_normal((channels[i + 1], channels[i], side, side)) * (2 / channels[i] / side**2) ** 0.5
        names = [f"model.{name}" for name in PARAMETERS[2 * i : 2 * i + (1 if i == 1 else 2)]]
        values = [weight, np.abs(rng.standard_normal(channels[i + 1])) / 10]
        constants += [array(v.astype(np.float32), name) for name, v in zip(names, values, strict=False)]
        nodes += [
            node("Conv", [f"layer_{i}", *names], [f"conv_{i}"], kernel_shape=[side] * 2, strides=[stride] * 2),
            node("Relu", [f"conv_{i}"], [f"layer_{i + 1}"]),
        ]
    nodes += [
        node("ReduceMax", ["layer_6", "rows_columns"], ["told"], keepdims=0),
        node("Reshape", ["told", "by_image"], ["told_by_image"]),
        node("Unsqueeze", ["labels", "last"], ["labels_column"]),
        node("GatherElements", ["told_by_image", "labels_column"], ["told_of_label"], axis=2),
        node("Squeeze", ["told_of_label", "last"], ["iou"]),
        node("Mul", ["scores", "iou"], ["mask_scores"]),
    ]
    return nodes, constants

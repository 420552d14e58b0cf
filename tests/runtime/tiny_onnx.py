"""A file like an exported one, of a few kilobytes: images in, heads or detections out, every output depending on them.

Legend: N images, P priors, C classes, K coefficients, h x w prototypes, S input side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.export import functions

CONFIG = YolactConfig(image_size=64, num_classes=2, top_k=4, max_detections=3)
PRIORS, PROTO_SIDE, COEFFICIENTS = 5, 6, 3
_SHAPES = {
    "boxes": (PRIORS, 4),
    "scores": (PRIORS, 2),
    "coeff": (PRIORS, COEFFICIENTS),
    "proto": (PROTO_SIDE, PROTO_SIDE, COEFFICIENTS),
}


def make_model(
    *, tail: str = "functions", batch: tuple[int, int, int] = (1, 2, 4), precision: str = "fp32"
) -> onnx.ModelProto:
    """Heads are constants plus the mean grey level of the image times a little."""
    count: Any = batch[0] if batch[0] == batch[2] else "batch"
    nodes, constants = _trunk()
    value = helper.make_tensor_value_info
    images = value("images", TensorProto.UINT8, [count, 64, 64, 3])
    if tail == "heads":
        outputs = [value(f"node_{name}", TensorProto.FLOAT, [count, *shape]) for name, shape in _SHAPES.items()]
        opsets, bodies = [helper.make_opsetid("", functions.OPSET)], []
    else:
        nodes += _tail()
        shapes = {"boxes": (3, 4), "scores": (3,), "labels": (3,), "masks": (3, PROTO_SIDE, PROTO_SIDE)}
        kinds = {"labels": TensorProto.INT32}
        outputs = [value("num_detections", TensorProto.INT32, [count])]
        outputs += [value(name, kinds.get(name, TensorProto.FLOAT), [count, *shape]) for name, shape in shapes.items()]
        opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)]
        bodies = [functions.fast_nms_function(), functions.mask_assembly_function()]
    graph = helper.make_graph(nodes, "tiny", [images], outputs, initializer=constants)
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    metadata = Metadata(config=CONFIG, tail=tail, batch=batch, precision=precision)
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
        helper.make_node("Cast", ["images"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["grey", "axes"], ["mean"], keepdims=0),
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
    )
    inputs = ["node_proto", "found_coeff", "boxes"]
    return [nms, helper.make_node("MaskAssembly", inputs, ["masks"], domain="yolact", padding=1.0)]

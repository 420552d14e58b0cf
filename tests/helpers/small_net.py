"""A YOLACT of a few kilobytes as an exported file, with layers named and connected like real ones.

Two levels share a head; protonet resizes; a block has a shortcut. Weights are pseudo-random, so its detections
are meaningless, but depend on every pixel and channel.

Legend: P priors, C classes, K coefficients, S input side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.image_sets import CocoImages, open_images
from yolact_deploy.datasets.rle import decode
from yolact_deploy.loading import load

SIDE, CLASSES, COEFFICIENTS, CHANNELS = 64, 4, 4, 12
CONFIG = YolactConfig(name="small", image_size=SIDE, num_classes=CLASSES, class_names=("cat", "dog", "owl", "bee"))
LAYERS = [
    "backbone.conv1",
    "backbone.conv2",
    "backbone.layers.0.conv1",
    "fpn.downsample_layers.0",
    "prediction_layers.0.bbox_layer",
    "prediction_layers.0.conf_layer",
    "prediction_layers.0.mask_layer",
    "proto_net.0",
    "proto_net.2",
]
_LEVELS = (16, 8)


def make_model(doctor: Callable[[onnx.GraphProto], None] | None = None) -> onnx.ModelProto:
    """The file in memory; ``doctor`` may break its graph."""
    builder = _Builder()
    builder.node("Cast", ["images"], "gray", to=TensorProto.FLOAT)
    builder.node("Sub", ["gray", builder.constant("mean", np.array([104, 117, 124], np.float32))], "centered")
    builder.node("Div", ["centered", builder.constant("std", np.array([57, 57, 58], np.float32))], "scaled")
    builder.node("Transpose", ["scaled"], "permute", perm=[0, 3, 1, 2])
    builder.node("Gather", ["permute", builder.constant("rgb", np.array([2, 1, 0]))], "flip", axis=1)
    builder.relu(builder.conv("flip", "backbone.conv1", 3, CHANNELS, stride=2))
    stem = builder.relu(builder.conv("backbone.conv1_relu", "backbone.conv2", CHANNELS, CHANNELS, stride=2))
    block = builder.conv(stem, "backbone.layers.0.conv1", CHANNELS, CHANNELS)
    builder.node("Add", [block, stem], "sum")
    top = builder.relu("sum")
    levels = [top, builder.conv(top, "fpn.downsample_layers.0", CHANNELS, CHANNELS, stride=2)]
    loc = builder.head(levels, "bbox_layer", 4)
    logits = builder.head(levels, "conf_layer", CLASSES + 1)
    coeff = builder.head(levels, "mask_layer", COEFFICIENTS, last="Tanh")
    builder.node("Concat", coeff, "coeff", axis=1)
    proto = builder.relu(builder.conv(top, "proto_net.0", CHANNELS, CHANNELS))
    scales = builder.constant("scales", np.array([1, 1, 2, 2], np.float32))
    builder.node("Resize", [proto, "", scales], "larger", mode="linear")
    builder.node(
        "Transpose", [builder.conv("larger", "proto_net.2", CHANNELS, COEFFICIENTS)], "proto", perm=[0, 2, 3, 1]
    )
    builder.node("Concat", loc, "loc", axis=1)
    builder.node("Mul", ["loc", builder.constant("little", np.float32(0.02))], "moves")
    builder.node("Add", [builder.constant("priors", _priors()), "moves"], "boxes")
    builder.node("Concat", logits, "logits", axis=1)
    builder.node("Softmax", ["logits"], "all_scores", axis=2)
    cut = [
        builder.constant(name, np.array([v], np.int64)) for name, v in (("one", 1), ("end", 1 << 30), ("classes", 2))
    ]
    builder.node("Slice", ["all_scores", *cut], "scores")

    priors = sum(side * side for side in _LEVELS)
    shapes: dict[str, tuple[int, ...]] = {
        "boxes": (priors, 4),
        "scores": (priors, CLASSES),
        "coeff": (priors, COEFFICIENTS),
    }
    shapes["proto"] = (32, 32, COEFFICIENTS)
    value = helper.make_tensor_value_info
    outputs = [value(name, TensorProto.FLOAT, [1, *shape]) for name, shape in shapes.items()]
    images = value("images", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    graph = helper.make_graph(builder.nodes, "small", [images], outputs, initializer=builder.constants)
    if doctor:
        doctor(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"yolact_deploy": Metadata(config=CONFIG, tail="heads").to_json()})
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model)  # exported files have the shapes of their tensors


def write_model(path: Path, doctor: Callable[[onnx.GraphProto], None] | None = None) -> Path:
    onnx.save(make_model(doctor), str(path))
    return path


def pictures(count: int = 3) -> list[Any]:
    """BGR pictures of colored blobs."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 255, (count, 6, 6, 3)).astype(np.uint8)
    return [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for picture in small]


def write_blobs(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for i, picture in enumerate(pictures(count)):
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    return folder


def write_truth(folder: Path, images: CocoImages) -> CocoImages:
    """The images with every other detection of the FP32 network as ground truth, if its mask is not empty."""
    write_model(folder / "truth.onnx")
    objects = []
    with load(folder / "truth.onnx", score_threshold=0.3, threads=1) as predictor:
        for image in images.images:
            objects += predictor(image.path).to_coco(image.image_id, CONFIG.category_ids)
    objects = [o for o in objects[::2] if decode(o["segmentation"]["counts"].encode(), SIDE, SIDE).any()]
    content = {
        "images": [{"id": i.image_id, "file_name": i.path.name, "width": SIDE, "height": SIDE} for i in images.images],
        "categories": [{"id": i, "name": n} for i, n in zip(CONFIG.category_ids, CONFIG.class_names, strict=True)],
        "annotations": [{**o, "id": n, "iscrowd": 0, "area": 100.0} for n, o in enumerate(objects, 1)],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return open_images(annotations=folder / "instances.json", images_dir=images.images[0].path.parent)


class _Builder:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: set[str] = set()

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        if name not in self._names:
            self._names.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, source: str, layer: str, channels: int, kernels: int, stride: int = 1, output: str = "") -> str:
        rng = np.random.default_rng(LAYERS.index(layer))
        gain = 2.0 if "conf" in layer else 1.0
        values = rng.standard_normal((kernels, channels, 3, 3)) * gain * np.sqrt(2 / (9 * channels))
        weight = self.constant(f"model.{layer}.weight", values.astype(np.float32))
        bias = self.constant(f"model.{layer}.bias", (rng.standard_normal(kernels) / 10).astype(np.float32))
        sides = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
        return self.node("Conv", [source, weight, bias], output or layer, **sides)

    def relu(self, source: str) -> str:
        return self.node("Relu", [source], f"{source}_relu")

    def head(self, levels: list[str], name: str, values: int, last: str = "") -> list[str]:
        """The shared layer on each level, as [1, positions, values]."""
        found = []
        for i, level in enumerate(levels):
            output = self.conv(level, f"prediction_layers.0.{name}", CHANNELS, values, output=f"{name}_{i}")
            self.node("Transpose", [output], f"{output}_last", perm=[0, 2, 3, 1])
            shape = self.constant(f"shape_{values}", np.array([1, -1, values], np.int64))
            found.append(self.node("Reshape", [f"{output}_last", shape], f"{output}_rows"))
            if last:
                found[-1] = self.node(last, [found[-1]], f"{output}_{last}")
        return found


def _priors() -> Any:
    """Corners [1, P, 4], a square at each position."""
    boxes = []
    for side in _LEVELS:
        y, x = np.mgrid[:side, :side]
        center = np.stack([x, y], axis=-1).reshape(-1, 2) / side + 0.5 / side
        boxes.append(np.concatenate([center - 1.5 / side, center + 1.5 / side], axis=1))
    return np.concatenate(boxes)[None].astype(np.float32)

"""Small graphs with Q/DQ nodes like those of an INT8 export: signed activations with zero point 0, Q/DQ at the inputs.

Legend: N images, C channels that enter, O that leave, S input side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A graph that grows node by node; each method returns the name of its result."""

    def __init__(self, shape: tuple[Any, ...], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._shape = shape

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, value: NDArray[Any] | np.generic, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantized(self, name: str, largest: float, zero: Any = None) -> str:
        """Q and DQ over -largest..largest, or over another range with another zero point."""
        scale = self.constant(np.float32(largest / 127))
        point = self.constant(np.int8(0) if zero is None else zero)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", name, scale, point), scale, point)

    def convolution(
        self, name: str, channels: tuple[int, int], side: int, *, bias: Any = None, groups: int = 1, **attributes: Any
    ) -> str:
        """With random weights [O, C, side, side] of 8 bits, a scale for each channel, and a bias."""
        entering, leaving = channels
        shape = (leaving, entering // groups, side, side)
        weights = self.rng.integers(-127, 128, shape).astype(np.int8)
        scales = self.rng.uniform(0.5, 1.5, leaving).astype(np.float32) / (64 * np.sqrt(weights[0].size))
        stem = f"layer{len(self.nodes)}"
        dequantized = self.node(
            "DequantizeLinear",
            self.constant(weights, f"{stem}.weight"),
            self.constant(scales.astype(np.float32)),
            self.constant(np.zeros(leaving, np.int8)),
            axis=0,
        )
        values = self.rng.normal(size=leaving) if bias is None else bias
        added = self.constant(np.asarray(values, np.float32), f"{stem}.bias")
        return self.node("Conv", name, dequantized, added, group=groups, **attributes)

    def resized(self, name: str, mode: str) -> str:
        """To twice the size."""
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.node("Resize", name, "", scales, mode=mode)

    def clipped(self, name: str, low: float, high: float) -> str:
        return self.node("Clip", name, self.constant(np.float32(low)), self.constant(np.float32(high)))

    def model(self, *outputs: str) -> Any:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(self._shape))
        graph = helper.make_graph(self.nodes, "tiny_int8", [images], values, initializer=self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        return model


def network(seed: int = 0, batch: Any = 1) -> Any:
    """A backbone with a shortcut, a pyramid with resizing, depthwise and clipped layers, and two heads on one tensor.

    Ranges fit normally distributed images, so that all errors come from rounding.
    """
    graph = Graph((batch, 3, 24, 24), seed)
    first = graph.node(
        "Relu", graph.convolution(graph.quantized("images", 5.0), (3, 16), 3, strides=[2, 2], pads=[1] * 4)
    )
    pooled = graph.quantized(graph.node("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 8.0)
    branch = graph.quantized(graph.convolution(pooled, (16, 16), 1), 10.0)
    block = graph.quantized(graph.node("Relu", graph.node("Add", branch, pooled)), 10.0)
    lateral = graph.quantized(graph.convolution(block, (16, 8), 1), 11.0)
    wide = graph.quantized(graph.resized(lateral, "linear"), 11.0)
    depth = graph.clipped(graph.convolution(wide, (8, 8), 3, groups=8, pads=[1] * 4), 0.0, 6.0)
    shared = graph.quantized(depth, 6.0)
    boxes = graph.convolution(shared, (8, 5), 3, pads=[1] * 4)
    scores = graph.convolution(shared, (8, 7), 3, pads=[1] * 4)
    proto = graph.node("Relu", graph.convolution(shared, (8, 4), 1))
    return graph.model(*(graph.node("Transpose", name, perm=[0, 2, 3, 1]) for name in (boxes, scores, proto)))

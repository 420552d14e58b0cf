"""Detects layers that overflow or vanish in FP16, by running the FP32 graph over pictures before it is lowered.

FP16 ends at 65504. A network trained in FP32 may exceed that in one layer and return in the next; in FP16 the values
become infinite, then NaN, and in the end nothing is detected, without any error. So the largest value of every tensor
of the trunk is measured in FP32, and a layer stays in FP32 if anything that it reads or computes comes near the end of
FP16. A large tensor between two layers keeps both, since a cast to FP16 between them would overflow.

The same holds at the other end: below 6e-5 FP16 loses bits, and below 6e-8 everything.

Pictures unlike those measured can still overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.graph.tensor_probe import TensorProbe, not_finite
from yolact_deploy.graph.trunk_graph import WEIGHTED, data_inputs, trunk_nodes

#: the largest finite FP16 number
LARGEST = float(np.finfo(np.float16).max)
#: share of the range that values may use. Other pictures have larger values, and the partial sums of a convolution,
#: which some kernels hold in FP16, exceed the sum
SAFE_SHARE = 1 / 4
#: share of the range above which a layer is reported
NEAR_SHARE = 1 / 16
#: maximum rounding error of weights (relative RMS), and of a tensor relative to its largest value: that of BF16. Where
#: FP16 has all its bits, it rounds eight times as finely
COARSEST = 2.0**-8
#: a tensor must have a value above this one: at this end, the steps of FP16 are 2^-24 whatever the value
SMALLEST = 2.0**-24 / COARSEST


@dataclass(frozen=True)
class LayerRange:
    """One layer over all images.

    Attributes:
        layer: its name, see :mod:`yolact_deploy.graph.trunk_graph`
        largest: largest absolute value in any tensor that the layer reads or computes
        faintest: the smallest of the tensors' largest absolute values; tensors of zeros do not count
        weight: largest absolute value of its weights and biases
        weight_error: RMS error of rounding its weights to FP16, relative to the RMS of the weights
    """

    layer: str
    largest: float
    faintest: float
    weight: float
    weight_error: float

    @property
    def trouble(self) -> str:
        """Why FP16 is not enough, in words; empty if it is."""
        if self.largest > LARGEST * SAFE_SHARE:
            return f"values up to {self.largest:.3g}"
        if self.weight > LARGEST:
            return f"weights up to {self.weight:.3g}"
        if self.weight_error > COARSEST:
            return f"weights so small that FP16 changes them by {self.weight_error:.0%}"
        if self.faintest < SMALLEST:
            return f"values of {self.faintest:.2g} at most"
        return ""

    @property
    def near(self) -> bool:
        """Whether the layer comes near the end of FP16 but stays in FP16."""
        return not self.trouble and self.largest > LARGEST * NEAR_SHARE


@dataclass(frozen=True)
class RangeReport:
    """All layers of a network, in the order in which they run.

    Attributes:
        images: number of pictures
    """

    images: int
    layers: tuple[LayerRange, ...]

    @property
    def unsafe(self) -> dict[str, str]:
        """The layers that must stay in FP32, each with the reason."""
        return {layer.layer: layer.trouble for layer in self.layers if layer.trouble}

    @property
    def near(self) -> tuple[LayerRange, ...]:
        return tuple(layer for layer in self.layers if layer.near)

    @property
    def widest(self) -> LayerRange:
        """The layer with the largest value."""
        return max(self.layers, key=lambda layer: layer.largest)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "limit": LARGEST * SAFE_SHARE,
            "unsafe": self.unsafe,
            "near": [layer.layer for layer in self.near],
            "layers": [
                {key: value if value != math.inf else None for key, value in asdict(layer).items()}
                for layer in self.layers
            ],
        }


def measure_ranges(model: Any, pictures: Iterable[Path]) -> RangeReport:
    """Run an FP32 graph in ONNX Runtime and measure how large the values of each layer become.

    Memory is that of the network: the graph itself reduces each tensor to its largest value.

    Args:
        model: ``ModelProto`` in FP32, with or without a tail; it is not changed
        pictures: read one batch at a time

    Raises:
        ExportError: no pictures, no layers, or values that are not finite in FP32 either.
        InputError: a file is not a picture.
    """
    probe = TensorProbe(model)
    layers = _layers(probe.graph)
    if not layers:
        raise ExportError("the graph has no layers with weights: nothing can overflow")
    tensors = list(dict.fromkeys(name for layer in layers.values() for name in layer.tensors))
    for name in tensors:
        probe.read(probe.compute("ReduceMax", probe.compute("Abs", name), keepdims=0))
    largest = np.zeros(len(tensors), np.float32)
    images = 0
    for count, values in probe.run(pictures):
        largest = np.maximum(largest, np.array(values, np.float32))  # keeps NaN
        images += count
    if not images:
        raise ExportError("no pictures to check for FP16 overflow: give at least one")
    by_tensor = dict(zip(tensors, map(float, largest), strict=True))
    return RangeReport(images, tuple(_layer_range(name, layer, by_tensor) for name, layer in layers.items()))


@dataclass
class _LayerTensors:
    """What is known of a layer before the network runs: the tensors that it reads or computes, and its weights."""

    tensors: list[str] = field(default_factory=list)
    weight: float = 0.0
    weight_error: float = 0.0


def _layers(graph: Any) -> dict[str, _LayerTensors]:
    """The layers of a ``GraphProto``, by name."""
    onnx = import_optional("onnx", "onnx", "Checking for FP16 overflow")
    constants = {constant.name: constant for constant in graph.initializer}
    layers: dict[str, _LayerTensors] = {}
    for node in trunk_nodes(graph):
        layer = layers.setdefault(node.layer, _LayerTensors())
        layer.tensors.append(node.output)
        operator = graph.node[node.index]
        for slot, name in data_inputs(operator):
            if name not in constants:
                layer.tensors.append(name)
                continue
            values = onnx.numpy_helper.to_array(constants[name])
            layer.weight = max(layer.weight, float(np.abs(values).max(initial=0)))
            if slot == 1 and node.op_type in WEIGHTED:
                layer.weight_error = max(layer.weight_error, _rounding(values))
    return layers


def _layer_range(name: str, layer: _LayerTensors, largest: Mapping[str, float]) -> LayerRange:
    values = [largest[tensor] for tensor in layer.tensors]
    if not all(map(math.isfinite, values)):
        raise not_finite(name)
    faintest = min(filter(None, values), default=math.inf)
    return LayerRange(name, max(values), faintest, layer.weight, layer.weight_error)


def _rounding(weights: NDArray[np.float32]) -> float:
    """RMS error of rounding to FP16 relative to the RMS of the weights; 0 for infinite ones, which ``weight`` shows."""
    exact = weights.astype(np.float64)
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16).astype(np.float64)
    size = float(np.sqrt(np.mean(exact**2)))
    error = float(np.sqrt(np.mean((half - exact) ** 2)))
    return error / size if size and math.isfinite(error) else 0.0

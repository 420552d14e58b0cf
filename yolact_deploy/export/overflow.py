"""Which layers FP16 cannot hold: found by running the FP32 graph over pictures before it is lowered.

FP16 ends at 65504. A network trained in FP32 may pass it in one layer and come back in the next; in FP16 that is
infinite, then NaN, and in the end no detection at all, without an error anywhere. So every tensor of the trunk is
watched while the graph runs in FP32, and a layer stays in FP32 when something that it reads or computes comes near the
end. Both sides count: a large tensor between two layers keeps both, since a cast to FP16 between them would overflow.

The same goes for the other end: below 6e-5 FP16 loses bits, and below 6e-8 everything.

Pictures that are unlike the ones that are looked at can still overflow: nothing can be known about them.

Legend: N images of a call, S input side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.graph.onnx_graph import fit_trunk
from yolact_deploy.graph.trunk_graph import WEIGHTED, data_inputs, trunk_nodes
from yolact_deploy.preprocess import read_image, resize_image
from yolact_deploy.runtime.onnxruntime import open_cpu_session

#: the largest finite FP16 number
LARGEST = float(np.finfo(np.float16).max)
#: part of the range that values may use. Other pictures have larger ones; and a convolution's partial sums, which some
#: kernels hold in FP16, pass the sum itself
SAFE_SHARE = 1 / 4
#: part of the range above which a layer is mentioned
NEAR_SHARE = 1 / 16
#: largest rounding of weights (relative RMS), and of a tensor relative to its largest value. That of BF16; FP16's own
#: is eight times as fine where it has all its bits
COARSEST = 2.0**-8
#: a tensor must have a value above this one: FP16's steps are 2^-24 here, whatever the value
SMALLEST = 2.0**-24 / COARSEST


@dataclass(frozen=True)
class LayerRange:
    """One layer over all images.

    Attributes:
        layer: its name, see :mod:`yolact_deploy.graph.trunk_graph`
        largest: absolute value in any tensor that the layer reads or computes
        faintest: the largest absolute value of that tensor which has the smallest; tensors of zeros do not count
        weight: largest absolute value of its weights and biases
        weight_error: what rounding its weights to FP16 changes, RMS relative to that of the weights
    """

    layer: str
    largest: float
    faintest: float
    weight: float
    weight_error: float

    @property
    def trouble(self) -> str:
        """Why FP16 does not do, in words; empty where it does."""
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
        """Whether the layer comes near the end of FP16, and stays in FP16 for all that."""
        return not self.trouble and self.largest > LARGEST * NEAR_SHARE


@dataclass(frozen=True)
class RangeReport:
    """All layers of a network, in the order in which they run.

    Attributes:
        images: that were looked at
    """

    images: int
    layers: tuple[LayerRange, ...]

    @property
    def unsafe(self) -> dict[str, str]:
        """The layers that must stay in FP32, and why."""
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


def network_input(pictures: Sequence[Path], metadata: Metadata) -> NDArray[Any]:
    """Pictures as a graph takes them: [N, S, S, 3], filled up with the last one to the smallest batch that it takes.

    Raises:
        InputError: a file that is not a picture.
    """
    images = [resize_image(read_image(path), metadata.config.image_size, metadata.input_dtype) for path in pictures]
    return np.stack(images + images[-1:] * (metadata.batch[0] - len(images)))


def measure_ranges(model: Any, metadata: Metadata, pictures: Iterable[Path]) -> RangeReport:
    """Run an FP32 graph in ONNX Runtime and note how large the values of each layer become.

    Memory is that of the network: the largest value of each tensor is found inside of the graph.

    Args:
        model: ``ModelProto`` in FP32, with or without the tail; it is left as it is
        metadata: of it
        pictures: read one after the other

    Raises:
        ExportError: no pictures, no layers, or values that are not finite in FP32 either.
        InputError: a file that is not a picture.
    """
    watched = _WatchedValues(model)
    session = open_cpu_session(watched.data, None, "the graph with its tensors watched", arena=False)
    largest = np.zeros(len(watched.tensors), np.float32)
    images, rest = 0, iter(pictures)
    while call := list(islice(rest, metadata.batch[0])):
        found = np.array(session.run(None, {"images": network_input(call, metadata)}), np.float32)
        largest = np.maximum(largest, found)  # keeps NaN
        images += len(call)
    if not images:
        raise ExportError("no pictures to look for FP16's overflows with: give one at least")
    values = dict(zip(watched.tensors, map(float, largest), strict=True))
    for layer, tensors in watched.layers.items():
        if not all(math.isfinite(values[name]) for name in tensors):
            raise ExportError(
                f"{layer} has values that are not finite in FP32: the checkpoint is damaged or its training diverged"
            )
    ranges = (watched.layer_range(layer, values) for layer in watched.layers)
    return RangeReport(images, tuple(ranges))


class _WatchedValues:
    """A graph whose outputs are the largest absolute values of the tensors of its trunk.

    Attributes:
        data: the changed graph
        tensors: whose largest values it puts out, in that order
        layers: the tensors that each layer reads or computes
        weights: largest absolute value of the constants of each layer
        weight_errors: relative RMS of rounding each layer's weights
    """

    def __init__(self, model: Any) -> None:
        onnx = import_optional("onnx", "onnx", "Looking for overflows")
        watched = type(model)()
        watched.CopyFrom(model)
        fit_trunk(watched)
        graph = watched.graph
        constants = {constant.name: constant for constant in graph.initializer}
        self.layers: dict[str, list[str]] = {}
        self.weights: dict[str, float] = defaultdict(float)
        self.weight_errors: dict[str, float] = defaultdict(float)
        for node in trunk_nodes(graph):
            operator = graph.node[node.index]
            tensors = self.layers.setdefault(node.layer, [])
            tensors.append(node.output)
            for slot, name in data_inputs(operator):
                if name not in constants:
                    tensors.append(name)
                    continue
                values = onnx.numpy_helper.to_array(constants[name])
                self.weights[node.layer] = max(self.weights[node.layer], float(np.abs(values).max(initial=0)))
                if slot == 1 and operator.op_type in WEIGHTED:
                    self.weight_errors[node.layer] = max(self.weight_errors[node.layer], _rounding(values))
        if not self.layers:
            raise ExportError("the graph has no layers with weights: nothing can overflow")
        self.tensors = list(dict.fromkeys(name for tensors in self.layers.values() for name in tensors))
        del graph.output[:]
        for name in self.tensors:
            graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}_abs"]))
            graph.node.append(onnx.helper.make_node("ReduceMax", [f"{name}_abs"], [f"{name}_max"], keepdims=0))
            graph.output.append(onnx.helper.make_tensor_value_info(f"{name}_max", onnx.TensorProto.FLOAT, []))
        self.data: bytes = watched.SerializeToString()

    def layer_range(self, layer: str, values: Mapping[str, float]) -> LayerRange:
        """What was found out about a layer; ``values`` are the largest ones of each tensor."""
        of_layer = [values[name] for name in self.layers[layer]]
        return LayerRange(
            layer=layer,
            largest=max(of_layer),
            faintest=min(filter(None, of_layer), default=math.inf),
            weight=self.weights[layer],
            weight_error=self.weight_errors[layer],
        )


def _rounding(weights: NDArray[np.float32]) -> float:
    """What rounding to FP16 changes, RMS relative to that of the weights; infinite weights are told otherwise."""
    exact = weights.astype(np.float64)
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16).astype(np.float64)
    size = float(np.sqrt(np.mean(exact**2)))
    error = float(np.sqrt(np.mean((half - exact) ** 2)))
    return error / size if size and math.isfinite(error) else 0.0

"""What quantising each activation costs by itself: the check that an INT8 file was calibrated for this network.

Errors of a whole INT8 network say little: with weights that leave much undecided they are large though nothing is
wrong. But 8 bits with a range that fits change a tensor little, whatever the network; one that is far too wide leaves a
few levels of it, and one that is far too narrow clips nearly everything. So the Q/DQ pairs of the file are put beside
the tensors of the FP32 graph, and each one's error is measured on values that have no other error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import import_optional
from yolact_deploy.export.overflow import network_input
from yolact_deploy.graph.onnx_graph import fit_trunk
from yolact_deploy.runtime.onnxruntime import open_cpu_session

#: least signal-to-noise ratio, dB, of each quantised tensor. Good ranges give 20 and more; a hundred times too wide
#: leaves at most 11, where a ReLU6 makes most values 0 or 6, and a hundred times too narrow next to nothing
LIMIT_DB = 14.0


@dataclass(frozen=True)
class TensorNoise:
    """One quantised activation.

    Attributes:
        name: of the tensor
        sqnr_db: its variance over the mean squared error that quantising it makes
    """

    name: str
    sqnr_db: float

    @property
    def ok(self) -> bool:
        return self.sqnr_db >= LIMIT_DB  # NaN is not


def quantization_noise(exact: Any, quantized: Any, metadata: Metadata, images: Sequence[Path]) -> list[TensorNoise]:
    """Measure what the Q/DQ pairs of ``quantized`` do to the tensors of ``exact``, the worst first.

    Args:
        exact: ``ModelProto`` in FP32 that ``quantized`` was made from; it is left as it is
        metadata: of both
        images: pictures to run over
    """
    onnx = import_optional("onnx", "onnx", "Measuring the noise of quantisation")
    model = type(exact)()
    model.CopyFrom(exact)
    fit_trunk(model)
    graph = model.graph
    constants = {constant.name: constant for constant in quantized.graph.initializer}
    made = {name for node in graph.node for name in node.output}
    pairs = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made]
    if not pairs:
        return []
    for name in dict.fromkeys(name for node in pairs for name in node.input[1:]):
        graph.initializer.add().CopyFrom(constants[name])
    del graph.output[:]
    for node in pairs:
        tensor, low, back, error = node.input[0], *(f"{node.output[0]}_{what}" for what in ("low", "back", "error"))
        graph.node.append(onnx.helper.make_node("QuantizeLinear", node.input, [low]))
        graph.node.append(onnx.helper.make_node("DequantizeLinear", [low, *node.input[1:]], [back]))
        graph.node.append(onnx.helper.make_node("Sub", [back, tensor], [error]))
        for op, source in (("ReduceMean", tensor), ("ReduceSumSquare", tensor), ("ReduceSumSquare", error)):
            output = f"{source}_{op}"
            graph.node.append(onnx.helper.make_node(op, [source], [output], keepdims=0))
            graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
        graph.node.append(onnx.helper.make_node("Size", [tensor], [f"{tensor}_size"]))
        graph.output.append(onnx.helper.make_tensor_value_info(f"{tensor}_size", onnx.TensorProto.INT64, []))
    session = open_cpu_session(model.SerializeToString(), None, "the graph with its quantisation watched", arena=False)
    found = np.zeros((len(pairs), 4))
    for path in images:
        found += np.array(session.run(None, {"images": network_input([path], metadata)}), np.float64).reshape(-1, 4)
    mean, squares, errors, size = found.T
    variance = squares / size - (mean / len(images)) ** 2
    noise = errors / size
    rows = [
        TensorNoise(node.input[0], _decibels(float(signal), float(wrong)))
        for node, signal, wrong in zip(pairs, variance, noise, strict=True)
    ]
    return sorted(rows, key=lambda row: row.sqnr_db)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf

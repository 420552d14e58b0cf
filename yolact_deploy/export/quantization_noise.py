"""Quantization noise of each activation by itself: the check that the calibration of an INT8 file fits the network.

The error of a whole INT8 network says little: where the weights leave much undecided it is large although nothing is
wrong. But with a range that fits, 8 bits change a tensor little, whatever the network. A range that is far too wide
leaves only a few levels, and one that is far too narrow clips nearly everything. So each Q/DQ pair of the file is
applied to the tensor of the FP32 graph, and its error is measured on values that have no other error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.evaluation.trunk_comparison import sqnr_db
from yolact_deploy.graph.tensor_probe import TensorProbe

#: minimum signal-to-noise ratio of each quantized tensor, dB. Good ranges give 20 or more. A range a hundred times too
#: wide leaves at most 11, where a ReLU6 makes most values 0 or 6; one a hundred times too narrow leaves almost nothing
LIMIT_DB = 14.0


@dataclass(frozen=True)
class TensorNoise:
    """One quantized activation.

    Attributes:
        name: name of the tensor
        sqnr_db: its variance over the mean squared error of quantizing it, dB
    """

    name: str
    sqnr_db: float

    @property
    def ok(self) -> bool:
        return self.sqnr_db >= LIMIT_DB  # NaN is not


def quantization_noise(exact: Any, quantized: Any, images: Sequence[Path]) -> list[TensorNoise]:
    """Measure what the Q/DQ pairs of ``quantized`` do to the tensors of ``exact``.

    Args:
        exact: ``ModelProto`` in FP32 that ``quantized`` was made from; it is not changed
        images: pictures to run over

    Returns:
        One entry per quantized activation, the lowest ratio first.
    """
    constants = {constant.name: constant for constant in quantized.graph.initializer}
    made = {name for node in exact.graph.node for name in node.output}
    pairs = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in made]
    if not pairs:
        return []
    probe = TensorProbe(exact)
    scales = dict.fromkeys(name for node in pairs for name in node.input[1:])
    probe.graph.initializer.extend(constants[name] for name in scales)
    for node in pairs:
        tensor, *scale = node.input
        restored = probe.compute("DequantizeLinear", probe.compute("QuantizeLinear", *node.input), *scale)
        probe.read(
            probe.compute("ReduceMean", tensor, keepdims=0),
            probe.compute("ReduceSumSquare", tensor, keepdims=0),
            probe.compute("ReduceSumSquare", probe.compute("Sub", restored, tensor), keepdims=0),
            probe.compute("Size", tensor),
        )
    calls = np.array([values for _, values in probe.run(images)], np.float64).reshape(-1, len(pairs), 4)
    mean, squares, errors, size = calls.sum(axis=0).T
    variance, noise = squares / size - (mean / len(calls)) ** 2, errors / size
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_rms = np.where(noise == 0, 0.0, np.sqrt(noise / np.maximum(variance, 0.0)))
    rows = [TensorNoise(node.input[0], sqnr_db(float(rms))) for node, rms in zip(pairs, relative_rms, strict=True)]
    return sorted(rows, key=lambda row: row.sqnr_db)

"""Quantizes the trunk of an FP32 graph to INT8 in memory: Q/DQ nodes by onnxruntime.quantization, ranges of ours.

There are two forms, from one calibration, since runtimes have kernels for different graphs:

- "symmetric": int8 activations around zero, Q/DQ at the inputs of operators, biases in FP32. TensorRT parses neither
  zero points nor quantized biases; OpenVINO runs this form at full speed as well.
- "onnxruntime": uint8 activations with a zero point, int32 biases, Q/DQ at inputs and outputs. The integer convolutions
  of ONNX Runtime require 8-bit outputs, and those with signed inputs are slow on x86.

In both, weights are int8 around zero with a scale per output channel. Everything outside the trunk stays as it is:
normalization of the images, softmax, box decoding, NMS and masks. So do deformable convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from yolact_deploy.errors import ExportError, import_optional
from yolact_deploy.export.calibration import Calibration
from yolact_deploy.graph.trunk_graph import TrunkNode, data_inputs, layer_names, select_layers, trunk_nodes
from yolact_deploy.vocabulary import QUANTIZATION_FORMS, check_word

#: operators whose inputs are quantized
_OPERATORS = {
    "symmetric": ("Conv", "Add", "Resize", "MaxPool"),
    "onnxruntime": ("Conv", "Add", "Resize", "MaxPool", "Relu", "Clip", "LeakyRelu"),
}


def quantize_trunk(
    model: Any, calibration: Calibration, *, target: str = "symmetric", keep_fp32: Sequence[str] = ()
) -> None:
    """Turn the trunk of an FP32 ``ModelProto`` into INT8 with Q/DQ nodes, in place.

    A kept layer includes all that belongs to it, as in :func:`yolact_deploy.export.mixed_precision.lower_trunk`. In the
    symmetric form, it reads the results of its neighbors before they are quantized; in the other form, their 8-bit
    outputs.

    Args:
        calibration: of the same graph
        target: one of :data:`~yolact_deploy.vocabulary.QUANTIZATION_FORMS`
        keep_fp32: layers, or modules that hold some, that stay as they are

    Raises:
        ExportError: a name that is no layer, nothing to quantize, a calibration of another graph, or a tensor without
            a range.
    """
    check_word("target", target, QUANTIZATION_FORMS, ExportError)
    graph = model.graph
    trunk = trunk_nodes(graph)
    kept = select_layers(keep_fp32, layer_names(trunk))
    chosen = [
        node
        for node in trunk
        if node.op_type in _OPERATORS[target] and node.layer not in kept and not graph.node[node.index].domain
    ]
    if not any(node.op_type == "Conv" for node in chosen):
        raise ExportError("no convolution is left to quantize: keep fewer layers in FP32, or export with --fp32")
    ranges = _ranges_of(graph, chosen, calibration, outputs=target == "onnxruntime")
    indices = {node.index for node in chosen}
    exact = {node.output[0]: list(node.input) for i, node in enumerate(graph.node) if i not in indices}
    _insert(model, [node.index for node in chosen], ranges, target)
    if target == "symmetric":
        _read_exact(graph, exact)
    _tidy(graph)


def _ranges_of(
    graph: Any, chosen: Sequence[TrunkNode], calibration: Calibration, *, outputs: bool
) -> dict[str, tuple[float, float]]:
    """The range of each tensor to quantize."""
    constants = {constant.name for constant in graph.initializer}
    ranges = {}
    for trunk_node in chosen:
        node = graph.node[trunk_node.index]
        names = [name for _, name in data_inputs(node) if name not in constants]
        for name in (*names, node.output[0]) if outputs else names:
            low, high = calibration.ranges.get(name, (math.nan, math.nan))
            if math.isnan(low + high):
                raise ExportError(f"the calibration has no range for {name}: it was made with another graph; repeat it")
            if not low <= 0 <= high or not 0 < high - low < math.inf:
                raise ExportError(
                    f"{trunk_node.layer} had only values from {low:g} to {high:g} in {calibration.images} pictures: "
                    "that range cannot be quantized. Calibrate with pictures on which the network detects objects, or "
                    "keep the layer in FP32 (--keep-fp32)"
                )
            ranges[name] = low, high
    return ranges


def _insert(model: Any, chosen: Sequence[int], ranges: Mapping[str, tuple[float, float]], target: str) -> None:
    """Let onnxruntime.quantization put Q/DQ nodes around the chosen ones, and quantize their weights."""
    quantization = import_optional("onnxruntime.quantization", "onnx", "Quantizing")
    from onnxruntime.quantization.calibrate import TensorData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    graph, symmetric = model.graph, target == "symmetric"
    old = list(graph.node)
    names = [node.name for node in old]
    for index, node in enumerate(old):
        node.name = f"node_{index}"  # the quantizer selects by name, which need not be unique
    # The types are known, so the quantizer need not infer them by way of a file.
    mark = model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    kind = quantization.QuantType
    quantizer = QDQQuantizer(
        model,
        True,  # a scale for each output channel of weights
        False,
        kind.QInt8,
        kind.QInt8 if symmetric else kind.QUInt8,
        {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()},
        [old[index].name for index in chosen],
        [],
        _OPERATORS[target],
        {
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": not symmetric,
            "ForceQuantizeNoInputCheck": True,  # for resizing and pooling of tensors without other readers
            "OpTypesToExcludeOutputQuantization": _OPERATORS[target] if symmetric else (),
        },
    )
    quantizer.quantize_model()
    model.metadata_props.remove(mark)
    known = {f"node_{index}": name for index, name in enumerate(names)}
    for node in graph.node:
        node.name = known.get(node.name, node.name)


def _read_exact(graph: Any, inputs: Mapping[str, Sequence[str]]) -> None:
    """Restore the inputs of the nodes with these first outputs."""
    for node in graph.node:
        if node.output[0] in inputs:
            node.input[:] = inputs[node.output[0]]


def _tidy(graph: Any) -> None:
    """Put each new node before its first reader, so that the others stay in order; drop nodes and constants unread."""
    new = {node.output[0]: node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    ordered: list[Any] = []

    def put(name: str) -> None:
        node = new.pop(name, None)
        if node is not None:
            put(node.input[0])
            ordered.append(node)

    for node in [node for node in graph.node if node.output[0] not in new]:
        for name in node.input:
            put(name)
        ordered.append(node)
    del graph.node[:]
    graph.node.extend(ordered)
    read = {name for node in ordered for name in node.input}
    made = {name for node in ordered for name in node.output}
    for field, there in ((graph.initializer, read), (graph.value_info, made)):
        left = [entry for entry in field if entry.name in there]
        del field[:]
        field.extend(left)

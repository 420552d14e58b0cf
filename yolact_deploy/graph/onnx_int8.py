"""Rewrites symmetric INT8 graphs for the x86 kernels of ONNX Runtime: the same graph with unsigned activations.

A file for TensorRT and OpenVINO has signed activations with zero point 0. ONNX Runtime computes most of these in FP32,
since x86 multiplies unsigned by signed bytes. So that one file serves all runtimes, loading it in ONNX Runtime changes
two things in memory. Nothing changes on other CPUs, nor on x86 without VNNI, which would accumulate products in 16 bits
and overflow.

Activations become unsigned. If values cannot be negative, 0..127 becomes 0..255 over the same range, which is twice as
fine; otherwise -128..127 becomes 0..255 with zero point 128, which represents the same numbers.

Convolutions whose result is not quantized, including the heads, become a product of 8-bit matrices with a result in
FP32, as the file specifies. ONNX Runtime itself would compute them in FP32, which takes four times as long.

Legend: N images, C input channels, O output channels, H x W positions, h x w size of the kernel.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import import_optional
from yolact_deploy.machine.cpu import is_x86, multiplies_bytes

_CONTRIB = "com.microsoft"
#: operators whose results are never negative
_POSITIVE = ("Relu", "Sigmoid", "Softmax")
#: operators whose results are not negative if their inputs are not
_KEEPING = ("MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Transpose", "Reshape", "Flatten", "Slice",
            "Identity", "Cast", "QuantizeLinear", "DequantizeLinear")  # fmt: skip
_COMBINING = ("Concat", "Add", "Mul")
#: operators between a convolution and its QuantizeLinear that ONNX Runtime fuses, or moves behind the QuantizeLinear
_FUSED = ("Relu", "Clip", "MaxPool")
#: limit of int32; a quantized convolution cannot hold a larger bias, in units of the products
_LARGEST_BIAS = 2.0**31 - 1
_TO_THE_END = 2**62


def wants_unsigned() -> bool:
    """Whether the kernels for this CPU need unsigned activations and multiply them without overflow."""
    return is_x86() and multiplies_bytes()


def use_unsigned(model: Any) -> None:
    """Fit a ``ModelProto`` with symmetric Q/DQ to ONNX Runtime on x86, in place; other Q/DQ nodes do not change."""
    _Rewriting(model).run()


class _Rewriting:
    def __init__(self, model: Any) -> None:
        onnx = import_optional("onnx", "onnx", "Reading an ONNX file in INT8")
        self._make_node, self._arrays = onnx.helper.make_node, onnx.numpy_helper
        self._make_opset = onnx.helper.make_opsetid
        self._model, self._graph = model, model.graph
        self._constants = {constant.name: constant for constant in self._graph.initializer}
        self._producers = {output: node for node in self._graph.node for output in node.output}
        self._consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self._graph.node:
            for name in node.input:
                self._consumers[name].append(node)
        self._outputs = {output.name for output in self._graph.output}
        self._not_negative: dict[str, bool] = {}
        self._made: set[str] = set()

    def run(self) -> None:
        quantizers = [node for node in self._graph.node if node.op_type == "QuantizeLinear" and self._symmetric(node)]
        for node in quantizers:
            self._make_unsigned(node)
        columns: dict[tuple[object, ...], str] = {}
        nodes: list[Any] = []
        for node in self._graph.node:
            if node.op_type == "Conv" and self._wants_matrices(node):
                nodes += self._in_matrices(node, columns)
            else:
                nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        self._tidy({node.output[0] for node in quantizers})

    # -- activations ------------------------------------------------------------------------------------------------

    def _symmetric(self, node: Any) -> bool:
        """Whether a QuantizeLinear or DequantizeLinear has one scale, signed bytes and zero point 0."""
        if len(node.input) < 3 or node.input[1] not in self._constants or node.input[2] not in self._constants:
            return False
        scale, zero = self._value(node.input[1]), self._value(node.input[2])
        return scale.size == 1 and zero.dtype == np.int8 and zero.size == 1 and not zero.any()

    def _make_unsigned(self, node: Any) -> None:
        """Change a QuantizeLinear and the DequantizeLinear nodes that read it."""
        readers = self._consumers[node.output[0]]
        if node.output[0] in self._outputs or not all(
            reader.op_type == "DequantizeLinear" and self._symmetric(reader) for reader in readers
        ):
            return
        positive = self._is_not_negative(node.input[0])
        zero = (
            self._constant("unsigned_zero", np.uint8(0)) if positive else self._constant("signed_zero", np.uint8(128))
        )
        for changed in (node, *readers):
            if positive:
                scale = self._value(changed.input[1]).reshape(()) * np.float32(127 / 255)
                changed.input[1] = self._constant(f"{changed.input[1]}_unsigned", scale)
            changed.input[2] = zero

    def _is_not_negative(self, name: str) -> bool:
        """Whether a tensor has no negative values by construction."""
        if name not in self._not_negative:
            self._not_negative[name] = self._gives_not_negative(self._producers.get(name))
        return self._not_negative[name]

    def _gives_not_negative(self, node: Any) -> bool:
        if node is None or node.domain:
            return False
        if node.op_type == "Clip":
            lowest = node.input[1] if len(node.input) > 1 else ""
            clipped = lowest in self._constants and bool(self._value(lowest) >= 0)
            return clipped or self._is_not_negative(node.input[0])
        if node.op_type == "Resize" and _attribute(node, "mode", b"nearest") == b"cubic":
            return False  # it overshoots
        if node.op_type in _COMBINING:
            return all(self._is_not_negative(name) for name in node.input)
        return node.op_type in _POSITIVE or (node.op_type in _KEEPING and self._is_not_negative(node.input[0]))

    # -- convolutions -----------------------------------------------------------------------------------------------

    def _wants_matrices(self, node: Any) -> bool:
        """Whether a convolution reads bytes, would not write bytes, and can be a matrix product."""
        activations, weights = (self._producers.get(name) for name in node.input[:2])
        if activations is None or weights is None or {activations.op_type, weights.op_type} != {"DequantizeLinear"}:
            return False
        quantizer = self._producers.get(activations.input[0])
        if quantizer is None or self._type_of_zero(activations) != np.uint8 or weights.input[0] not in self._constants:
            return False
        plain = (
            _attribute(node, "group", 1) == 1
            and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
            and all(step == 1 for step in _attribute(node, "dilations", [1, 1]))
            and len(self._constants[weights.input[0]].dims) == 4
        )
        return plain and (not self._is_quantized(node.output[0]) or self._bias_is_too_large(node))

    def _type_of_zero(self, node: Any) -> Any:
        return self._value(node.input[2]).dtype if len(node.input) > 2 and node.input[2] in self._constants else None

    def _is_quantized(self, name: str) -> bool:
        """Whether the only reader of a tensor is a QuantizeLinear, possibly behind an activation or a pooling."""
        readers = self._consumers[name]
        if name in self._outputs or len(readers) != 1:
            return False
        (reader,) = readers
        if reader.op_type == "QuantizeLinear":
            return True
        return reader.op_type in _FUSED and self._is_quantized(reader.output[0])

    def _bias_is_too_large(self, node: Any) -> bool:
        """Whether ONNX Runtime would clip the bias of a channel, because its weights are almost zero."""
        activations, weights = (self._producers[name] for name in node.input[:2])
        if len(node.input) < 3 or node.input[2] not in self._constants:
            return False
        unit = self._value(activations.input[1]).astype(np.float64) * self._value(weights.input[1])
        return bool(np.any(np.abs(self._value(node.input[2])) > _LARGEST_BIAS * unit))

    def _in_matrices(self, node: Any, columns: dict[tuple[object, ...], str]) -> list[Any]:
        """The nodes that replace a convolution: columns of its input [N, H, W, hwC] times its weights [hwC, O].

        Args:
            columns: columns made so far, which heads share; new ones are added
        """
        activations, weights = (self._producers[name] for name in node.input[:2])
        output = node.output[0]
        kernel = self._value(weights.input[0])  # [O, C, h, w]
        pads = list(_attribute(node, "pads", [0, 0, 0, 0]))
        strides = list(_attribute(node, "strides", [1, 1]))
        key = (activations.input[0], kernel.shape[2:], tuple(pads), tuple(strides))
        made = []
        if key not in columns:
            columns[key] = f"{output}_columns"
            made = self._columns(activations, columns[key], kernel.shape[2:], pads, strides)
        matrix = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)))
        scales = np.broadcast_to(self._value(weights.input[1]).reshape(-1), (len(kernel),))
        inputs = [
            columns[key],
            self._constant(f"{weights.input[0]}_matrix", matrix),
            activations.input[1],
            self._constant(f"{weights.input[1]}_row", np.ascontiguousarray(scales)),
            activations.input[2],
            "",
            *node.input[2:],
        ]
        made.append(
            self._make_node("MatMulIntegerToFloat", inputs, [f"{output}_NHWO"], domain=_CONTRIB, name=node.name)
        )
        made.append(self._make_node("Transpose", [f"{output}_NHWO"], [output], perm=[0, 3, 1, 2]))
        if all(entry.domain != _CONTRIB for entry in self._model.opset_import):
            self._model.opset_import.append(self._make_opset(_CONTRIB, 1))
        return made

    def _columns(
        self, activations: Any, name: str, size: tuple[int, ...], pads: list[int], strides: list[int]
    ) -> list[Any]:
        """The input values under the kernel at each position: one slice of the input per element of the kernel."""
        make, last = self._make_node, f"{name}_NHWC"
        nodes = [make("Transpose", [activations.input[0]], [last], perm=[0, 2, 3, 1])]
        if any(pads):
            top, left, bottom, right = pads
            amounts = self._constant(f"{name}_pads", np.array([0, top, left, 0, 0, bottom, right, 0]))
            nodes.append(make("Pad", [last, amounts, activations.input[2]], [f"{name}_padded"]))
            last = f"{name}_padded"
        if size == (1, 1) and strides == [1, 1]:
            nodes.append(make("Identity", [last], [name]))
            return nodes
        axes, steps = (
            self._constant("rows_and_columns", np.array([1, 2])),
            self._constant(f"{name}_steps", np.array(strides)),
        )
        parts = []
        for place in np.ndindex(*size):
            part = f"{name}_{place[0]}_{place[1]}"
            ends = [at - side + 1 or _TO_THE_END for at, side in zip(place, size, strict=True)]
            starts = self._constant(f"{part}_starts", np.array(place))
            nodes.append(
                make("Slice", [last, starts, self._constant(f"{part}_ends", np.array(ends)), axes, steps], [part])
            )
            parts.append(part)
        nodes.append(make("Concat", parts, [name], axis=3))
        return nodes

    # -- constants --------------------------------------------------------------------------------------------------

    def _value(self, name: str) -> NDArray[Any]:
        value: NDArray[Any] = self._arrays.to_array(self._constants[name])
        return value

    def _constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """The name of a constant, which is made on first use."""
        if name not in self._made:
            self._made.add(name)
            tensor = self._arrays.from_array(np.asarray(value), name)
            self._graph.initializer.append(tensor)
            self._constants[name] = tensor
        return name

    def _tidy(self, changed: set[str]) -> None:
        """Drop unused nodes and constants, and the types of tensors that have changed."""
        used = {name for node in self._graph.node for name in node.input} | self._outputs
        nodes = list(self._graph.node)
        weights = [n for n in nodes if n.op_type == "DequantizeLinear" and not used.intersection(n.output)]
        for node in weights:
            self._graph.node.remove(node)
        used = {name for node in self._graph.node for name in node.input}
        for field, keep in (
            (self._graph.initializer, used.__contains__),
            (self._graph.value_info, lambda name: name not in changed),
        ):
            kept = [entry for entry in field if keep(entry.name)]
            del field[:]
            field.extend(kept)


def _attribute(node: Any, name: str, default: Any) -> Any:
    """Value of an integer, list of integers or bytes attribute."""
    for attribute in node.attribute:
        if attribute.name == name:
            return attribute.s or list(attribute.ints) or attribute.i
    return default

"""Widens a graph in half precision to FP32 in memory, for runtimes that cannot compute in half precision.

The CPU provider of ONNX Runtime has no convolutions in BF16 or FP16. For FP16 it inserts casts, but it removes a cast
to FP16 and back between two convolutions, so values that overflow in FP16 do not overflow there. Every FP16 and BF16
value is an FP32 value, so the weights are exact; the results of operators are rounded again if requested.
"""

from __future__ import annotations

from typing import Any

from yolact_deploy.errors import import_optional

#: the first opset whose convolutions and poolings support BF16
BF16_OPSET = 22

_FLOAT = 1
#: ONNX's number of each type; the names are those of --fp16 and of OpenVINO's precisions
HALF_TYPES = {"fp16": 10, "bf16": 16}
#: operators that need no rounding: their results are among their inputs. Kernels in 8 bits never have the results of
#: DequantizeLinear: they multiply the sum of products by the scales
_EXACT = ("Relu", "MaxPool", "Transpose", "Reshape", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
          "Identity", "DequantizeLinear")  # fmt: skip


def widen(model: Any, precision: str, *, rounding: bool) -> None:
    """Turn everything in half precision in a ``ModelProto`` into FP32, in place, except its outputs.

    Args:
        precision: "fp16" or "bf16"
        rounding: round the results of each operator, so that they are those of FP32 arithmetic with storage in half
            precision, including overflows; False rounds nothing
    """
    _Widening(model, HALF_TYPES[precision], rounding).run()


class _Widening:
    """Legend: ``t_exact`` is the tensor ``t`` before rounding, and ``t_half`` is ``t`` in half precision."""

    def __init__(self, model: Any, half: int, rounding: bool) -> None:
        onnx = import_optional("onnx", "onnx", "Reading an ONNX file in half precision")
        self._make_node, self._arrays = onnx.helper.make_node, onnx.numpy_helper
        self._model, self._half, self._rounding = model, half, rounding
        self._was_half: set[str] = set()
        self._nodes: list[Any] = []

    def run(self) -> None:
        graph = self._model.graph
        for tensor in graph.initializer:
            if tensor.data_type == self._half:
                values = self._arrays.to_array(tensor).astype("float32")
                tensor.CopyFrom(self._arrays.from_array(values, tensor.name))
                self._was_half.add(tensor.name)
        outputs = {output.name for output in graph.output}
        for node in graph.node:
            if self._casts_to_half(node) and node.output[0] not in outputs:
                self._cast_to_half(node)
            elif node.op_type == "QuantizeLinear":
                self._nodes.append(node)  # its output is in 8 bits whatever it reads
            elif node.op_type != "Cast" and self._was_half.intersection(node.input):
                self._compute(node)
            else:
                self._nodes.append(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        for value in graph.value_info:
            if value.name in self._was_half:
                value.type.tensor_type.elem_type = _FLOAT
        # Runtimes fuse operators of older opsets better, and only the types require the newer one.
        for holder in (self._model, *self._model.functions):
            for entry in holder.opset_import:
                if not entry.domain:
                    entry.version = min(entry.version, BF16_OPSET - 1)

    def _casts_to_half(self, node: Any) -> bool:
        return node.op_type == "Cast" and any(a.name == "to" and a.i == self._half for a in node.attribute)

    def _cast_to_half(self, node: Any) -> None:
        (source,), (target,) = node.input, node.output
        self._was_half.add(target)
        if self._rounding:
            self._round(source, target)
        else:
            self._nodes.append(self._make_node("Identity", [source], [target], name=node.name))

    def _compute(self, node: Any) -> None:
        outputs = list(node.output)
        self._was_half.update(outputs)
        self._nodes.append(node)
        if self._rounding and node.op_type not in _EXACT:
            node.output[:] = [f"{name}_exact" for name in outputs]
            for name in outputs:
                self._round(f"{name}_exact", name)

    def _round(self, source: str, target: str) -> None:
        self._nodes.append(self._make_node("Cast", [source], [f"{target}_half"], to=self._half))
        self._nodes.append(self._make_node("Cast", [f"{target}_half"], [target], to=_FLOAT))

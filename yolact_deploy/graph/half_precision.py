"""Graphs in half precision for runtimes that cannot compute in it: the same graph in FP32, in memory.

ONNX Runtime's CPU provider has no BF16 convolutions. It has no FP16 ones either, and casts around each of them; but of
a cast to FP16 and back between two of them it leaves nothing, so that what overflows in FP16 does not overflow there.
Every FP16 and BF16 value is an FP32 value, so the weights are exact; what the operators put out is rounded again where
that is wanted.
"""

from __future__ import annotations

from typing import Any

from yolact_deploy.errors import import_optional

#: the first version of ONNX whose convolutions and poolings take BF16
BF16_OPSET = 22

_FLOAT = 1
#: ONNX's number of each type; the names are those of --fp16 and of OpenVINO's precisions
HALF_TYPES = {"fp16": 10, "bf16": 16}
#: operators whose results are values of a type if what enters them is
_EXACT = ("Relu", "MaxPool", "Transpose", "Reshape", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
          "Identity")  # fmt: skip


def widen(model: Any, precision: str, *, rounding: bool) -> None:
    """Turn what is in half precision in a ``ModelProto`` to FP32, in place, but for its outputs.

    Args:
        precision: "fp16" or "bf16"
        rounding: round what each operator puts out, so that the results are those of arithmetic in FP32 with storage
            in half precision, overflows among them; False leaves out what can be left out
    """
    _Widening(model, HALF_TYPES[precision], rounding).run()


class _Widening:
    """Legend: ``t_exact`` is what an operator computes of the tensor ``t``, and ``t_half`` is it in half precision."""

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
            elif node.op_type != "Cast" and self._was_half.intersection(node.input):
                self._compute(node)
            else:
                self._nodes.append(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        for value in graph.value_info:
            if value.name in self._was_half:
                value.type.tensor_type.elem_type = _FLOAT
        # Runtimes know more ways to fuse the operators of older versions, and nothing here is new but the types.
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

"""Lowers the trunk of an FP32 graph to half precision in memory, except chosen layers, without torch.

A kept layer includes all that belongs to it (see :mod:`yolact_deploy.graph.trunk_graph`), so values stay in FP32 from
one kept layer to the next, and casts stand only where the precision changes.

In a quantized graph, everything that is not in 8 bits is lowered: Q nodes read half precision and DQ nodes give it, so
their scales are in half precision as well. Strongly typed networks require that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.errors import ExportError, InputError, import_optional
from yolact_deploy.graph.half_precision import HALF_TYPES
from yolact_deploy.graph.trunk_graph import data_inputs, layer_names, select_layers, trunk_nodes
from yolact_deploy.untrusted import read_json

_FLOAT, _INT8 = 1, 3
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def lower_trunk(model: Any, keep_fp32: Sequence[str] = (), *, precision: str = "fp16", emulate: bool = False) -> None:
    """Turn the FP32 trunk of a ``ModelProto``, or what INT8 leaves of it, into half precision, in place.

    Args:
        keep_fp32: layers, or modules that hold some, that stay as they are
        precision: "fp16" or "bf16"; BF16 requires opset ``BF16_OPSET`` or later, and no Q/DQ nodes
        emulate: leave every node in FP32 and round its inputs and outputs. In any runtime, the results are those of
            FP32 arithmetic with storage in half precision; the file has no other use

    Raises:
        ExportError: a name that is no layer, or weights or scales that the precision cannot hold.
    """
    _Lowering(model.graph, keep_fp32, precision, emulate).run()


class _Lowering:
    """Legend: ``t_low`` is the tensor ``t`` in half precision while both may exist; ``t`` is the one in FP32."""

    def __init__(self, graph: Any, keep_fp32: Sequence[str], precision: str, emulate: bool) -> None:
        onnx = import_optional("onnx", "onnx", "Changing the precision of an ONNX file")
        self._make_node, self._arrays = onnx.helper.make_node, onnx.numpy_helper
        self._graph, self._precision, self._emulate = graph, precision, emulate
        self._low_type = HALF_TYPES[precision]
        self._low_dtype = onnx.helper.tensor_dtype_to_np_dtype(self._low_type)
        nodes = trunk_nodes(graph)
        kept = select_layers(keep_fp32, layer_names(nodes))
        self._low = {node.index for node in nodes if node.layer not in kept}
        # A kept layer reads exact values, so whoever reads 8 bits is lowered.
        self._low |= {i for i, node in enumerate(graph.node) if node.op_type in _QUANTIZING}
        self._constants = {c.name: c for c in graph.initializer if c.data_type == _FLOAT}
        self._values = {c.name: c for c in graph.initializer if c.data_type == _INT8}
        self._made: set[str] = set()
        self._nodes: list[Any] = []

    def run(self) -> None:
        graph = self._graph
        wanted = self._wanted_in_fp32()
        lowered = []
        for index, node in enumerate(graph.node):
            if index not in self._low:
                self._nodes.append(node)
                continue
            if node.op_type in _QUANTIZING:
                self._lower_scale(node)
            if node.op_type != "DequantizeLinear":
                for slot, name in data_inputs(node):
                    node.input[slot] = self._low_version(name)
            if node.op_type == "QuantizeLinear":
                self._nodes.append(node)
                continue
            outputs = list(node.output)
            node.output[:] = [f"{name}_low" for name in outputs]
            lowered += outputs
            self._made.update(node.output)
            self._nodes += self._in_fp32(node) if self._emulate else [node]
            for name in wanted.intersection(outputs):
                self._cast(f"{name}_low", name, _FLOAT)
        del graph.node[:]
        graph.node.extend(self._nodes)
        self._tidy(set(lowered) - wanted)
        self._give_names_back()

    def _lower_scale(self, node: Any) -> None:
        """Round the scales of a Q or DQ node to half precision, and quantize weights again with the rounded ones."""
        weights, scale = self._values.get(node.input[0]), node.input[1]
        node.input[1] = name = f"{scale}_low"
        if name in self._made:
            return
        self._made.add(name)
        exact = self._arrays.to_array(self._constants[scale])
        rounded = exact.astype(self._low_dtype)
        if weights is not None:
            # Scales of weights may be so small that half precision has few bits for them, or none.
            rounded = np.maximum(rounded, np.finfo(np.float16).smallest_subnormal).astype(self._low_dtype)
            self._requantize(node, weights, exact, rounded)
        elif not (np.isfinite(rounded) & (rounded > 0)).all():
            raise ExportError(
                f"the scale {scale} of {float(exact):g} is none in {self._precision}: keep the layers of that tensor "
                "in FP32 (--keep-fp32), or export without --fp16"
            )
        self._graph.initializer.append(self._arrays.from_array(rounded, name))

    def _requantize(self, node: Any, weights: Any, exact: Any, rounded: Any) -> None:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        integers = self._arrays.to_array(weights)
        shape = [-1 if at == axis else 1 for at in range(integers.ndim)] if exact.ndim else []
        ratio = (exact.astype(np.float64) / rounded.astype(np.float64)).reshape(shape)
        again = np.clip(np.rint(integers * ratio), -127, 127).astype(np.int8)
        weights.CopyFrom(self._arrays.from_array(again, weights.name))

    def _wanted_in_fp32(self) -> set[str]:
        names = {output.name for output in self._graph.output}
        for index, node in enumerate(self._graph.node):
            if index not in self._low:
                names.update(node.input)
        return names

    def _low_version(self, name: str) -> str:
        low = f"{name}_low"
        if low not in self._made:
            self._made.add(low)
            if name in self._constants and not self._emulate:
                self._graph.initializer.append(self._half(name))
            else:  # a runtime folds the cast of a constant
                self._cast(name, low, self._low_type)
        return low

    def _half(self, name: str) -> Any:
        with np.errstate(over="ignore"):
            half = self._arrays.to_array(self._constants[name]).astype(self._low_dtype)
        if not np.isfinite(half).all():
            raise ExportError(
                f"{name} has values that are not finite in {self._precision}: keep its layer in FP32, or use --fp32"
            )
        return self._arrays.from_array(half, f"{name}_low")

    def _in_fp32(self, node: Any) -> list[Any]:
        """The node between casts: inputs and outputs are in half precision, the arithmetic is in FP32."""
        before, after = [], []
        for slot, name in data_inputs(node):
            raised = f"{node.output[0]}_in{slot}"
            before.append(self._make_node("Cast", [name], [raised], to=_FLOAT))
            node.input[slot] = raised
        for slot, name in enumerate(node.output):
            after.append(self._make_node("Cast", [f"{name}_exact"], [name], to=self._low_type))
            node.output[slot] = f"{name}_exact"
        return [*before, node, *after]

    def _cast(self, source: str, target: str, to: int) -> None:
        self._nodes.append(self._make_node("Cast", [source], [target], name=f"cast_{target}", to=to))

    def _tidy(self, gone: set[str]) -> None:
        """Drop unused constants, and the types of tensors that are gone."""
        used = {name for node in self._graph.node for name in node.input}
        for field, keep in ((self._graph.initializer, used.__contains__), (self._graph.value_info, _not_in(gone))):
            kept = [entry for entry in field if keep(entry.name)]
            del field[:]
            field.extend(kept)

    def _give_names_back(self) -> None:
        """Name the weights that exist in one version only as their parameters."""
        names = {constant.name for constant in self._graph.initializer}
        given = {f"{name}_low": name for name in self._constants if f"{name}_low" in names and name not in names}
        for constant in self._graph.initializer:
            constant.name = given.get(constant.name, constant.name)
        for node in self._graph.node:
            for slot, name in enumerate(node.input):
                if name in given:
                    node.input[slot] = given[name]
        typed = [value for value in self._graph.value_info if value.name not in given.values()]
        del self._graph.value_info[:]
        self._graph.value_info.extend(typed)


def _not_in(names: set[str]) -> Any:
    return lambda name: name not in names


def read_keep_list(text: str) -> tuple[str, ...]:
    """The layers in ``--keep-fp32``: names separated by commas, or a JSON file written by ``compare --bisect``.

    Raises:
        InputError: a JSON file without such a list, or an empty name.
    """
    if not text.endswith(".json") and not Path(text).is_file():
        names = [name.strip() for name in text.split(",")]
        if not all(names):
            raise InputError(f"--keep-fp32: expected names of layers separated by commas, got {text!r}")
        return tuple(names)
    content = read_json(text, "list of layers", InputError)
    layers = content.get("keep_fp32") if isinstance(content, dict) else content
    if not isinstance(layers, list) or not all(isinstance(name, str) and name for name in layers):
        excerpt = json.dumps(content)[:60]
        raise InputError(f"{text}: expected a list of layers, or one as 'keep_fp32' in an object, got {excerpt}")
    return tuple(layers)

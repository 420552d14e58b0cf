"""What the ONNX parser of TensorRT 10.3 to 10.7 does with names, as far as it decides whether a file parses.

It reserves the names of the graph's outputs as null tensors; it chooses an importer by the operator's name and ignores
the domain, its own importers first; and it does not bind an input of a local function whose name exists outside, so
that the body reads the tensor outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

#: operators that the parser knows in addition to ONNX's, and names of NVIDIA's plugins
_MORE = {
    "CustomQKVToContextPluginDynamic", "DeformableConv2d", "DisentangledAttention_TRT", "EfficientNMS_TRT",
    "FallbackPluginImporter", "ImageScaler", "LocalFunctionImporter", "MMCVDeformConv2d", "ModulatedDeformConv2d",
    "ParametricSoftplus", "ROIAlign_TRT", "ScaledTanh", "TRT_Conv", "TRT_MatMul", "TRT_Scale", "TRT_TopK_Min",
}  # fmt: skip
KNOWN = {schema.name for schema in onnx.defs.get_all_schemas()} | _MORE
#: operators that the parser takes and then gives to one of NVIDIA's plugins
PLUGINS = {"DeformConv"}


class ParseError(Exception):
    """The parser rejects the file."""


def parse(model: Any) -> list[str]:
    """The operators that the parser imports, functions inlined; raises :class:`ParseError`."""
    functions = {function.name: function for function in model.functions}
    tensors: dict[str, Any] = {output.name: None for output in model.graph.output}
    tensors.update({value.name: value.name for value in (*model.graph.input, *model.graph.initializer)})
    imported: list[str] = []

    def visit(node: Any) -> None:
        for name in filter(None, node.input):
            if name not in tensors:
                raise ParseError(f"{node.op_type}: input {name} was not registered")
        if node.op_type in KNOWN:
            if node.op_type in PLUGINS:
                raise ParseError(f"{node.op_type}: no such plugin")
            if any(name and tensors[name] is None for name in node.input):
                raise ParseError(f"{node.op_type}: a null tensor among {', '.join(node.input)}")
            imported.append(node.op_type)
        elif node.op_type in functions:
            enter(node, functions[node.op_type])
            return
        else:
            raise ParseError(f"{node.op_type}: no such plugin")
        tensors.update({name: name for name in node.output})

    def enter(node: Any, function: Any) -> None:
        outside = dict(tensors)
        for formal, actual in zip(function.input, node.input, strict=True):
            if formal != actual and formal not in tensors:
                tensors[formal] = tensors[actual]
        for inner in function.node:
            visit(inner)
        results = [tensors[name] for name in function.output]
        tensors.clear()
        tensors.update(outside)
        tensors.update(zip(node.output, results, strict=False))

    for node in model.graph.node:
        visit(node)
    if missing := [output.name for output in model.graph.output if tensors[output.name] is None]:
        raise ParseError(f"nothing computes {', '.join(missing)}")
    return imported


def check(path: Path) -> None:
    """Fail unless the file parses, by its names, and would in parsers that are stricter."""
    model = onnx.load(str(path))
    parse(model)
    check_names(model)


def check_names(model: Any) -> None:
    """No name in a function exists in the graph or in another function, and no function is named as an operator."""
    graph = model.graph
    holders = [graph.input, graph.output, graph.initializer, graph.value_info]
    seen = {value.name for holder in holders for value in holder}
    seen |= {name for node in graph.node for name in (*node.input, *node.output)}
    for function in model.functions:
        assert function.name not in KNOWN
        names = {*function.input, *function.output}
        names |= {name for node in function.node for name in (*node.input, *node.output)}
        assert not names & seen, f"{function.name} shares {', '.join(sorted(names & seen))}"
        seen |= names

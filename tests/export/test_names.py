"""Names in exported files, and what the parser of TensorRT 10.3 makes of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

import old_parser
from onnx import TensorProto, helper

from yolact_deploy import ops
from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import get_config
from yolact_deploy.export import engine, functions
from yolact_deploy.export.build_options import BuildOptions

FUNCTIONS = {
    "FastNMS": functions.fast_nms_function(),
    "FastNMS across classes": functions.fast_nms_function(cross_class=True),
    "MaskAssembly": functions.mask_assembly_function(),
    "DeformConv3x3": functions.deform_conv_function(),
}


def model_of(*, plus: bool, earlier: bool, cross_class: bool = False) -> Any:
    """A file with our nodes as an export has them: names of outputs are those of inputs of functions.

    Args:
        plus: with two deformable convolutions
        earlier: with the functions as earlier versions wrote them
    """
    proto = "features" if plus else "proto_in"
    attributes: dict[str, Any] = ops.FAST_NMS.attribute_values({"cross_class": int(cross_class)})
    detections = ["num_detections", "boxes", "scores", "labels", "kept"]
    nodes = [
        helper.make_node("FastNMS", ["b", "s", "c"], detections, "nms", domain=ops.DOMAIN, **attributes),
        helper.make_node("MaskAssembly", [proto, "kept", "boxes"], ["masks"], "m", domain=ops.DOMAIN, padding=1.0),
    ]
    bodies = [functions.fast_nms_function(cross_class=cross_class), functions.mask_assembly_function()]
    if plus:
        for source, target in (("between", "features"), ("proto_in", "between")):
            nodes.insert(0, helper.make_node(ops.DEFORM_CONV, [source, "w", "o", "bias", "mask"], [target],
                                             domain=ops.DOMAIN, strides=[1, 1], pads=[1] * 4))  # fmt: skip
        bodies.append(functions.deform_conv_function())
    for node in nodes if earlier else ():
        node.op_type = node.op_type.removesuffix("3x3")
    for function in bodies if earlier else ():
        for holder in (function, *function.node):
            for names in (holder.input, holder.output):
                names[:] = [name.removeprefix(f"{function.name}_") for name in names]
        function.name = function.name.removesuffix("3x3")
    inputs = {"b": 3, "s": 3, "c": 3, "proto_in": 4, **({"w": 4, "o": 4, "bias": 1, "mask": 4} if plus else {})}
    outputs = {"num_detections": 1, "boxes": 3, "scores": 2, "labels": 2, "masks": 4}

    def info(name: str, rank: int) -> Any:
        kind = TensorProto.INT32 if name in ("num_detections", "labels") else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, [f"{name}{axis}" for axis in range(rank)])

    graph = helper.make_graph(
        nodes,
        "names",
        [info(name, rank) for name, rank in inputs.items()],
        [info(name, rank) for name, rank in outputs.items()],
    )
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(ops.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: Metadata(config=get_config("yolact_resnet50")).to_json()})
    return model


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_are_named_as_no_operator(function: Any) -> None:
    assert function.name not in old_parser.KNOWN
    names = {name for node in function.node for name in (*node.input, *node.output)} | {*function.input}
    assert all(name.startswith(f"{function.name}_") for name in names)


@pytest.mark.parametrize("cross_class", [False, True])
@pytest.mark.parametrize("plus", [False, True])
def test_files_parse_as_they_are(plus: bool, cross_class: bool) -> None:
    model = model_of(plus=plus, earlier=False, cross_class=cross_class)
    old_parser.check_names(model)
    assert ("GridSample" in old_parser.parse(model)) == plus


@pytest.mark.parametrize("plus", [False, True])
def test_files_of_earlier_versions_do_not(plus: bool) -> None:
    """What is wrong with them, so that the stand-in is known to be as strict."""
    with pytest.raises(old_parser.ParseError, match="DeformConv: no such plugin" if plus else "a null tensor among"):
        old_parser.parse(model_of(plus=plus, earlier=True))


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("plus", [False, True])
def test_a_build_parses_files_of_all_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plus: bool, earlier: bool, mode: str
) -> None:
    onnx.save(model_of(plus=plus, earlier=earlier), str(tmp_path / "m.onnx"))
    monkeypatch.setattr(engine, "import_tensorrt", lambda flavour: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(engine, "_gpu", lambda flavour, targets: "Orin")
    job = engine._Job(tmp_path / "m.onnx", "tensorrt", BuildOptions(plugin=mode), print)
    model = onnx.load_model_from_string(job.onnx_bytes)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert ("GridSample" in old_parser.parse(model)) == plus

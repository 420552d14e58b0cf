"""Files that are not what ONNX allows are refused before a runtime or TensorRT's parser sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import ArtifactError
from yolact_deploy.inspection import inspect_file

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.graph.onnx_graph import read_onnx


def make_model() -> Any:
    """Two nodes with weights, and two functions of which the graph calls one, which calls the other."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("Add", ["x", "weight"], ["sum"]),
        helper.make_node("Twice", ["sum"], ["y"], domain="own"),
    ]
    graph = helper.make_graph(
        nodes, "graph", [value("x", TensorProto.FLOAT, [6])], [value("y", TensorProto.FLOAT, [6])], [weight]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    inner = helper.make_function(
        "own", "Plus", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [opsets[0]], []
    )
    twice = helper.make_node("Plus", ["a"], ["b"], domain="own")
    outer = helper.make_function("own", "Twice", ["a"], ["b"], [twice], opsets, [])
    return helper.make_model(graph, opset_imports=opsets, functions=[outer, inner], ir_version=10)


def test_a_good_file(tmp_path: Path) -> None:
    onnx.save(make_model(), str(tmp_path / "m.onnx"))
    assert read_onnx(tmp_path / "m.onnx") == make_model()


@pytest.mark.parametrize("field", ["type", "shape"])
def test_outputs_need_no_type_and_no_shape(tmp_path: Path, field: str) -> None:
    model = make_model()
    output = model.graph.output[0]
    (output if field == "type" else output.type.tensor_type).ClearField(field)
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert read_onnx(tmp_path / "m.onnx").graph.output[0].type == output.type


def keep_outside(folder: Path, **entries: str) -> Any:
    """A model whose weights are in ``w.bin`` beside it, with other entries about them."""
    model = make_model()
    tensor = model.graph.initializer[0]
    (folder / "m").mkdir()
    (folder / "m" / "w.bin").write_bytes(tensor.raw_data)
    (folder / "secret.bin").write_bytes(tensor.raw_data)
    (folder / "m" / "link.bin").symlink_to("../secret.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=text)
    (folder / "m" / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m" / "m.onnx"


@pytest.mark.parametrize("entries", [{}, {"offset": "0"}, {"offset": "0", "length": "24"}])
def test_weights_beside_the_file(tmp_path: Path, entries: dict[str, str]) -> None:
    (weight,) = read_onnx(keep_outside(tmp_path, **entries)).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    "entries",
    [
        *({"location": place} for place in ("none.bin", "../secret.bin", "/etc/passwd", "link.bin", "/dev/zero")),
        *({"location": place} for place in ("a/../../secret.bin", ".", "", "\0", "x" * 5000, "../m", "~/w.bin")),
        *({"offset": text} for text in ("-1", "x", "1e3", "4", "1000", "9" * 30)),
        *({"length": text} for text in ("-1", "x", "0", "8", "25", "99999999999999", "9" * 30)),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_weights_elsewhere_or_of_another_size(tmp_path: Path, entries: dict[str, str]) -> None:
    path = keep_outside(tmp_path, **entries)
    with pytest.raises(ArtifactError, match=r"m\.onnx (keeps weights in other files|has a damaged graph)") as caught:
        read_onnx(path)
    assert len(str(caught.value)) < 600
    assert inspect_file(path)["nodes"] == {"Add": 1, "own::Twice": 1}


def own_circle(model: Any) -> None:
    model.functions[1].node.add(domain="own", op_type="Plus", input=["a"], output=["c"])


def circle_of_two(model: Any) -> None:
    model.functions[1].node.add(domain="own", op_type="Twice", input=["a"], output=["c"])


def circle_in_a_branch(model: Any) -> None:
    inner = helper.make_graph([helper.make_node("Twice", ["a"], ["c"], domain="own")], "then", [], [])
    model.functions[1].node.add(op_type="If", input=["a"], output=["d"]).attribute.add(
        name="then_branch", type=onnx.AttributeProto.GRAPH, g=inner
    )


def self_loop(model: Any) -> None:
    model.graph.node[0].input[0] = "sum"


def turned_round(model: Any) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


def same_name_twice(model: Any) -> None:
    model.graph.node[1].output[0] = "sum"


def missing_input(model: Any) -> None:
    model.graph.node[0].input[1] = "elsewhere"


def no_inputs(model: Any) -> None:
    del model.graph.input[:]


def unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "Evil"


def short_weights(model: Any) -> None:
    model.graph.initializer[0].raw_data = b"1234"


def huge_weights(model: Any) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 40, 1 << 20])


def negative_weights(model: Any) -> None:
    model.graph.initializer[0].dims[0] = -6


def no_opset(model: Any) -> None:
    del model.opset_import[:]


def calls_without_end(model: Any) -> None:
    """Functions that each call the next ten times: a trillion operators."""
    opsets = model.functions[0].opset_import
    names = ["Twice", *(f"F{i}" for i in range(12))]
    del model.functions[0]
    for name, next_name in zip(names, [*names[1:], "Plus"], strict=True):
        nodes = [helper.make_node(next_name, ["a"], [f"b{i}"], domain="own") for i in range(10)]
        model.functions.append(helper.make_function("own", name, ["a"], ["b0"], nodes, opsets, []))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (own_circle, "has a function that calls itself"),
        (circle_of_two, "has a function that calls itself"),
        (circle_in_a_branch, "has a function that calls itself"),
        (calls_without_end, "operators in its functions, above 1000000"),
        *(
            (damage, r"has a damaged graph \(")
            for damage in (self_loop, turned_round, same_name_twice, missing_input, no_inputs, unknown_operator)
        ),
        *((damage, r"has a damaged graph \(") for damage in (short_weights, huge_weights, negative_weights, no_opset)),
    ],
)
def test_graphs_that_onnx_does_not_allow(tmp_path: Path, damage: Callable[[Any], None], message: str) -> None:
    model = make_model()
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=message) as caught:
        read_onnx(tmp_path / "m.onnx")
    assert len(str(caught.value)) < 600
    assert inspect_file(tmp_path / "m.onnx")["kind"] == "ONNX"


@pytest.mark.parametrize("number", [99, -1, 1 << 30])
def test_inspect_names_types_that_onnx_does_not_have(tmp_path: Path, number: int) -> None:
    model = make_model()
    model.graph.input[0].type.tensor_type.elem_type = number
    model.graph.initializer[0].data_type = number
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    facts = inspect_file(tmp_path / "m.onnx")
    assert facts["inputs"][0]["dtype"] == f"type {number}"
    assert facts["parameters"] == {f"type {number}": {"values": 6, "bytes": 6}}

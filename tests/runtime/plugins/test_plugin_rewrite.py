"""Fitting graphs to plugins: what stays, what is removed, and the attributes of plugin nodes."""

from __future__ import annotations

from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper
from tail_model import CLASSES, COEFFICIENTS, FLOAT, FLOAT16, HEIGHT, PRIORS, SLOTS, WIDTH, tail_model

from yolact_deploy.errors import ExportError
from yolact_deploy.runtime.plugins import rewrite


def ops_of(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def same(first: Any, second: Any) -> bool:
    return bool(first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True))


def test_the_model_itself_is_left_alone() -> None:
    model, before = tail_model(half=True), tail_model(half=True)
    copy = rewrite.bare_copy(model)
    for tail in rewrite.tail_nodes(copy):
        rewrite.make_plugin_node(tail)
    assert same(model, before)
    assert not same(copy, before)


def test_bodies_go() -> None:
    model = tail_model()
    other = onnx.FunctionProto()
    other.CopyFrom(model.functions[0])
    other.domain, other.name = "elsewhere", "Mine"
    model.functions.append(other)
    copy = rewrite.bare_copy(model)
    assert [function.name for function in copy.functions] == ["Mine"]
    model.functions[0].name = "DeformConv3x3"
    assert [function.name for function in rewrite.bare_copy(model).functions] == ["DeformConv3x3", "Mine"], (
        "of the trunk"
    )
    assert ops_of(copy) == ["FastNMS", "MaskAssembly"]
    assert list(copy.graph.output) == list(model.graph.output)
    onnx.checker.check_model(copy)


def test_casts_around_the_masks_go() -> None:
    copy = rewrite.bare_copy(tail_model(half=True))
    assert ops_of(copy) == ["FastNMS", "MaskAssembly"]
    node = copy.graph.node[1]
    assert list(node.input) == ["proto_in", "kept", "boxes"]
    assert list(node.output) == ["masks"]
    tail = rewrite.tail_nodes(copy)[1]
    assert tail.attributes == {"padding": 1.0, "mask_dtype": FLOAT16}
    assert tail.dtypes == ("float16", "float32", "float32")
    assert [value.name for value in copy.graph.value_info] == ["kept"]
    onnx.checker.check_model(copy)


def test_casts_that_others_need_stay() -> None:
    """Single-precision prototypes with another reader, and masks with two readers."""
    model = tail_model(half=True)
    for name in ("proto_32", "masks_32"):
        value = next(value for value in model.graph.value_info if value.name == name)
        model.graph.output.append(value)
    copy = rewrite.bare_copy(model)
    assert ops_of(copy) == ["FastNMS", "Cast", "MaskAssembly", "Cast"]
    assert copy.graph.node[2].input[0] == "proto_in"
    assert list(copy.graph.node[2].output) == ["masks_32"]
    assert rewrite.tail_nodes(copy)[1].attributes["mask_dtype"] == FLOAT
    onnx.checker.check_model(copy)


def test_casts_to_other_dtypes_stay() -> None:
    model = tail_model(half=True)
    for node in model.graph.node:
        if node.name == "down":
            node.attribute[0].i = 11  # double
    up = next(node for node in model.graph.node if node.name == "up")
    source = next(value for value in model.graph.input if value.name == up.input[0])
    source.type.tensor_type.elem_type = 11
    assert ops_of(rewrite.bare_copy(model)) == ["FastNMS", "Cast", "MaskAssembly", "Cast"]


def test_what_is_known_of_the_nodes() -> None:
    nms, masks = rewrite.tail_nodes(rewrite.bare_copy(tail_model(top_k=30, score_threshold=0.25)))
    assert nms.op.name == "FastNMS"
    assert nms.attributes == {
        "score_threshold": 0.25, "iou_threshold": 0.5, "top_k": 30, "max_detections": SLOTS, "cross_class": 0,
        "second_threshold": -1.0,
    }  # fmt: skip
    assert nms.shapes == ((None, PRIORS, 4), (None, PRIORS, CLASSES), (None, PRIORS, COEFFICIENTS))
    assert nms.shapes_of(3) == [(3, PRIORS, 4), (3, PRIORS, CLASSES), (3, PRIORS, COEFFICIENTS)]
    assert masks.shapes_of(2) == [(2, HEIGHT, WIDTH, COEFFICIENTS), (2, SLOTS, COEFFICIENTS), (2, SLOTS, 4)]
    fixed = rewrite.tail_nodes(rewrite.bare_copy(tail_model(batch=(2, 2, 2))))
    assert fixed[0].shapes[0] == (2, PRIORS, 4)


def test_parsers_find_the_plugins() -> None:
    copy = rewrite.bare_copy(tail_model())
    for tail in rewrite.tail_nodes(copy):
        rewrite.make_plugin_node(tail)
        rewrite.make_plugin_node(tail)  # nothing twice
    for node, own in zip(copy.graph.node, ({"top_k"}, {"padding", "mask_dtype"}), strict=True):
        told = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert len(told) == len(node.attribute)
        assert (told["plugin_namespace"], told["plugin_version"]) == (b"yolact", b"1")
        assert own <= set(told)
    onnx.checker.check_model(copy)


def test_has_tail() -> None:
    model = tail_model()
    assert rewrite.has_tail(model)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("FastNMS", ["a"], ["b"], domain="elsewhere"))
    assert not rewrite.has_tail(model)


@pytest.mark.parametrize("lost", ["value", "size"])
def test_unknown_shapes(lost: str) -> None:
    model = tail_model()
    value = model.graph.value_info[0]
    if lost == "value":
        model.graph.value_info.remove(value)
    else:
        value.type.tensor_type.shape.dim[1].dim_param = "slots"
    with pytest.raises(ExportError, match="lacks the shape of kept, input of MaskAssembly: export it again"):
        rewrite.tail_nodes(model)


def test_nodes_are_replaced_in_their_places() -> None:
    model = tail_model(half=True)
    chain = [
        rewrite.plugin_node("first", "One", ["boxes_in"], ["between"]),
        rewrite.plugin_node("second", "Two", ["between"], ["num_detections", "boxes", "scores", "labels", "kept"]),
    ]
    rewrite.replace_nodes(model, {"num_detections": chain})
    assert ops_of(model) == ["One", "Two", "Cast", "MaskAssembly", "Cast"]
    assert {node.domain for node in model.graph.node[:2]} == {"yolact"}
    onnx.checker.check_model(model)

"""The two ops: their attributes and shapes, and their agreement with the exported functions."""

from __future__ import annotations

from typing import Any

import pytest

from yolact_deploy import ops
from yolact_deploy.ops import FAST_NMS, MASK_ASSEMBLY

NMS_INPUTS = [(2, 300, 4), (2, 300, 6), (2, 300, 5)]
MASK_INPUTS = [(2, 36, 34, 5), (2, 60, 5), (2, 60, 4)]


def test_names_and_types() -> None:
    assert [op.name for op in ops.OPS] == ["FastNMS", "MaskAssembly"]
    types = {attribute.name: attribute.type for op in ops.OPS for attribute in op.attributes}
    assert types == {
        "score_threshold": float, "iou_threshold": float, "top_k": int, "max_detections": int, "cross_class": int,
        "second_threshold": float, "padding": float, "mask_dtype": int,
    }  # fmt: skip
    assert MASK_ASSEMBLY.exported_attributes == ["padding"]


def test_attribute_values() -> None:
    values = FAST_NMS.attribute_values({"top_k": 50, "iou_threshold": 1, "cross_class": True})
    assert values == {
        "score_threshold": 0.05, "iou_threshold": 1.0, "top_k": 50, "max_detections": 100, "cross_class": 1,
        "second_threshold": -1.0,
    }  # fmt: skip
    assert type(values["iou_threshold"]) is float
    assert type(values["cross_class"]) is int
    with pytest.raises(ValueError, match="MaskAssembly has no attribute pad, size; it has padding, mask_dtype"):
        MASK_ASSEMBLY.attribute_values({"size": 1, "padding": 1.0, "pad": 2})


def test_output_shapes() -> None:
    attributes = FAST_NMS.attribute_values({"max_detections": 60})
    assert FAST_NMS.output_shapes(NMS_INPUTS, attributes) == [(2,), (2, 60, 4), (2, 60), (2, 60), (2, 60, 5)]
    assert MASK_ASSEMBLY.output_shapes(MASK_INPUTS, {}) == [(2, 60, 36, 34)]


def test_symbols_are_passed_through() -> None:
    """Symbolic sizes support few operations: they must not be compared or converted to int."""

    class Symbol:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    batch, height = Symbol(), Symbol()
    nms = FAST_NMS.output_shapes([(batch, *shape[1:]) for shape in NMS_INPUTS], FAST_NMS.attribute_values({}))
    assert nms[1][0] is batch
    assert nms[1][1:] == (100, 4)
    (masks,) = MASK_ASSEMBLY.output_shapes([(batch, height, 34, 5), (2, 60, 5), (Symbol(), 60, 4)], {})
    assert masks[0] is batch
    assert masks[2] is height


def test_lists_of_fast_nms() -> None:
    assert FAST_NMS.dimensions(NMS_INPUTS, FAST_NMS.attribute_values({}))["L"] == 6
    assert FAST_NMS.dimensions(NMS_INPUTS, FAST_NMS.attribute_values({"cross_class": 1}))["L"] == 1


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (FAST_NMS, NMS_INPUTS[:2], "FastNMS: expected 3 inputs, got 2"),
        (FAST_NMS, [(300, 4), *NMS_INPUTS[1:]], r"expected boxes \[N, P, 4\], got \[300, 4\]"),
        (FAST_NMS, [(2, 300, 5), *NMS_INPUTS[1:]], r"expected boxes \[N, P, 4\], got \[2, 300, 5\]"),
        (FAST_NMS, [(2, 299, 4), *NMS_INPUTS[1:]], r"expected scores \[N, P, C\] with P = 299, got \[2, 300, 6\]"),
        (MASK_ASSEMBLY, [*MASK_INPUTS[:2], (2, 61, 4)], r"expected boxes \[N, D, 4\] with D = 60, got \[2, 61, 4\]"),
    ],
)
def test_wrong_shapes(op: ops.Op, shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        op.output_shapes(shapes, op.attribute_values({}))


@pytest.mark.parametrize("cross_class", [False, True])
def test_functions_agree(cross_class: bool) -> None:
    pytest.importorskip("onnx")
    from yolact_deploy.export import functions

    made = [functions.fast_nms_function(cross_class=cross_class), functions.mask_assembly_function()]
    for op, function in zip(ops.OPS, made, strict=True):
        assert (function.domain, function.name) == (ops.DOMAIN, op.name)
        assert list(function.attribute) == op.exported_attributes
        assert list(function.input) == [f"{op.name}_{tensor.name}" for tensor in op.inputs]
        assert len(function.output) == len(op.outputs)

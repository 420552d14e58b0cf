"""Half precision in FP32: the same values, rounded where the graph rounds, for runtimes that cannot compute in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from yolact_deploy.graph.half_precision import BF16_OPSET, HALF_TYPES, widen

FLOAT = TensorProto.FLOAT


def make_model(precision: str, *, half_output: bool = False) -> Any:
    """y = Relu(w x + b) + w x + b of a [4, 4] x, computed in half precision; z is y as it is or cast."""
    half = HALF_TYPES[precision]
    dtype = helper.tensor_dtype_to_np_dtype(half)
    rng = np.random.default_rng(4)
    weights = {"w": rng.standard_normal((4, 4)), "b": rng.standard_normal(4) + 40}
    nodes = [
        helper.make_node("Cast", ["x"], ["x_low"], to=half),
        helper.make_node("MatMul", ["x_low", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["positive"]),
        helper.make_node("Add", ["positive", "sum"], ["y_low"]),
        helper.make_node("Cast", ["y_low"], ["y"], to=FLOAT),
        helper.make_node("Cast", ["y"], ["z"], to=half if half_output else FLOAT),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", FLOAT, [4, 4])],
        [value("y", FLOAT, [4, 4]), value("z", half if half_output else FLOAT, [4, 4])],
        initializer=[numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
        value_info=[value("product", half, [4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", BF16_OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def expected(model: Any, precision: str, x: Any, *, rounding: bool) -> Any:
    """The same by NumPy, in FP32 with storage in half precision."""
    dtype = helper.tensor_dtype_to_np_dtype(HALF_TYPES[precision])
    w, b = (numpy_helper.to_array(tensor).astype(np.float32) for tensor in model.graph.initializer)

    def stored(array: Any) -> Any:
        with np.errstate(over="ignore"):
            return array.astype(dtype).astype(np.float32) if rounding else array

    total = stored(stored(stored(x) @ w) + b)
    return stored(np.maximum(total, 0) + total)


def run(model: Any, x: Any) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(5).standard_normal((4, 4)).astype(np.float32)


@pytest.mark.parametrize("precision", HALF_TYPES)
@pytest.mark.parametrize("rounding", [True, False])
def test_values(precision: str, rounding: bool, x: Any) -> None:
    model = make_model(precision)
    wanted = expected(model, precision, x, rounding=rounding)
    widen(model, precision, rounding=rounding)
    onnx.checker.check_model(model, full_check=True)
    y, z = run(model, x)
    np.testing.assert_array_equal(y, z)
    # A last bit of the product in FP32 may round the other way.
    assert (np.abs(y - wanted) > 1e-5 * np.abs(wanted)).sum() <= (1 if rounding else 0)
    assert (y != wanted).mean() < 0.2 or not rounding
    exact = expected(make_model(precision), precision, x, rounding=False)
    if rounding:
        assert (np.abs(y - exact) > 1e-4).any(), "it is rounded"


@pytest.mark.parametrize("precision", HALF_TYPES)
def test_nothing_is_half_but_casts(precision: str) -> None:
    model = make_model(precision)
    widen(model, precision, rounding=True)
    assert {tensor.data_type for tensor in model.graph.initializer} == {FLOAT}
    assert {value.type.tensor_type.elem_type for value in model.graph.value_info} == {FLOAT}
    to_half = [n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == HALF_TYPES[precision]]
    assert len(to_half) == 4, "x, two sums and the product; the Relu of a rounded value is one"
    widen(model := make_model(precision), precision, rounding=False)
    assert not [n for n in model.graph.node if n.op_type == "Cast" and n.attribute[0].i == HALF_TYPES[precision]]


def test_an_overflow_is_one(x: Any) -> None:
    """What ONNX Runtime makes of an FP16 graph by itself holds 1e5; the engine on a GPU does not."""
    x = x * 3e4
    model = make_model("fp16")
    widen(model, "fp16", rounding=True)
    y, _ = run(model, x)
    wanted = expected(make_model("fp16"), "fp16", x, rounding=True)
    assert np.isinf(wanted).any()
    np.testing.assert_array_equal(np.isinf(y), np.isinf(wanted))


def test_outputs_stay_as_they_are(x: Any) -> None:
    """Masks of an FP16 file are FP16."""
    model = make_model("fp16", half_output=True)
    widen(model, "fp16", rounding=True)
    onnx.checker.check_model(model, full_check=True)
    y, z = run(model, x)
    assert (y.dtype, z.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(y, z.astype(np.float32))


def test_the_version_is_one_that_runtimes_know_well() -> None:
    model = make_model("bf16")
    widen(model, "bf16", rounding=True)
    assert [entry.version for entry in model.opset_import] == [BF16_OPSET - 1]
    model = make_model("fp16")
    model.opset_import[0].version = 20
    widen(model, "fp16", rounding=True)
    assert [entry.version for entry in model.opset_import] == [20]

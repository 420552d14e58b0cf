"""The body of yolact::DeformConv3x3, and the operators that stand in for it, against torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper
from torchvision.ops import deform_conv2d

from yolact_deploy.export import functions
from yolact_deploy.graph.onnx_graph import inline_functions, use_deform_conv
from yolact_deploy.graph.trunk_graph import trunk_nodes
from yolact_deploy.ops import DEFORM_CONV

IN, OUT, HEIGHT, WIDTH, BATCH = 6, 8, 9, 11, 2


def in_onnxruntime(model: Any, feed: dict[str, Any]) -> Any:
    ort = pytest.importorskip("onnxruntime")
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def in_openvino(model: Any, feed: dict[str, Any]) -> Any:
    pytest.importorskip("openvino")
    from yolact_deploy.runtime.openvino import shared_core

    core = shared_core()
    network = core.read_model(inline_functions(model).SerializeToString())
    return np.array(core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)[0])


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def make(stride: int, kind: Any, *, batch: Any = BATCH, name: str = DEFORM_CONV) -> tuple[Any, dict[str, Any], Any]:
    """A model of one deformable convolution, inputs, and what torchvision makes of them."""
    rng = np.random.default_rng(0)
    height, width = ((side - 1) // stride + 1 for side in (HEIGHT, WIDTH))
    values = {
        "x": rng.standard_normal((BATCH, IN, HEIGHT, WIDTH)),
        "offset": 2 * rng.standard_normal((BATCH, 18, height, width)),  # many taps leave the features
        "mask": rng.random((BATCH, 9, height, width)),
    }
    values["offset"][0, :, 0] = np.tile([-1, 0], 9)[:, None]  # whole numbers: onto the border and beside it
    feed = {name: value.astype(kind) for name, value in values.items()}
    weight = (rng.standard_normal((OUT, IN, 3, 3)) / 8).astype(kind)
    bias = rng.standard_normal(OUT).astype(kind)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    inputs = [helper.make_tensor_value_info(name, number, [batch, *value.shape[1:]]) for name, value in feed.items()]
    output = helper.make_tensor_value_info("y", number, [batch, OUT, height, width])
    names = ["x", "weight", "offset", "bias", "mask"]
    node = helper.make_node(name, names, ["y"], domain="yolact", strides=[stride] * 2, pads=[1] * 4)
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph([node], "one", inputs, [output], initializer=constants)
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)]
    bodies = [functions.deform_conv_function()]
    bodies[0].name = name
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    x, offset, mask = (torch.from_numpy(value.astype(np.float64)) for value in feed.values())
    parameters = (torch.from_numpy(value.astype(np.float64)) for value in (weight, bias))
    expected = deform_conv2d(x, offset, *parameters, stride=stride, padding=1, mask=mask)
    return model, feed, expected.numpy()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
def test_the_function(run: Callable[..., Any], stride: int) -> None:
    model, feed, expected = make(stride, np.float32)
    np.testing.assert_allclose(run(model, feed), expected, atol=1e-5)


@pytest.mark.parametrize("name", [DEFORM_CONV, "DeformConv"])  # in files of earlier versions
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
def test_the_operator_in_its_place(run: Callable[..., Any], stride: int, name: str) -> None:
    model, feed, expected = make(stride, np.float32, name=name)
    assert [(node.layer, node.op_type) for node in trunk_nodes(model.graph)] == [("weight", "DeformConv")]
    use_deform_conv(model)
    assert [(node.domain, node.op_type) for node in model.graph.node] == [("", "DeformConv")]
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, feed), expected, atol=1e-5)


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
def test_half_precision(run: Callable[..., Any], operator: bool) -> None:
    model, feed, expected = make(1, np.float16)
    if operator:
        use_deform_conv(model)
    found = run(model, feed)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), expected, atol=1e-2)


@pytest.mark.parametrize("operator", [False, True])
@pytest.mark.parametrize("run", RUNTIMES.values(), ids=RUNTIMES)
def test_an_open_batch(run: Callable[..., Any], operator: bool) -> None:
    model, feed, expected = make(2, np.float32, batch="batch")
    if operator:
        use_deform_conv(model)
    np.testing.assert_allclose(run(model, feed), expected, atol=1e-5)

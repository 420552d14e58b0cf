"""INT8 graphs fitted to ONNX Runtime on x86: the same numbers, or finer ones, and no convolution left in FP32."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from tiny_int8 import Graph, network

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError
from yolact_deploy.graph import onnx_int8
from yolact_deploy.graph.cpu_session import open_cpu_session
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.graph.onnx_int8 import use_unsigned
from yolact_deploy.machine import cpu
from yolact_deploy.runtime import onnxruntime

x86_only = pytest.mark.skipif(not onnx_int8.wants_unsigned(), reason="kernels of x86 with VNNI")


def as_written(model: Any, images: NDArray[Any]) -> list[NDArray[Any]]:
    """What the graph says, node by node in FP32 between Q and DQ: nothing is fused."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images}))


def in_float(model: Any, images: NDArray[Any]) -> list[NDArray[Any]]:
    """The network without rounding its activations."""
    plain = copy(model)
    sources: dict[str, str] = {}
    kept = []
    for node in plain.graph.node:
        quantizes = node.op_type == "QuantizeLinear"
        if quantizes or (node.op_type == "DequantizeLinear" and node.input[0] in sources):
            sources[node.output[0]] = sources.get(node.input[0], node.input[0])
            continue
        for slot, name in enumerate(node.input):
            node.input[slot] = sources.get(name, name)
        kept.append(node)
    del plain.graph.node[:]
    plain.graph.node.extend(kept)
    return as_written(plain, images)


def fast(model: Any, images: NDArray[Any]) -> list[NDArray[Any]]:
    return list(open_cpu_session(model.SerializeToString(), None, "tiny").run(None, {"images": images}))


def copy(model: Any) -> Any:
    other = type(model)()
    other.CopyFrom(model)
    return other


def rewritten(model: Any) -> Any:
    changed = copy(model)
    use_unsigned(changed)
    return changed


def pictures(*shape: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def zero_points(model: Any) -> dict[str, list[Any]]:
    """Type and value of the zero points of activations, of each QuantizeLinear's input."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0]: [values[node.input[2]].dtype, int(values[node.input[2]])]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


# -- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 0]], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
@x86_only
def test_a_signed_convolution_is_the_same(side: int, stride: int, pads: list[int], batch: int) -> None:
    graph = Graph((batch, 5, 9, 7), seed=side)
    entering = graph.quantized("images", 1.5)  # values beyond it are cut off, on both sides
    model = graph.model(graph.convolution(entering, (5, 6), side, strides=[stride, stride], pads=pads))
    images = pictures(batch, 5, 9, 7)
    changed = rewritten(model)
    assert [kind for kind, _ in zero_points(changed).values()] == [np.dtype(np.uint8)]
    assert "Conv" not in {node.op_type for node in changed.graph.node}
    (expected,) = as_written(model, images)
    assert np.abs(expected).max() > 0.5
    for run in (as_written, fast):
        (found,) = run(changed, images)
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max() * 5)


def test_the_ends_of_a_signed_range_are_the_same() -> None:
    graph = Graph((1, 1, 1, 5))
    model = graph.model(graph.quantized("images", 127.0))
    images = np.array([-300, -128, -0.5, 1.5, 300], np.float32).reshape(1, 1, 1, 5)  # the step is 1, halves go to even
    assert as_written(model, images)[0].ravel().tolist() == [-128, -128, 0, 2, 127]
    assert as_written(rewritten(model), images)[0].ravel().tolist() == [-128, -128, 0, 2, 127]


def test_what_is_not_negative_is_twice_as_fine() -> None:
    graph = Graph((1, 1, 1, 1001))
    model = graph.model(graph.quantized(graph.node("Relu", "images"), 1.0))
    images = np.linspace(-0.2, 1.2, 1001, dtype=np.float32).reshape(1, 1, 1, 1001)
    true = np.clip(images, 0, 1)
    before, after = as_written(model, images)[0], as_written(rewritten(model), images)[0]
    assert np.abs(before - true).max() == pytest.approx(0.5 / 127, rel=0.05)
    assert np.abs(after - true).max() == pytest.approx(0.5 / 255, rel=0.05)
    assert after.max() == pytest.approx(1.0, abs=1e-6)


@x86_only
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 2])
def test_a_network_is_nearer_to_fp32_than_before(seed: int, batch: int) -> None:
    model, images = network(seed, batch), pictures(batch, 3, 24, 24, seed=seed)
    changed = rewritten(model)
    truth = in_float(model, images)
    for exact, before, after, plain in zip(
        truth, as_written(model, images), fast(changed, images), as_written(changed, images), strict=True
    ):
        size = np.sqrt(np.mean(exact**2))
        errors = [float(np.sqrt(np.mean((found - exact) ** 2)) / size) for found in (before, after)]
        assert 1e-3 < errors[0] < 0.1
        assert errors[1] < errors[0]
        # Biases are rounded in fused layers: one result in a hundred falls on the other side of a step.
        assert np.sqrt(np.mean((after - plain) ** 2)) < 0.7 * errors[1] * size


@x86_only
def test_no_convolution_is_left_in_fp32(tmp_path: Path) -> None:
    def computed(model: Any) -> Counter[str]:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    model = network()
    before, after = computed(model), computed(rewritten(model))
    assert before["Conv"] + before["FusedConv"] >= 5
    assert not after["Conv"] + after["FusedConv"] + after["ConvInteger"]
    assert (after["QLinearConv"], after["MatMulIntegerToFloat"]) == (4, 3)
    assert after["QLinearAdd"] == 1


def test_heads_on_one_tensor_share_its_columns() -> None:
    operators = Counter(node.op_type for node in rewritten(network()).graph.node)
    assert operators["Concat"] == 1
    assert operators["Slice"] == 9


# -- what is not negative -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "positive"),
    [
        ("relu", True),
        ("sigmoid", True),
        ("relu6", True),
        ("clip from -1", False),
        ("clip from -1 after relu", True),
        ("as it is", False),
        ("pooled", True),
        ("linear", True),
        ("nearest", True),
        ("cubic", False),
        ("concat", True),
        ("concat with others", False),
        ("sum", True),
        ("difference", False),
        ("quantized", True),
    ],
)
def test_zero_points(kind: str, positive: bool) -> None:
    graph = Graph((1, 2, 4, 4))
    relu = graph.node("Relu", "images")
    last = {
        "relu": lambda: relu,
        "sigmoid": lambda: graph.node("Sigmoid", "images"),
        "relu6": lambda: graph.clipped("images", 0, 6),
        "clip from -1": lambda: graph.clipped("images", -1, 6),
        "clip from -1 after relu": lambda: graph.clipped(relu, -1, 6),
        "as it is": lambda: graph.node("Neg", relu),
        "pooled": lambda: graph.node("MaxPool", relu, kernel_shape=[2, 2]),
        "linear": lambda: graph.resized(relu, "linear"),
        "nearest": lambda: graph.resized(relu, "nearest"),
        "cubic": lambda: graph.resized(relu, "cubic"),
        "concat": lambda: graph.node("Concat", relu, relu, axis=1),
        "concat with others": lambda: graph.node("Concat", relu, "images", axis=1),
        "sum": lambda: graph.node("Add", relu, relu),
        "difference": lambda: graph.node("Sub", relu, relu),
        "quantized": lambda: graph.quantized(relu, 5.0),
    }[kind]()
    model = graph.model(graph.quantized(last, 3.0))
    assert zero_points(rewritten(model))[last] == [np.dtype(np.uint8), 0 if positive else 128]


# -- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(113), np.int8(3)], ids=repr)
def test_other_forms_stay(zero: np.generic) -> None:
    graph = Graph((1, 3, 8, 8))
    model = graph.model(graph.quantized(graph.node("Relu", graph.quantized("images", 3.0, zero)), 3.0, zero))
    changed = rewritten(model)
    assert changed.SerializeToString() == model.SerializeToString()


def test_a_quantized_output_stays() -> None:
    graph = Graph((1, 3, 8, 8))
    model = graph.model(graph.quantized("images", 3.0))
    model.graph.output.append(onnx.helper.make_tensor_value_info(model.graph.node[0].output[0], 3, None))
    assert rewritten(model).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("attributes", [{"groups": 2}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER"}], ids=str)
def test_other_convolutions_stay(attributes: dict[str, Any]) -> None:
    graph = Graph((1, 4, 8, 8))
    model = graph.model(graph.convolution(graph.quantized("images", 3.0), (4, 6), 3, **attributes))
    changed = rewritten(model)
    assert "Conv" in {node.op_type for node in changed.graph.node}
    images = pictures(1, 4, 8, 8)
    np.testing.assert_allclose(fast(changed, images)[0], as_written(model, images)[0], atol=1e-4)


def test_a_layer_in_fp32_stays() -> None:
    """--keep-fp32: weights without DequantizeLinear."""
    graph = Graph((1, 3, 8, 8))
    weights = graph.constant(pictures(4, 3, 3, 3))
    model = graph.model(graph.node("Conv", graph.quantized("images", 3.0), weights))
    assert "Conv" in {node.op_type for node in rewritten(model).graph.node}


# -- biases ---------------------------------------------------------------------------------------------------------


@x86_only
def test_a_bias_that_is_huge_beside_its_weights() -> None:
    """A channel that training has silenced: weights of next to nothing, and a bias of ordinary size."""
    graph = Graph((1, 3, 8, 8))
    made = graph.convolution(graph.quantized("images", 3.0), (3, 4), 3, bias=[2.5, -0.5, 0.1, 0.2])
    tiny = np.array([1e-15, 0.01, 0.01, 0.01], np.float32)
    scales = next(constant for constant in graph.constants if list(constant.dims) == [4])
    scales.CopyFrom(onnx.numpy_helper.from_array(tiny, scales.name))
    model = graph.model(graph.quantized(made, 3.0))
    images = pictures(1, 3, 8, 8)
    expected, found = as_written(model, images)[0], fast(rewritten(model), images)[0]
    assert expected[0, 0] == pytest.approx(2.5, abs=3 / 127)
    np.testing.assert_allclose(found[0, 0], expected[0, 0])
    assert np.abs(found - expected).max() <= 1.01 * 3 / 127


# -- runtimes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An INT8 file that ends in heads, as far as loading it goes."""
    model = network()
    how = {"target": "symmetric", "method": "minmax", "images": 3, "images_sha256": "12"}
    metadata = Metadata(config=YolactConfig(image_size=64), tail="heads", precision="int8", quantization=how)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, str(tmp_path / "int8.onnx"))
    return tmp_path / "int8.onnx"


def loaded_types(path: Path, **options: Any) -> set[Any]:
    graph = load_graph(path, "auto", **options)
    assert graph.metadata.precision == "int8"
    return {kind for kind, _ in zero_points(onnx.load_model_from_string(graph.data)).values()}


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_not_positive_and_finite(file: Path, value: float) -> None:
    model = onnx.load(str(file))
    name = next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[1]
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(scale.dims), value, np.float32), name))
    onnx.save(model, str(file))
    with pytest.raises(ArtifactError, match=r"int8\.onnx: the scale .* is not positive and finite"):
        load_graph(file, "graph")


def test_only_what_asks_for_it_gets_it(file: Path) -> None:
    before = file.read_bytes()
    assert loaded_types(file) == loaded_types(file, gpu=True) == {np.dtype(np.int8)}
    assert loaded_types(file, unsigned=True) == {np.dtype(np.uint8)}
    assert file.read_bytes() == before


def test_a_file_in_fp32_is_left_alone(file: Path) -> None:
    model = onnx.load(str(file))
    model.metadata_props[0].value = Metadata(config=YolactConfig(image_size=64), tail="heads").to_json()
    onnx.save(model, str(file))
    assert load_graph(file, "auto", unsigned=True).data == load_graph(file, "auto").data


@pytest.mark.parametrize("wanted", [True, False])
def test_the_backend_asks_on_these_cpus(file: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    given = []

    def session(data: bytes, *_: Any) -> Any:
        given.append(data)
        return None

    monkeypatch.setattr(onnxruntime, "wants_unsigned", lambda: wanted)
    monkeypatch.setattr(onnxruntime, "open_cpu_session", session)
    assert onnxruntime.OnnxRuntimeBackend(file).precision == "int8"
    kinds = {kind for kind, _ in zero_points(onnx.load_model_from_string(given[0])).values()}
    assert kinds == {np.dtype(np.uint8 if wanted else np.int8)}


def test_both_runtimes_say_int8(file: Path) -> None:
    pytest.importorskip("openvino")
    from yolact_deploy.runtime.openvino import OpenVinoBackend

    for backend in (
        onnxruntime.OnnxRuntimeBackend(file),
        OpenVinoBackend(file),
        OpenVinoBackend(file, precision="fp32"),
    ):
        assert backend.precision == backend.describe()["precision"] == "int8"
        backend.close()


@x86_only
def test_openvino_agrees_on_either_form() -> None:
    pytest.importorskip("openvino")
    from yolact_deploy.runtime.openvino import shared_core

    model, images = network(), pictures(1, 3, 24, 24)
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = shared_core().compile_model(shared_core().read_model(model.SerializeToString()), "CPU", properties)
    found = [np.asarray(value) for value in compiled([images]).values()]
    for exact, ours, theirs in zip(in_float(model, images), fast(rewritten(model), images), found, strict=True):
        size = np.sqrt(np.mean(exact**2))
        assert np.sqrt(np.mean((theirs - exact) ** 2)) < 0.1 * size
        assert np.sqrt(np.mean((theirs - ours) ** 2)) < 0.1 * size


@pytest.mark.parametrize(
    ("machine", "flags", "wanted"),
    [
        ("x86_64", {"avx2", "avx512f", "avx512_vnni"}, True),
        ("AMD64", {"avx2", "avx_vnni"}, True),
        ("x86_64", {"avx2", "avx512f"}, False),
        ("x86_64", set(), False),
        ("aarch64", {"asimddp"}, False),
    ],
)
def test_which_cpus_want_it(monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], wanted: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu, "cpu_info", lambda: ("a CPU", frozenset(flags)))
    assert onnx_int8.wants_unsigned() is wanted

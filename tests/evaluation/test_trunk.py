"""Two trunks tensor by tensor: names, order, errors and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import numpy_helper
from scripted import ScriptedBackend
from small_net import CONFIG, LAYERS, make_model, pictures, write_blobs, write_model

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.evaluation.taps import INPUT, OnnxTap, Tap, open_tap
from yolact_deploy.evaluation.trunk_comparison import ErrorMeter, TrunkComparison, compare_trunks, sqnr_db
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.graph.onnx_graph import onnx_metadata
from yolact_deploy.graph.trunk_graph import trunk_nodes
from yolact_deploy.runtime.openvino import shared_core

HEAD = "prediction_layers.0"


def tap(path: Path, runtime: str = "onnxruntime", **options: Any) -> OnnxTap:
    return OnnxTap(path, runtime=runtime, threads=1, **options)


def compare(a: Tap, b: Tap, **options: Any) -> TrunkComparison:
    images = [(picture[None], picture[None]) for picture in pictures(2)]
    return compare_trunks(a, b, images, **options)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small.onnx")


@pytest.fixture
def half(tmp_path: Path) -> Path:
    model = make_model()
    lower_trunk(model)
    onnx.save(model, str(tmp_path / "half.onnx"))
    return tmp_path / "half.onnx"


def scale_weights(graph: Any, layer: str, factor: float) -> None:
    (weight,) = (w for w in graph.initializer if w.name == f"model.{layer}.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))


def test_names(small: Path) -> None:
    names = list(tap(small).sizes)
    assert names[:4] == [INPUT, "backbone.conv1", "backbone.conv1/Relu", "backbone.conv2"]
    assert "backbone.layers.0.conv1/Add" in names
    assert f"{HEAD}.conf_layer#2" in names, "shared weights are counted"
    assert f"{HEAD}.mask_layer#2/Tanh" in names
    assert "proto_net.0/Resize" in names
    assert not [name for name in names if "Transpose" in name or "Softmax" in name or "Concat" in name]


def test_a_graph_against_itself_is_exact(small: Path) -> None:
    result = compare(tap(small), tap(small))
    assert result.first_over is None
    assert result.unmatched == 0
    assert len(result.layers) > len(LAYERS)
    assert {(layer.max_error, layer.sqnr_db) for layer in result.layers} == {(0.0, math.inf)}
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["layers"][0]["sqnr_db"] is None


def test_half_precision(small: Path, half: Path) -> None:
    """Each layer has the error of eleven bits or a few times that, the input none."""
    result = compare(tap(small), tap(half))
    errors = {layer.name: layer for layer in result.layers}
    assert list(errors) == list(tap(small).sizes), "in the order of the reference"
    assert errors[INPUT].relative_rms == 0
    decibels = [layer.sqnr_db for layer in result.layers[1:]]
    assert 50 < min(decibels) < max(decibels) < 90
    assert result.first_over is None
    strict = compare(tap(small), tap(half), threshold=1e-6)
    assert strict.first_over is not None
    assert strict.first_over.name == "backbone.conv1"
    assert strict.worst(3)[0].relative_rms == max(layer.relative_rms for layer in strict.layers)


@pytest.mark.parametrize("layer", ["backbone.layers.0.conv1", "proto_net.2", f"{HEAD}.conf_layer"])
def test_the_layer_that_is_off_is_named(small: Path, tmp_path: Path, layer: str) -> None:
    wrong = write_model(tmp_path / "wrong.onnx", lambda graph: scale_weights(graph, layer, 1.1))
    result = compare(tap(small), tap(wrong))
    assert result.first_over is not None
    assert result.first_over.name == layer
    assert result.first_over.relative_rms == pytest.approx(0.1, abs=0.02)
    before = LAYERS[: LAYERS.index(layer)]
    assert all(error.max_error == 0 for error in result.layers if error.name.split("/")[0] in before)


def test_memory_is_bounded(small: Path, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures from many portions, none of which holds more than it may."""
    opened: list[int] = []
    whole = compare(tap(small), tap(half))
    a, b = tap(small), tap(half)
    plain = OnnxTap.open

    def watched(self: OnnxTap, names: Sequence[str]) -> Any:
        opened.append(sum(self.sizes[name] for name in names))
        return plain(self, names)

    monkeypatch.setattr(OnnxTap, "open", watched)
    limit = 200_000
    portions = compare(a, b, memory_bytes=limit)
    assert len(opened) > 6
    assert max(x + y for x, y in zip(opened[::2], opened[1::2], strict=True)) <= limit
    for one, other in zip(whole.layers, portions.layers, strict=True):
        assert one.name == other.name
        assert one.relative_rms == pytest.approx(other.relative_rms, rel=0.2, abs=1e-6)  # other fusions, other rounding


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino(small: Path, precision: str) -> None:
    pytest.importorskip("openvino")
    if precision == "bf16" and "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no BF16 arithmetic")
    result = compare(tap(small), tap(small, "openvino", precision=precision))
    assert len(result.layers) == len(tap(small).sizes)
    decibels = [layer.sqnr_db for layer in result.layers[1:]]
    assert min(decibels) > (100 if precision == "fp32" else 30)
    assert max(decibels) < (math.inf if precision == "fp32" else 70)


def test_layers_without_names_are_aligned_by_their_order(small: Path, tmp_path: Path) -> None:
    def rename(graph: Any) -> None:
        new = {w.name: f"onnx::Conv_{i}" for i, w in enumerate(graph.initializer) if w.name.endswith(".weight")}
        for weight in graph.initializer:
            weight.name = new.get(weight.name, weight.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]

    result = compare(tap(small), tap(write_model(tmp_path / "renamed.onnx", rename)))
    assert "backbone.conv1" in {layer.name for layer in result.layers}
    assert all(layer.relative_rms == 0 for layer in result.layers)


class FixedTap(Tap):
    """Tensors that are what they are."""

    def __init__(self, **tensors: Any) -> None:
        self.tensors = tensors
        self.sizes = {name: value.nbytes for name, value in tensors.items()}
        self.kinds = ("Conv",) * len(tensors)

    @contextlib.contextmanager
    def open(self, names: Sequence[str]) -> Iterator[Any]:
        yield lambda images: {name: self.tensors[name] for name in names}


def test_other_networks() -> None:
    one = np.zeros((1, 2, 4, 4), np.float32)
    a = FixedTap(input=one, stem=one)
    with pytest.raises(InputError, match=r"no layer in common \(the first are stem and conv1\)"):
        compare(a, FixedTap(input=one, conv1=one, conv2=one))
    with pytest.raises(InputError, match=r"stem is \[2, 4, 4\] in one trunk and \[2, 2, 2\] in the other"):
        compare(a, FixedTap(input=one, stem=one[..., :2, :2]))
    more = compare(a, FixedTap(input=one, stem=one, conv2=one))
    assert ([layer.name for layer in more.layers], more.unmatched) == ([INPUT, "stem"], 1)


def test_a_file_without_layers(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["images"], ["boxes"])
    shape = [1, 64, 64, 3]
    graph = onnx.helper.make_graph([node], "g", [value("images", 1, shape)], [value("boxes", 1, shape)])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {"yolact_deploy": Metadata(config=CONFIG, tail="heads").to_json()})
    onnx.save(model, str(tmp_path / "empty.onnx"))
    with pytest.raises(ArtifactError, match="no layers with weights"):
        tap(tmp_path / "empty.onnx")


def test_backends_that_tell_nothing(small: Path) -> None:
    with pytest.raises(BackendError, match=r"inner tensors of small\.onnx cannot be read"):
        open_tap(str(small), ScriptedBackend({}))


def test_trunk_ends_at_the_raw_heads() -> None:
    nodes = trunk_nodes(make_model().graph)
    outputs = {node.output for node in nodes}
    assert {"loc", "logits", "coeff", "proto"} <= outputs
    assert not {"boxes", "scores", "moves", "all_scores", "flip", "scaled"} & outputs


def test_meter() -> None:
    meter = ErrorMeter()
    meter.add(np.array([3, 4], np.float32), np.array([3, 4], np.float16))
    meter.add(np.array([0, 5], np.float32), np.array([0, 5.5], np.float32))
    error = meter.error("x")
    assert error.max_error == 0.5
    assert error.relative_rms == pytest.approx(math.sqrt(0.25 / 50))
    assert error.sqnr_db == pytest.approx(10 * math.log10(50 / 0.25))
    broken = ErrorMeter()
    broken.add(np.array([1, 2], np.float32), np.array([1, np.nan], np.float32))
    assert broken.error("x").relative_rms == math.inf
    assert broken.error("x").sqnr_db == -math.inf
    assert broken.error("x").to_json() == {"name": "x", "max_error": None, "relative_rms": None, "sqnr_db": None}
    assert TrunkComparison(1, 0.5, (broken.error("x"),), 0).first_over is not None
    zeros = ErrorMeter()
    zeros.add(np.zeros(2), np.ones(2))
    assert zeros.relative_rms == math.inf, "anything instead of nothing"
    assert sqnr_db(0) == math.inf


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8(small: Path, tmp_path: Path, runtime: str) -> None:
    """Through Q/DQ, each layer is found and has the error of 8 bits."""
    pytest.importorskip(runtime)
    model = make_model()
    pictures_of_it = sorted(write_blobs(tmp_path / "pictures").iterdir())
    quantize_trunk(model, calibrate(model, pictures_of_it, method="minmax"))
    metadata = dataclasses.replace(onnx_metadata(model, "small"), precision="int8")
    model.metadata_props[0].value = metadata.to_json()
    onnx.save(model, str(tmp_path / "int8.onnx"))
    reference, engine = tap(small, runtime), tap(tmp_path / "int8.onnx", runtime, precision="int8")
    assert list(engine.sizes) == list(reference.sizes)
    result = compare(reference, engine)
    assert result.unmatched == 0
    errors = {layer.name: layer.relative_rms for layer in result.layers}
    assert errors.pop(INPUT) < 1e-6
    assert all(1e-4 < error < 0.2 for error in errors.values()), errors

"""INT8 graphs: form for each target, numbers, layers that are kept, and calibrations that do not fit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few

from yolact_deploy.errors import ExportError
from yolact_deploy.vocabulary import QUANTIZATION_FORMS

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import small_net

from yolact_deploy.export.calibration import Calibration, calibrate
from yolact_deploy.export.quantization_noise import LIMIT_DB, quantization_noise
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.graph.onnx_graph import fit_trunk, onnx_metadata, read_onnx
from yolact_deploy.graph.trunk_graph import layer_names, trunk_nodes
from yolact_deploy.preprocess import read_image, resize_image
from yolact_deploy.samples import sample_images

NAME, SMALL = "small", 138
#: with heads of 256 channels, whose roundings average out
WIDE = "yolact_edge_mobilenetv2"
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in ("yolact_darknet53", "yolact_plus_resnet50")]
KEPT = ("proto_net.8", "prediction_layers.0.conf_layer", "backbone.layers.3.1")
Export = Callable[..., Path]
_calibrations: dict[Path, Calibration] = {}
_quantized: dict[Any, bytes] = {}
_heads: dict[Any, list[Any]] = {}


def calibrated(path: Path) -> Calibration:
    if path not in _calibrations:
        _calibrations[path] = calibrate(read_onnx(path), sample_images())
    return _calibrations[path]


def quantized(path: Path, target: str = "symmetric", **options: Any) -> Any:
    """Another copy of the same graph each time."""
    key = path, target, *((name, tuple(value)) for name, value in options.items())
    if key not in _quantized:
        model = read_onnx(path)
        quantize_trunk(model, calibrated(path), target=target, **options)
        onnx.checker.check_model(model, full_check=True)
        _quantized[key] = model.SerializeToString()
    return onnx.load_model_from_string(_quantized[key])


def heads(model: Any, size: int, count: int = 1) -> list[Any]:
    """Of the samples, in FP32 arithmetic with the rounding of the Q/DQ nodes."""
    copy = type(model)()
    copy.CopyFrom(model)
    fit_trunk(copy)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = np.stack([resize_image(read_image(path), size) for path in sample_images()[:count]])
    return list(session.run(None, {"images": images}))


def exact_heads(path: Path, size: int) -> list[Any]:
    if path not in _heads:
        _heads[path] = heads(read_onnx(path), size)
    return _heads[path]


def decibels(expected: Any, found: Any) -> float:
    signal, noise = (float(np.square(x.astype(np.float64)).sum()) for x in (expected, expected - found))
    return 10 * np.log10(signal / noise) if noise else np.inf


def arrays(model: Any) -> dict[str, Any]:
    return {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}


def producers(model: Any) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def convolutions(model: Any) -> dict[str, Any]:
    """The convolutions of the trunk by their names."""
    found = ((n.name, model.graph.node[n.index]) for n in trunk_nodes(model.graph))
    return {name: node for name, node in found if node.op_type == "Conv"}


# -- form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, *MORE])
def test_the_symmetric_form(export: Export, name: str) -> None:
    """What TensorRT parses: zero points of 0, biases in FP32, no Q between an operator and its activation."""
    path = export(name, SMALL)
    model = quantized(path)
    values, made_by = arrays(model), producers(model)
    ranges = calibrated(path).ranges
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[one] for one in node.input[1:])
            assert (scale.dtype, scale.shape, zero.dtype, zero.item()) == (np.float32, (), np.int8, 0)
            low, high = ranges[node.input[0]]
            assert scale == pytest.approx(max(-low, high) / 127, rel=1e-6)
    seen = 0
    for conv in convolutions(model).values():
        activation, weight = (made_by[one] for one in conv.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert made_by[activation.input[0]].op_type == "QuantizeLinear"
        integers, scales, zeros = (values[one] for one in weight.input)
        assert integers.dtype == np.int8
        assert scales.shape == integers.shape[:1]
        assert not zeros.any()
        assert int(np.abs(integers).reshape(len(integers), -1).max(1).min()) > 120, "each channel uses its range"
        assert values[conv.input[2]].dtype == np.float32
        seen += 1
    assert seen > 50
    for node in (model.graph.node[one.index] for one in trunk_nodes(model.graph)):
        if node.op_type in ("Relu", "Clip", "LeakyRelu"):
            assert made_by[node.input[0]].op_type != "DequantizeLinear", "it is fused with what is before it"
        if node.op_type in ("Add", "Resize", "MaxPool"):
            read = node.input if node.op_type == "Add" else node.input[:1]
            assert {made_by[one].op_type for one in read} == {"DequantizeLinear"}


@pytest.mark.parametrize("name", [NAME, *MORE])
def test_the_form_of_onnxruntime(export: Export, name: str) -> None:
    """uint8 around a zero point, biases in int32, and 8 bits out of each convolution."""
    path = export(name, SMALL)
    model = quantized(path, "onnxruntime")
    values, made_by = arrays(model), producers(model)
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for one in node.input:
            readers.setdefault(one, []).append(node)
    ranges = calibrated(path).ranges
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (values[one] for one in node.input[1:])
            assert zero.dtype == np.uint8
            low, high = ranges[node.input[0]]
            if made_by[node.input[0]].op_type not in ("Resize", "MaxPool"):
                assert scale == pytest.approx((high - low) / 255, rel=1e-6)
                assert zero == pytest.approx(-low / scale, abs=0.51)
    for conv in convolutions(model).values():
        assert [node.op_type for node in readers[conv.output[0]]] == ["QuantizeLinear"]
        bias = made_by[conv.input[2]]
        assert values[bias.input[0]].dtype == np.int32
        scales = [values[made_by[conv.input[slot]].input[1]] for slot in (0, 1)]
        np.testing.assert_allclose(values[bias.input[1]], scales[0] * scales[1], rtol=1e-6)


@pytest.mark.parametrize("target", few(QUANTIZATION_FORMS, 0))
@pytest.mark.parametrize("name", [WIDE, *MORE])
def test_numbers_are_those_of_fp32(export: Export, name: str, target: str) -> None:
    path = export(name, SMALL)
    expected = exact_heads(path, SMALL)
    found = heads(quantized(path, target), SMALL)
    # Random weights leave scores undecided, and softmax makes little differences of their logits large ones.
    for ours, reference, least in zip(found, expected, (12, 3, 8, 8), strict=True):
        assert least < decibels(reference, ours) < 60


@pytest.mark.parametrize("target", few(QUANTIZATION_FORMS, 0))
def test_the_rest_is_untouched(export: Export, target: str) -> None:
    """Names of layers, and what is around the trunk, node by node."""
    path = export(NAME, SMALL)
    before, after = read_onnx(path), quantized(path, target)
    removed = ("Clip", "Relu") if target == "onnxruntime" else ()
    names = [[n.name for n in trunk_nodes(m.graph) if n.computes and n.op_type not in removed] for m in (before, after)]
    assert names[0] == names[1]
    assert layer_names(trunk_nodes(before.graph)) == layer_names(trunk_nodes(after.graph))
    trunk = {n.index for n in trunk_nodes(before.graph)}
    own = {"QuantizeLinear", "DequantizeLinear", "Conv", *removed}
    around = [n for i, n in enumerate(before.graph.node) if i not in trunk and n.op_type not in own]
    kept = {n.output[0]: n for n in after.graph.node}
    for node in around:
        ours = kept[node.output[0]]
        assert (ours.name, ours.op_type, ours.attribute) == (node.name, node.op_type, node.attribute)
        if target == "symmetric":
            assert list(ours.input) == list(node.input)
    assert Counter(n.op_type for n in around)["FastNMS"] == 1
    assert after.metadata_props == before.metadata_props
    assert after.opset_import == before.opset_import


@pytest.mark.slow
@pytest.mark.parametrize("target", few(QUANTIZATION_FORMS, 0))
def test_dynamic_batches_and_heads(export: Export, target: str) -> None:
    """Each picture of a batch gives what it gives alone."""
    model = quantized(export(NAME, SMALL, batch=(1, 2, 4), tail="heads"), target)
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "coeff", "proto"]
    alone, together = heads(model, SMALL, 1), heads(model, SMALL, 3)
    for one, three in zip(alone, together, strict=True):
        assert three.shape[0] == 3
        assert decibels(one, three[:1]) > 30


# -- layers that are kept -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", few(QUANTIZATION_FORMS, 0))
def test_kept_layers(export: Export, target: str) -> None:
    """They have their weights and, in the symmetric form, what they read; the others are as they were."""
    path = export(NAME, SMALL)
    whole, kept = quantized(path, target), quantized(path, target, keep_fp32=KEPT)
    layers = layer_names(trunk_nodes(kept.graph))
    chosen = {layer for layer in layers if layer in KEPT or layer.startswith("backbone.layers.3.1.")}
    assert len(chosen) == 5
    made_by, before, exact = producers(kept), convolutions(whole), convolutions(read_onnx(path))
    values, all_values = arrays(kept), arrays(whole)
    for name, conv in convolutions(kept).items():
        if name.partition("#")[0] in chosen:
            assert list(conv.input[1:]) == list(exact[name].input[1:])
            if target == "symmetric":
                assert conv.input[0] == exact[name].input[0]
            continue
        assert list(conv.input[:2]) == list(before[name].input[:2])
        for slot in (0, 1):
            for one in made_by[conv.input[slot]].input[1:]:
                np.testing.assert_array_equal(values[one], all_values[one])
    read = {one for node in kept.graph.node for one in node.input}
    assert read >= values.keys(), "no constant is left over"
    reference = exact_heads(path, SMALL)
    assert decibels(reference[1], heads(kept, SMALL)[1]) > decibels(reference[1], heads(whole, SMALL)[1])


def test_all_but_one_layer_kept(export: Export) -> None:
    """What is quantized is next to nothing, and so is the error."""
    path = export(NAME, SMALL)
    layers = layer_names(trunk_nodes(read_onnx(path).graph))
    most = [layer for layer in layers if layer != "proto_net.10"]
    reference, found = exact_heads(path, SMALL), heads(quantized(path, keep_fp32=most), SMALL)
    assert [decibels(a, b) > 100 for a, b in zip(reference, found, strict=True)] == [True, True, True, False]
    assert decibels(reference[3], found[3]) > 25
    with pytest.raises(ExportError, match="no convolution is left to quantize"):
        quantize_trunk(read_onnx(path), calibrated(path), keep_fp32=layers)
    with pytest.raises(ExportError, match="no layer of this network is named 'proto'"):
        quantize_trunk(read_onnx(path), calibrated(path), keep_fp32=["proto"])


# -- calibrations that do not fit -----------------------------------------------------------------------------------


def scaled(found: Calibration, factor: float, names: Any = None) -> Calibration:
    chosen = found.ranges if names is None else names
    changed = {n: (factor * found.ranges[n][0], factor * found.ranges[n][1]) for n in chosen}
    return replace(found, ranges={**found.ranges, **changed})


@pytest.mark.parametrize("target", ["symmetric", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_noise_tells_good_ranges_from_bad_ones(export: Export, target: str) -> None:
    """Of one tensor, too: everything else is as it was."""
    path = export(NAME, SMALL)
    exact = read_onnx(path)

    def worst(calibration: Calibration) -> Any:
        model = read_onnx(path)
        quantize_trunk(model, calibration, target=target)
        return quantization_noise(exact, model, sample_images()[:1])

    good = worst(calibrated(path))
    assert good[0].sqnr_db > LIMIT_DB + 4
    assert all(tensor.ok for tensor in good)
    assert [t.sqnr_db for t in good] == sorted(t.sqnr_db for t in good)
    assert not any(tensor.ok for tensor in worst(scaled(calibrated(path), 100)))
    one = good[len(good) // 2].name
    for factor in (100, 0.01):
        found = worst(scaled(calibrated(path), factor, [one]))
        assert [tensor.name for tensor in found if not tensor.ok][:1] == [one]


def test_noise_is_measured_on_exact_values(export: Export) -> None:
    """Against NumPy, for the tensor that enters the network."""
    path = export(NAME, SMALL)
    model = quantized(path)
    noise = {t.name: t.sqnr_db for t in quantization_noise(read_onnx(path), model, sample_images())}
    config = onnx_metadata(model, "").config
    images = np.stack([resize_image(read_image(p), SMALL) for p in sample_images()]).astype(np.float64)
    values = (images - config.pixel_mean) / config.pixel_std
    scale = max(-calibrated(path).ranges["index_select"][0], calibrated(path).ranges["index_select"][1]) / 127
    error = np.clip(np.round(values / scale), -128, 127) * scale - values
    assert noise["index_select"] == pytest.approx(10 * np.log10(values.var() / np.mean(error**2)), abs=0.05)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ((0.0, 0.0), "proto_net.10 had only values from 0 to 0 in 3 pictures: that range cannot be quantized"),
        ((-np.inf, 1.0), "proto_net.10 had only values from -inf to 1 in"),
        ((1.0, 2.0), "proto_net.10 had only values from 1 to 2 in"),
        (None, "the calibration has no range for relu_12: it was made with another graph"),
    ],
)
def test_dead_ranges(export: Export, ends: tuple[float, float] | None, message: str) -> None:
    path = export(NAME, SMALL)
    ranges = dict(calibrated(path).ranges)
    exact = read_onnx(path)
    name = convolutions(exact)["proto_net.10"].input[0]
    if ends is None:
        del ranges[name]
    else:
        ranges[name] = ends
    with pytest.raises(ExportError) as caught:
        quantize_trunk(exact, replace(calibrated(path), ranges=ranges))
    assert message.replace("relu_12", name) in str(caught.value)
    if ends == (0.0, 0.0):
        quantize_trunk(exact, replace(calibrated(path), ranges=ranges), keep_fp32=["proto_net.10"])


def test_unknown_target(export: Export) -> None:
    with pytest.raises(ExportError, match="target: expected one of symmetric, onnxruntime, got 'tensorrt'"):
        quantize_trunk(read_onnx(export(NAME, SMALL)), calibrated(export(NAME, SMALL)), target="tensorrt")


SAME = """
import hashlib, sys
from pathlib import Path
from yolact_deploy.export.calibration import calibrate
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.graph.onnx_graph import read_onnx
from yolact_deploy.samples import sample_images
ranges = calibrate(read_onnx(sys.argv[1]), sample_images()[:1])
for target in ("symmetric", "onnxruntime"):
    model = read_onnx(sys.argv[1])
    quantize_trunk(model, ranges, target=target, keep_fp32=["proto_net.0"])
    print(hashlib.sha256(model.SerializeToString()).hexdigest())
"""


def test_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    path = small_net.write_model(tmp_path / "m.onnx")
    ranges, ours = calibrate(read_onnx(path), sample_images()[:1]), []
    for target in QUANTIZATION_FORMS:
        model = read_onnx(path)
        quantize_trunk(model, ranges, target=target, keep_fp32=["proto_net.0"])
        ours.append(hashlib.sha256(model.SerializeToString()).hexdigest())
    other = subprocess.run(
        [sys.executable, "-c", SAME, str(path)],
        env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert other.stdout.split() == ours

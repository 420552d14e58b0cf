"""INT8 with the rest of the trunk in FP16: the graph, its numbers, kept layers, and what CPU runtimes make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.errors import ConfigError, ExportError
from yolact_deploy.preprocess import read_image, resize_image
from yolact_deploy.samples import sample_images

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import tiny_int8
from few import few

from yolact_deploy.export.calibration import Calibration, calibrate
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.export.search.changes import int8
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.half_precision import widen
from yolact_deploy.graph.onnx_graph import fit_trunk, onnx_metadata, read_onnx
from yolact_deploy.graph.trunk_graph import trunk_nodes

NAME, SMALL = "small", 138
KEPT = ("proto_net.8", "prediction_layers.0.conf_layer", "backbone.layers.3.1")
HALF, SINGLE, BYTE = 10, 1, 3
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def calibration(export: Export) -> Calibration:
    return calibrate(read_onnx(export(NAME, SMALL)), sample_images())


def lowered(path: Path, calibration: Calibration, kept: tuple[str, ...] = ()) -> Any:
    model = read_onnx(path)
    quantize_trunk(model, calibration, keep_fp32=kept)
    lower_trunk(model, kept)
    onnx.checker.check_model(model, full_check=True)
    return model


def types_of(model: Any) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    typed = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in typed} | {c.name: c.data_type for c in graph.initializer}


@pytest.mark.parametrize("kept", few([(), KEPT], 1), ids=["all", "kept"])
def test_every_type(export: Export, calibration: Calibration, kept: tuple[str, ...]) -> None:
    """Each convolution reads 8 bits through nothing but DQ, in FP16; the kept ones read FP32 as it was."""
    model = lowered(export(NAME, SMALL), calibration, kept)
    types = types_of(model)
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert (types[node.input[0]], types[node.input[1]], types[node.output[0]]) == (HALF, HALF, BYTE)
        if node.op_type == "DequantizeLinear":
            assert (types[node.input[0]], types[node.input[1]], types[node.output[0]]) == (BYTE, HALF, HALF)
    seen = {True: 0, False: 0}
    for trunk_node in trunk_nodes(model.graph):
        node = model.graph.node[trunk_node.index]
        if node.op_type != "Conv":
            continue
        stays = trunk_node.layer.startswith(KEPT) and bool(kept)
        seen[stays] += 1
        assert [types[name] for name in node.input] == [SINGLE if stays else HALF] * len(node.input)
        reads = [producers[name].op_type for name in node.input[:2] if name in producers]
        assert ("DequantizeLinear" in reads) != stays
        assert stays or reads == ["DequantizeLinear"] * 2
    assert seen[False] > 40
    assert (seen[True] > 5) == bool(kept)
    assert {types[output.name] for output in model.graph.output} <= {HALF, SINGLE, 6}


def heads(model: Any) -> list[Any]:
    """Of a sample, with the roundings of the file and nothing fused."""
    copy = type(model)()
    copy.CopyFrom(model)
    fit_trunk(copy)
    widen(copy, "fp16", rounding=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = resize_image(read_image(sample_images()[0]), SMALL)[None]
    return list(session.run(None, {"images": images}))


@pytest.mark.slow
def test_numbers(export: Export, calibration: Calibration) -> None:
    """FP16 between the quantized tensors changes far less than INT8 itself; the search tries the same graph."""
    path = export(NAME, SMALL)
    exact = read_onnx(path)
    bytes_only, tried = read_onnx(path), read_onnx(path)
    quantize_trunk(bytes_only, calibration)
    int8(calibration, unsigned=False, rest="fp16")(tried, ())
    found = lowered(path, calibration)
    for wanted, coarse, mixed, trial in zip(heads(exact), heads(bytes_only), heads(found), heads(tried), strict=True):
        spread = wanted.std()
        assert np.sqrt(np.mean((mixed - wanted) ** 2)) < 1.25 * np.sqrt(np.mean((coarse - wanted) ** 2)) + 1e-3 * spread
        assert np.sqrt(np.mean((trial - mixed) ** 2)) < 0.5 * np.sqrt(np.mean((coarse - wanted) ** 2)) + 1e-3 * spread


def test_scales_that_fp16_barely_holds() -> None:
    """Weights are quantized again with the rounded scale; without that, channels would be off by up to a half."""
    model = tiny_int8.network()
    constants = {c.name: c for c in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith(".weight"))
    scales = np.geomspace(1e-9, 1e-3, constants[node.input[1]].dims[0]).astype(np.float32)
    constants[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(scales, node.input[1]))
    integers = onnx.numpy_helper.to_array(constants[node.input[0]]).astype(np.float64)
    wanted = integers * scales[:, None, None, None]
    name = node.input[0]
    lower_trunk(model, ())
    after = {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
    (again,) = (n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == name)
    rounded = after[again.input[1]]
    assert rounded.dtype == np.float16
    assert (rounded > 0).all()
    found = after[name].astype(np.float64) * rounded.astype(np.float64)[:, None, None, None]
    step = np.maximum(rounded.astype(np.float64), scales)[:, None, None, None]
    # half a step, and what the largest integers lose where the scale is rounded down
    assert (np.abs(found - wanted) <= 0.5 * step + np.abs(wanted) * 0.03).all()


def test_a_scale_that_fp16_cannot_hold() -> None:
    model = tiny_int8.network()
    constants = {c.name: c for c in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] != "images")
    constants[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(np.array(1e-9, np.float32), node.input[1]))
    with pytest.raises(ExportError, match=r"of 1e-09 is none in fp16: keep the layers"):
        lower_trunk(model, ())


@pytest.mark.slow
def test_cpu_runtimes(export: Export, calibration: Calibration, tmp_path: Path) -> None:
    """In ONNX Runtime and OpenVINO the file is about as close to FP32 as with all of its roundings one by one."""
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    path = export(NAME, SMALL)
    model = lowered(path, calibration)
    how = {"target": "symmetric", "method": "percentile", "images": 3, "images_sha256": "", "rest": "fp16"}
    metadata = dataclasses.replace(onnx_metadata(model, path), precision="int8", quantization=how)
    assert metadata.half == "fp16"
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = metadata.to_json()
    target = tmp_path / "m.onnx"
    onnx.save(model, str(target))
    images = resize_image(read_image(sample_images()[0]), SMALL)[None]
    exact, own = heads(read_onnx(path)), heads(model)
    backends: list[Any] = [OnnxRuntimeBackend(target, tail="host")]
    try:
        from yolact_deploy.runtime.openvino import OpenVinoBackend

        backends.append(OpenVinoBackend(target, tail="host"))
    except Exception as error:
        assert "openvino" in str(error)  # noqa: PT017
    for backend in backends:
        assert backend.precision == "int8"
        for ours, wanted, rounded in zip(backend.run(images), exact, own, strict=True):
            off, usual = (np.sqrt(np.mean((found - wanted) ** 2)) for found in (ours, rounded))
            assert off < 1.4 * usual, backend.name
        backend.close()


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ExportError, match="rest=fp16 requires precision int8"):
        ExportSpec(precision="fp32", rest="fp16")
    with pytest.raises(ExportError, match="--int8 --fp16 is for GPUs"):
        ExportSpec(precision="int8", rest="fp16", calibration=sample_images(), target="onnxruntime")
    with pytest.raises(ExportError, match="rest: expected one of fp32, fp16"):
        ExportSpec(precision="int8", rest="bf16", calibration=sample_images())
    spec = ExportSpec(precision="int8", rest="fp16", calibration=sample_images(), overflow_check=False)
    from yolact_deploy.config import get_config

    with pytest.raises(ConfigError, match="quantization: rest: expected fp32 or fp16"):
        dataclasses.replace(
            spec.metadata(get_config("yolact_base")), quantization={"target": "symmetric", "rest": "fp8"}
        )

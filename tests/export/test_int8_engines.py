"""INT8 files in TensorRT for RTX: real engines, their sizes, and the form that TensorRT does not take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.artifact import METADATA_KEY
from yolact_deploy.engine_file import read_engine_header, read_engine_metadata
from yolact_deploy.errors import ExportError
from yolact_deploy.samples import sample_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from exports import needs_rtx

from yolact_deploy.export.calibration import Calibration, calibrate
from yolact_deploy.export.engine import BuildOptions, build_engine
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.quantize import quantize_trunk
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx

Export = Callable[..., Path]
NAME, SMALL = "yolact_edge_mobilenetv2", 138
BATCHES = {"static": (1, 1, 1), "dynamic": (1, 2, 4)}
#: an open batch of FP16 is built in test_tensorrt_build.py
PARAMETERS = ["static", pytest.param("dynamic", marks=pytest.mark.slow)]
NO_CACHE = BuildOptions(cache=False)
_calibrations: dict[Path, Calibration] = {}
_sizes: dict[Path, int] = {}


def quantized(
    source: Path, target: Path, *, form: str = "symmetric", keep_fp32: tuple[str, ...] = (), rest: str = "fp32"
) -> Path:
    """The INT8 file of one in FP32, with ranges from the sample pictures."""
    model = read_onnx(source)
    if source not in _calibrations:
        _calibrations[source] = calibrate(model, sample_images())
    found = _calibrations[source]
    quantize_trunk(model, found, target=form, keep_fp32=keep_fp32)
    how = {"target": form, "method": found.method, "images": found.images, "images_sha256": found.images_sha256}
    if rest != "fp32":
        lower_trunk(model, keep_fp32, precision=rest)
        how["rest"] = rest
    metadata = dataclasses.replace(
        onnx_metadata(model, source), precision="int8", quantization=how, keep_fp32=tuple(keep_fp32)
    )
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = metadata.to_json()
    onnx.save(model, str(target))
    return target


def check_pair(single: Path, int8: Path, folder: Path) -> tuple[int, int]:
    """Bytes of both engines; that of the INT8 file says what it is."""
    sizes = []
    for source in (single, int8):
        if source in _sizes:
            sizes.append(_sizes[source])
            continue
        target = folder / f"{source.stem}.trt"
        report = build_engine(source, target, flavour="rtx", options=NO_CACHE)
        assert read_engine_header(target).size == report.bytes
        found, expected = read_engine_metadata(target), onnx_metadata(read_onnx(source), source)
        assert (found.precision, found.quantization) == (expected.precision, expected.quantization)
        assert (found.batch, found.keep_fp32) == (expected.batch, expected.keep_fp32)
        sizes.append(report.bytes)
        target.unlink()
        if source == single:
            _sizes[source] = report.bytes
    return sizes[0], sizes[1]


@needs_rtx
@pytest.mark.parametrize("batch", PARAMETERS)
def test_small_engines(export: Export, tmp_path: Path, batch: str) -> None:
    single = export(NAME, SMALL, batch=BATCHES[batch])
    fp32, int8 = check_pair(single, quantized(single, tmp_path / "int8.onnx"), tmp_path)
    assert int8 < 0.6 * fp32  # TensorRT repeats the weights of the heads for each level, a large part of them


@needs_rtx
@pytest.mark.slow
def test_layers_in_fp32_beside_int8(export: Export, tmp_path: Path) -> None:
    """The network is strongly typed: where FP32 meets INT8, the Q/DQ nodes say how."""
    single = export(NAME, SMALL)
    kept = ("proto_net.10", "fpn.lat_layers.1", "backbone.layers.3")
    some = quantized(single, tmp_path / "some.onnx", keep_fp32=kept)
    fp32, mixed = check_pair(single, some, tmp_path)
    assert mixed < 0.6 * fp32


@needs_rtx
@pytest.mark.parametrize(
    "kept",
    [pytest.param((), marks=pytest.mark.slow), ("proto_net.10", "backbone.layers.3")],
    ids=["all", "kept"],
)
@pytest.mark.parametrize("batch", PARAMETERS)
@pytest.mark.slow
def test_fp16_beside_int8(export: Export, tmp_path: Path, batch: str, kept: tuple[str, ...]) -> None:
    single = export(NAME, SMALL, batch=BATCHES[batch])
    half = quantized(single, tmp_path / "half.onnx", rest="fp16", keep_fp32=kept)
    fp32, mixed = check_pair(single, half, tmp_path)
    assert mixed < 0.6 * fp32


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_resnet50_in_full(export: Export, tmp_path: Path, batch: str) -> None:
    single = export("yolact_resnet50", batch=BATCHES[batch])
    fp32, int8 = check_pair(single, quantized(single, tmp_path / "int8.onnx"), tmp_path)
    assert 120e6 < fp32 < 135e6
    assert int8 < 0.4 * fp32


@pytest.mark.slow
@needs_rtx
def test_the_form_of_onnx_runtime_is_refused(export: Export, tmp_path: Path) -> None:
    unsigned = quantized(export(NAME, SMALL), tmp_path / "unsigned.onnx", form="onnxruntime")
    cure = r"unsigned\.onnx is in the INT8 form of ONNX Runtime, .*: export it with --int8 --target tensorrt$"
    with pytest.raises(ExportError, match=cure):
        build_engine(unsigned, tmp_path / "m.trt", flavour="rtx", options=NO_CACHE)
    assert not (tmp_path / "m.trt").exists()


@needs_rtx
@pytest.mark.slow
def test_why_it_is_refused(export: Export, tmp_path: Path) -> None:
    """The parser takes no zero points: should a later TensorRT do, the refusal can go."""
    model: Any = read_onnx(quantized(export(NAME, SMALL), tmp_path / "int8.onnx"))
    values = onnx.numpy_helper
    changed = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(
                values.from_array(values.to_array(tensor) + values.to_array(tensor).dtype.type(3), tensor.name)
            )
    onnx.save(model, str(tmp_path / "shifted.onnx"))
    with pytest.raises(ExportError, match=r"cannot parse .*shifted\.onnx: node .*[Zz]ero point"):
        build_engine(tmp_path / "shifted.onnx", tmp_path / "m.trt", flavour="rtx", options=NO_CACHE)

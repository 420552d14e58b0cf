"""Layers that FP16 cannot hold: found, named and kept, so that the file gives what FP32 gives."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy import load, samples
from yolact_deploy.errors import BackendError, ExportError, InputError
from yolact_deploy.evaluation.agreement import Agreement, AgreementMeter
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.preprocess import read_image

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.overflow import LARGEST, LayerRange, RangeReport, measure_ranges
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.model.checkpoint import load_model

Export = Callable[..., Path]
NAME, SMALL = "small", 138
PICTURES = samples.sample_images()
#: takes values of a few tens past 65504, and as a power of two changes nothing in FP32
SCALE = 2.0**15
FP16 = ExportSpec(precision="fp16")


# Each scales what a layer puts out by SCALE, which the Relu behind it lets through, and what reads it back.


def _scale(layers: list[Any], readers: list[Any]) -> None:
    for layer in layers:
        layer.weight.data *= SCALE
        layer.bias.data *= SCALE
    for reader in readers:
        reader.weight.data /= SCALE


def spoil_protonet(model: Any) -> None:
    _scale([model.proto_net[0]], [model.proto_net[2]])


def spoil_head(model: Any) -> None:
    head = model.prediction_layers[0]
    _scale([head.upfeature[0]], [head.bbox_layer, head.conf_layer, head.mask_layer])


def spoil_bottleneck(model: Any) -> None:
    block = model.backbone.layers[1][0]
    _scale([block.bn1], [block.conv2])


PROTONET = {"proto_net.0", "proto_net.2"}
HEAD = {f"prediction_layers.0.{name}" for name in ("upfeature.0", "bbox_layer", "conf_layer", "mask_layer")}
BOTTLENECK = {"backbone.layers.1.0.conv1", "backbone.layers.1.0.conv2"}


def agreement(reference: Path, engine: Path, pictures: list[Any]) -> Agreement:
    meter = AgreementMeter()
    with load(reference, score_threshold=0) as one, load(engine, score_threshold=0) as other:
        for picture in pictures:
            meter.add(one(picture), other(picture))
    return meter.result()


# -- the trained model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model as FP32 ONNX."""
    path = tmp_path_factory.mktemp("trained") / "fp32.onnx"
    export_onnx(load_model(samples.DEMO_MODEL), path)
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Five pictures of what it was trained for, which it has not seen."""
    pytest.importorskip("torchvision")
    from yolact_deploy.datasets.shapes import write_shapes

    folder = tmp_path_factory.mktemp("shapes")
    for _ in write_shapes(folder, {"val": 5}):
        pass
    return [read_image(path) for path in sorted(folder.glob("images/*.png"))]


@pytest.mark.parametrize(
    ("spoil", "layers"), [(spoil_protonet, PROTONET), pytest.param(spoil_head, HEAD, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_trained_model_is_repaired(
    trained: Path, shapes: list[Any], tmp_path: Path, spoil: Callable[[Any], None], layers: set[str]
) -> None:
    """Without the check its outputs are not finite, which is an error; with it, it finds all that FP32 finds."""
    model = load_model(samples.DEMO_MODEL)
    spoil(model)
    broken = tmp_path / "broken.onnx"
    export_onnx(model, broken, FP16)
    with pytest.raises(BackendError, match=r"not finite: .* a layer overflows in fp16"):
        agreement(trained, broken, shapes)

    exported = export_model(model, tmp_path / "repaired.onnx", FP16)
    assert set(exported.metadata.keep_fp32) == layers
    assert set(exported.metadata.keep_reasons) == layers
    assert exported.measured.ranges is not None
    assert exported.measured.ranges.images == len(PICTURES)
    found = agreement(trained, tmp_path / "repaired.onnx", shapes)
    assert len(shapes) == found.images == 5
    assert found.reference_detections > 20
    assert found.matched_share_90 is not None
    assert found.matched_share_90 >= 0.99
    assert found.mean_mask_iou is not None
    assert found.mean_mask_iou >= 0.99
    assert found.extra <= 1


@pytest.mark.slow
def test_the_check_of_the_file_sees_overflows_too(tmp_path: Path) -> None:
    """Who leaves the search out gets no broken file either."""
    model = load_model(samples.DEMO_MODEL)
    spoil_head(model)
    spec = ExportSpec(precision="fp16", overflow_check=False)
    with pytest.raises(ExportError, match=r"disagrees with the eager model: boxes differ by nan .*; try --fp32"):
        export_model(model, tmp_path / "m.onnx", spec)
    assert list(tmp_path.iterdir()) == []


# -- the golden weights ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(export: Export) -> dict[str, Path]:
    return {precision: export(NAME, SMALL, precision=precision) for precision in ("fp32", "fp16")}


@pytest.mark.parametrize(
    ("name", "spoil", "layers", "batch"),
    [
        pytest.param("yolact_resnet50", spoil_bottleneck, BOTTLENECK, (1, 1, 1), marks=pytest.mark.slow),
        pytest.param(NAME, spoil_head, HEAD, (1, 1, 1), marks=pytest.mark.slow),
        pytest.param("yolact_resnet50", spoil_bottleneck, BOTTLENECK, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("yolact_resnet50", spoil_bottleneck, BOTTLENECK, (1, 2, 4), marks=pytest.mark.slow),
    ],
)
def test_golden_weights_are_repaired(
    make_model: Callable[..., Any],
    export: Export,
    tmp_path: Path,
    name: str,
    spoil: Callable[[Any], None],
    layers: set[str],
    batch: tuple[int, int, int],
) -> None:
    """Repaired, the file is as near to FP32 as FP16 is without an overflow."""
    model = copy.deepcopy(make_model(name, SMALL))
    spoil(model)
    pictures = [read_image(path) for path in PICTURES]
    spec = ExportSpec(precision="fp16", batch=batch)
    export_onnx(model, tmp_path / "broken.onnx", spec)
    with load(tmp_path / "broken.onnx", score_threshold=0) as broken:
        for picture in pictures:
            with pytest.raises(BackendError, match="not finite"):
                broken(picture)
    exported = export_model(model, tmp_path / "repaired.onnx", spec)
    assert set(exported.metadata.keep_fp32) == layers
    assert exported.measured.ranges is not None
    assert exported.measured.ranges.images == 3, "a batch that is filled up has no more pictures"
    assert exported.parity.failures == []
    plain = {precision: export(name, SMALL, precision=precision) for precision in ("fp32", "fp16")}
    wanted = agreement(plain["fp32"], plain["fp16"], pictures)
    found = agreement(plain["fp32"], tmp_path / "repaired.onnx", pictures)
    for result in (wanted, found):
        assert result.reference_detections > 50
        assert result.matched_share_90 is not None
        assert result.matched_share_90 >= 0.95
    assert found.mean_mask_iou == pytest.approx(wanted.mean_mask_iou, abs=0.01)


def ranges_of(path: Path, *, change: Callable[[Any], None] = lambda graph: None) -> RangeReport:
    model = read_onnx(path)
    change(model.graph)
    return measure_ranges(model, PICTURES[:1])


def test_nothing_to_find(plain: dict[str, Path]) -> None:
    report = ranges_of(plain["fp32"])
    assert (report.unsafe, report.near) == ({}, ())
    assert 1 < report.widest.largest < 1000
    assert all(1e-5 < layer.weight_error < 1e-3 for layer in report.layers), "half of 2^-11 and less"
    assert json.loads(json.dumps(report.to_json()))["layers"][0]["layer"] == "backbone.layers.0.0"


def test_values_are_those_of_the_tensors(plain: dict[str, Path]) -> None:
    """Against tensors that are read as a whole."""
    from yolact_deploy.evaluation.taps import OnnxTap
    from yolact_deploy.graph.tensor_probe import GraphInput

    tap = OnnxTap(plain["fp32"], runtime="onnxruntime")
    images = GraphInput.of(read_onnx(plain["fp32"])).read(PICTURES[:1])
    with tap.open(list(tap.sizes)) as read:
        largest = {k: float(np.abs(v).max()) for k, v in read(images).items()}
    report = ranges_of(plain["fp32"])
    first = report.layers[0]
    own = [v for k, v in largest.items() if k.partition("/")[0] == first.layer]
    assert first.largest == pytest.approx(max(*own, largest["input"]))
    assert first.faintest == pytest.approx(min(*own, largest["input"]))
    assert report.widest.largest == pytest.approx(max(largest.values()))


def scale_constants(factors: dict[str, float]) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        for constant in graph.initializer:
            factor = factors.get(constant.name.removeprefix("model."))
            if factor is not None:
                values = onnx.numpy_helper.to_array(constant) * np.float32(factor)
                constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))

    return change


@pytest.mark.parametrize(
    ("factors", "reasons"),
    [
        # Weights alone: what they make of the values stays small.
        ({"proto_net.10.weight": 1e-7}, {"proto_net.10": r"weights so small that FP16 changes them by \d+%"}),
        # Values that vanish, and what brings them back.
        (
            {"proto_net.0.weight": 1e-7, "proto_net.0.bias": 1e-7, "proto_net.2.weight": 1e7},
            {"proto_net.0": "weights so small", "proto_net.2": r"weights up to \d"},
        ),
    ],
)
def test_the_other_reasons(plain: dict[str, Path], factors: dict[str, float], reasons: dict[str, str]) -> None:
    import re

    found = ranges_of(plain["fp32"], change=scale_constants(factors)).unsafe
    assert set(found) == set(reasons)
    for layer, reason in reasons.items():
        assert re.match(reason, found[layer]), found


def test_the_limits() -> None:
    def layer(**values: float) -> LayerRange:
        return LayerRange("x", **{"largest": 1, "faintest": 1, "weight": 1, "weight_error": 2e-4, **values})

    assert layer(largest=LARGEST / 4 + 1).trouble == "values up to 1.64e+04"
    assert layer(largest=float("inf")).trouble == "values up to inf"
    assert layer(weight=65505).trouble == "weights up to 6.55e+04"
    assert layer(weight_error=0.5).trouble == "weights so small that FP16 changes them by 50%"
    assert layer(faintest=1e-6).trouble == "values of 1e-06 at most"
    near = layer(largest=LARGEST / 4)
    assert (near.trouble, near.near) == ("", True)
    assert not layer(largest=LARGEST / 16).near
    assert not layer(largest=LARGEST).near, "it is kept, which says more"


@pytest.mark.slow
def test_what_the_user_keeps_is_kept_too(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Layers that a module of the list holds already are not named again."""
    model = copy.deepcopy(make_model(NAME, SMALL))
    spoil_head(model)
    for named in (("proto_net.10", "prediction_layers.0.upfeature"), ("prediction_layers",)):
        spec = ExportSpec(precision="fp16", keep_fp32=named)
        metadata = export_model(model, tmp_path / "m.onnx", spec, check_images=PICTURES[:1]).metadata
        more = HEAD - {"prediction_layers.0.upfeature.0"} if named[1:] else set()
        assert metadata.keep_fp32[: len(named)] == named
        assert set(metadata.keep_fp32[len(named) :]) == set(metadata.keep_reasons) == more
        assert onnx_metadata(read_onnx(tmp_path / "m.onnx"), "") == metadata


@pytest.mark.slow
def test_more_pictures(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """Those of the calibration are checked in addition to those of the comparison."""
    model = make_model(NAME, SMALL)
    spec = ExportSpec(precision="fp16", calibration=PICTURES[1:])
    exported = export_model(model, tmp_path / "m.onnx", spec, check_images=PICTURES[:1])
    assert exported.measured.ranges is not None
    assert (exported.measured.ranges.images, exported.parity.images) == (3, 1)
    spec = ExportSpec(precision="fp16", calibration=[Path("none.png")])
    with pytest.raises(InputError, match="of 1 calibration pictures, 1 cannot be read"):
        export_model(model, tmp_path / "n.onnx", spec, check_images=PICTURES[:1])
    assert not (tmp_path / "n.onnx").exists()


def test_no_pictures(plain: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="no pictures to check for FP16 overflow: give at least one"):
        measure_ranges(read_onnx(plain["fp32"]), [])


@pytest.mark.slow
def test_only_fp16_is_checked(make_model: Callable[..., Any], tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        spec = ExportSpec(precision=precision)
        exported = export_model(make_model(NAME, SMALL), tmp_path / "m.onnx", spec, check_images=PICTURES[:1])
        assert exported.measured.ranges is None


def test_infinite_in_fp32_too(plain: dict[str, Path]) -> None:
    change = scale_constants({"proto_net.0.weight": 1e30, "proto_net.2.weight": 1e30})
    with pytest.raises(ExportError, match=r"proto_net\.2 has values that are not finite in FP32: the checkpoint"):
        ranges_of(plain["fp32"], change=change)


def test_a_graph_without_layers() -> None:
    text = "<ir_version: 9, opset_import: ['' : 20]> g (float[1] images) => (float[1] y) { y = Relu (images) }"
    model = onnx.parser.parse_model(text.replace("'", '"'))
    with pytest.raises(ExportError, match="no layers with weights"):
        measure_ranges(model, PICTURES)

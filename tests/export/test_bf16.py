"""Files in BF16: what is in them, what they compute in every runtime here, and engines of them."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy import load
from yolact_deploy.engine_file import read_engine_metadata
from yolact_deploy.errors import ExportError
from yolact_deploy.evaluation.taps import OnnxTap
from yolact_deploy.evaluation.trunk_comparison import compare_trunks
from yolact_deploy.graph.half_precision import BF16_OPSET
from yolact_deploy.graph.onnx_graph import load_graph, onnx_metadata, read_onnx
from yolact_deploy.graph.tensor_probe import GraphInput
from yolact_deploy.runtime.openvino import shared_core
from yolact_deploy.samples import sample_images

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from exports import needs_rtx

from yolact_deploy.export import onnx as onnx_module
from yolact_deploy.export import pipeline
from yolact_deploy.export.engine import build_engine
from yolact_deploy.export.mixed_precision import lower_trunk
from yolact_deploy.export.pipeline import export_model
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.trunk_graph import layer_names, select_layers, trunk_nodes

Export = Callable[..., Path]
NAME, SMALL = "small", 138
KEPT = ("backbone", "fpn", "proto_net")
FLOAT, HALF, BF16 = 1, 10, 16
SPEC = ExportSpec(precision="bf16")
TAILS = [
    ("functions", (1, 1, 1)),
    pytest.param("functions", (1, 2, 4), marks=pytest.mark.slow),
    pytest.param("heads", (1, 2, 4), marks=pytest.mark.slow),
]


def has_bf16() -> bool:
    if importlib.util.find_spec("openvino") is None:
        return False
    return "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def decibels(expected: Any, found: Any) -> float:
    noise = float(np.square(expected.astype(np.float64) - found).sum())
    return 10 * np.log10(float(np.square(expected.astype(np.float64)).sum()) / noise) if noise else np.inf


@pytest.fixture(scope="module")
def images(export: Export) -> Any:
    return GraphInput.of(read_onnx(export(NAME, SMALL))).read(sample_images()[:1])


def heads(path: Path, images: Any, **options: Any) -> list[Any]:
    with load(path, **options) as model:
        return list(model.backend.run(images))


# -- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [(), KEPT])
@pytest.mark.parametrize(("tail", "batch"), TAILS)
def test_what_is_in_it(export: Export, keep: tuple[str, ...], tail: str, batch: tuple[int, int, int]) -> None:
    path = export(NAME, SMALL, precision="bf16", tail=tail, batch=batch, keep_fp32=keep)
    model = read_onnx(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == BF16_OPSET
    types = {constant.name: constant.data_type for constant in model.graph.initializer}
    nodes = trunk_nodes(model.graph)
    kept = select_layers(keep, layer_names(nodes)) if keep else set()
    seen = {FLOAT: 0, BF16: 0}
    for one in nodes:
        node = model.graph.node[one.index]
        if node.op_type == "Conv":
            assert {types[name] for name in node.input[1:]} == {FLOAT if one.layer in kept else BF16}, one.layer
            seen[types[node.input[1]]] += 1
    assert seen[BF16] > 5
    assert (seen[FLOAT] > 5) == bool(keep)
    outputs = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    assert outputs.get("masks", HALF) == HALF, "as in an FP16 file"
    assert {kind for name, kind in outputs.items() if name in ("boxes", "scores", "coeff", "proto")} == {FLOAT}
    metadata = onnx_metadata(model, path)
    assert (metadata.precision, metadata.keep_fp32) == ("bf16", keep)
    assert path.stat().st_size < 0.6 * export(NAME, SMALL, tail=tail, batch=batch).stat().st_size or keep


def test_names_of_layers_are_shared(export: Export) -> None:
    full, low = (
        [n.name for n in trunk_nodes(read_onnx(export(NAME, SMALL, precision=p)).graph) if n.computes]
        for p in ("fp32", "bf16")
    )
    assert full == low


# -- runtimes -------------------------------------------------------------------------------------------------------


def test_onnxruntime_computes_what_the_file_says(export: Export, images: Any) -> None:
    """The file with its rounding against the FP32 graph with emulated rounding, which is another way to the same."""
    found = heads(export(NAME, SMALL, precision="bf16"), images)
    model = read_onnx(export(NAME, SMALL))
    lower_trunk(model, precision="bf16", emulate=True)
    from yolact_deploy.graph.onnx_graph import cut_tail

    cut_tail(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exact = heads(export(NAME, SMALL), images)
    for reference, ours, emulated in zip(exact, found, session.run(None, {"images": images}), strict=True):
        assert decibels(reference, ours) == pytest.approx(decibels(reference, emulated), abs=1)
        assert decibels(reference, ours) > 15
        assert decibels(emulated, ours) > decibels(reference, ours) + 3, "the same roundings, for the most part"


def test_kept_layers_are_exact(export: Export, images: Any) -> None:
    """With everything kept on the way to the prototypes they are FP32's, and the rest is not."""
    exact = heads(export(NAME, SMALL), images)
    path = export(NAME, SMALL, precision="bf16", keep_fp32=KEPT)
    spellings: list[dict[str, str]] = [{}]
    if has_bf16():
        spellings.append({"backend": "openvino"})
    for options in spellings:
        _, scores, coeff, proto = heads(path, images, **options)
        assert decibels(exact[3], proto) > 90, options
        assert decibels(exact[1], scores) < 70, options
        assert decibels(exact[2], coeff) < 70, options


@pytest.mark.skipif(not has_bf16(), reason="no OpenVINO, or a CPU without BF16")
def test_openvino_takes_the_files_precision(export: Export, images: Any) -> None:
    path = export(NAME, SMALL, precision="bf16")
    exact, rounded = heads(export(NAME, SMALL), images), heads(path, images)
    for precision, name in ((None, "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
        with load(path, backend="openvino", precision=precision) as model:
            assert model.backend.precision == model.backend.describe()["precision"] == name
            found = list(model.backend.run(images))
        for reference, by_onnxruntime, ours in zip(exact, rounded, found, strict=True):
            expected = decibels(reference, by_onnxruntime)
            if name == "bf16":
                assert decibels(reference, ours) == pytest.approx(expected, abs=2)
            else:
                assert decibels(reference, ours) > expected + 1, "only the weights are rounded"
    with load(export(NAME, SMALL), backend="openvino") as model:
        assert model.backend.precision == "fp32"


@pytest.mark.skipif(not has_bf16(), reason="no OpenVINO, or a CPU without BF16")
def test_openvino_where_there_is_no_bf16(export: Export, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    real = openvino.Core.get_property

    def get_property(core: Any, *args: Any) -> Any:
        return ["FP32"] if args[-1] == "OPTIMIZATION_CAPABILITIES" else real(core, *args)

    monkeypatch.setattr(openvino.Core, "get_property", get_property)
    path = export(NAME, SMALL, precision="bf16")
    with load(path, backend="openvino") as model:
        assert model.backend.precision == "fp32"
        found = list(model.backend.run(images))
    session = ort.InferenceSession(load_graph(path, "host", half="fp32").data, providers=["CPUExecutionProvider"])
    for ours, expected in zip(found, session.run(None, {"images": images}), strict=True):
        assert decibels(expected, ours) > 90


def test_detections_and_both_tails(export: Export, make_model: Callable[..., Any]) -> None:
    from yolact_deploy.evaluation.agreement import AgreementMeter
    from yolact_deploy.preprocess import read_image

    path = export(NAME, SMALL, precision="bf16")
    meter = AgreementMeter(score_threshold=0.0)
    with load(path, tail="host", score_threshold=0) as host, load(path, tail="graph", score_threshold=0) as graph:
        for picture in map(read_image, sample_images()):
            meter.add(host(picture), graph(picture))
    result = meter.result()
    assert result.reference_detections > 100
    assert result.missed + result.extra <= 0.02 * result.reference_detections


@pytest.mark.parametrize(
    ("runtime", "precision"), [("onnxruntime", "fp32"), ("openvino", "bf16"), ("openvino", "fp32")]
)
def test_layer_by_layer(export: Export, images: Any, runtime: str, precision: str) -> None:
    """``compare --layers`` reads the tensors as they are stored, and those of kept layers as they are."""
    if runtime == "openvino" and not has_bf16():
        pytest.skip("no OpenVINO, or a CPU without BF16")
    full = OnnxTap(export(NAME, SMALL), runtime="onnxruntime")
    path = export(NAME, SMALL, precision="bf16", keep_fp32=KEPT)
    result = compare_trunks(full, OnnxTap(path, runtime=runtime, precision=precision), [(images, images)])
    found = {layer.name: layer.sqnr_db for layer in result.layers[1:]}
    kept = [value for name, value in found.items() if name.startswith(KEPT)]
    others = [value for name, value in found.items() if not name.startswith(KEPT)]
    assert min(kept) > 90
    assert 15 < min(others) <= max(others) < 80


# -- the check after the export -------------------------------------------------------------------------------------


def test_a_good_export(make_model: Callable[..., Any], tmp_path: Path) -> None:
    exported = export_model(make_model(NAME, SMALL), tmp_path / "m.onnx", SPEC, check_images=sample_images()[:1])
    parity = exported.parity
    assert parity.failures == []
    assert [tensor.limit for tensor in parity.traced] == [1e-4] * 4
    for tensor in parity.tensors:
        assert 1e-3 < tensor.relative_rms < 0.7 * tensor.limit
    assert [tensor["ok"] for tensor in parity.to_json()["traced"]] == [True] * 4


def test_a_wrong_graph_does_not_hide_behind_the_rounding(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part in a hundred in one layer, far below what BF16 is allowed."""
    trace = onnx_module._trace

    def perturbed(pipeline: Any, metadata: Any) -> Any:
        pipeline.model.proto_net[0].weight.data *= 1.01
        return trace(pipeline, metadata)

    monkeypatch.setattr(onnx_module, "_trace", perturbed)
    with pytest.raises(ExportError, match=r"proto of the graph in FP32 differ by .* \(relative RMS; at most 0\.0001\)"):
        export_model(make_model(NAME, SMALL), tmp_path / "m.onnx", SPEC, check_images=sample_images()[:1])
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.slow
def test_a_wrong_lowering_fails(
    make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph was right before it was lowered; what counts is the file."""

    def lower(model: Any, keep: Any, *, precision: str) -> None:
        lower_trunk(model, keep, precision=precision)
        for constant in model.graph.initializer:
            if constant.name.endswith("proto_net.8.weight"):
                array = onnx.numpy_helper.to_array(constant)
                constant.CopyFrom(onnx.numpy_helper.from_array(np.roll(array, 1, axis=1), constant.name))

    monkeypatch.setattr(pipeline, "lower_trunk", lower)
    with pytest.raises(ExportError, match=r"eager model: proto differ by .* \(relative RMS; at most 0\.3\)"):
        export_model(make_model(NAME, SMALL), tmp_path / "m.onnx", SPEC, check_images=sample_images()[:1])


@pytest.mark.slow
def test_it_has_the_range_of_fp32(make_model: Callable[..., Any], tmp_path: Path) -> None:
    """What overflows FP16 needs no care in BF16."""
    model = copy.deepcopy(make_model(NAME, SMALL))
    head = model.prediction_layers[0]
    head.upfeature[0].weight.data *= 2.0**40
    head.upfeature[0].bias.data *= 2.0**40
    for reader in (head.bbox_layer, head.conf_layer, head.mask_layer):
        reader.weight.data /= 2.0**40
    exported = export_model(model, tmp_path / "m.onnx", SPEC)
    assert exported.metadata.keep_fp32 == ()
    for tensor in exported.parity.tensors:
        assert tensor.relative_rms < 0.7 * tensor.limit


# -- engines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [(), KEPT])
@pytest.mark.parametrize(("tail", "batch"), TAILS)
@needs_rtx
@pytest.mark.slow  # tests/cli/test_export.py builds one
def test_engines(export: Export, tmp_path: Path, tail: str, batch: tuple[int, int, int], keep: tuple[str, ...]) -> None:
    source = export(NAME, SMALL, precision="bf16", tail=tail, batch=batch, keep_fp32=keep)
    report = build_engine(source, tmp_path / "m.trt", flavour="rtx")
    metadata = read_engine_metadata(tmp_path / "m.trt")
    assert (metadata.precision, metadata.tail, metadata.batch, metadata.keep_fp32) == ("bf16", tail, batch, keep)
    full = build_engine(export(NAME, SMALL, tail=tail, batch=batch), tmp_path / "full.trt", flavour="rtx")
    assert 0.4 * full.bytes < report.bytes < (1.1 if keep else 0.75) * full.bytes

"""Layers that stay in FP32: the graph, its numbers, and the option."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import ExportError, InputError

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from yolact_deploy.export.mixed_precision import lower_trunk, read_keep_list
from yolact_deploy.export.onnx import export_onnx
from yolact_deploy.export.spec import ExportSpec
from yolact_deploy.graph.half_precision import widen
from yolact_deploy.graph.onnx_graph import cut_tail, onnx_metadata, read_onnx
from yolact_deploy.graph.trunk_graph import layer_names, select_layers, trunk_nodes

NAME, SMALL = "small", 138
#: with heads of 256 channels, whose roundings average out
WIDE = "yolact_edge_mobilenetv2"
KEPT = ("proto_net", "prediction_layers.0.conf_layer", "backbone.layers.0.0")
FLOAT, HALF = 1, 10
Export = Callable[..., Path]


def images() -> Any:
    return np.random.default_rng(3).integers(0, 255, (1, SMALL, SMALL, 3)).astype(np.uint8)


def heads(model: Any, *, optimize: bool = True) -> list[Any]:
    if model.functions:
        cut_tail(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"images": images()}))


def decibels(expected: Any, found: Any) -> float:
    signal, noise = (float(np.square(x.astype(np.float64)).sum()) for x in (expected, expected - found))
    return 10 * np.log10(signal / noise) if noise else np.inf


def lowered(path: Path, keep: tuple[str, ...] = (), **options: Any) -> Any:
    model = read_onnx(path)
    lower_trunk(model, keep, **options)
    return model


@pytest.mark.parametrize(
    ("precision", "tail"),
    [
        ("fp16", "functions"),
        pytest.param("bf16", "heads", marks=pytest.mark.slow),
        pytest.param("fp16", "heads", marks=pytest.mark.slow),
        pytest.param("bf16", "functions", marks=pytest.mark.slow),
    ],
)
def test_lowered_as_pytorch_does_it(
    make_model: Callable[..., Any], export: Export, tmp_path: Path, tail: str, precision: str
) -> None:
    """Two ways to half precision, PyTorch's own and the one in the graph, are equally far from FP32."""
    import torch

    from yolact_deploy.model.fuse import fuse_batch_norm
    from yolact_deploy.runtime.torch.torch_network import HeadsModule

    model = read_onnx(export(WIDE, SMALL, precision=precision, tail=tail))
    onnx.checker.check_model(model, full_check=True)
    names = {constant.name for constant in model.graph.initializer}
    assert not [name for name in names if name.endswith("_low")], "weights have their parameters' names"
    widen(model, precision, rounding=True)
    reference = heads(read_onnx(export(WIDE, SMALL)))
    with torch.inference_mode():
        by_torch = HeadsModule(fuse_batch_norm(make_model(WIDE, SMALL)), precision=precision)(
            torch.from_numpy(images())
        )
    for expected, ours, torchs in zip(reference, heads(model), by_torch, strict=True):
        assert decibels(expected, ours) == pytest.approx(decibels(expected, torchs.float().numpy()), abs=4)


@pytest.mark.parametrize("batch", [(1, 1, 1), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_the_kept_layers_compute_in_fp32(export: Export, batch: tuple[int, int, int]) -> None:
    model = lowered(export(NAME, SMALL, batch=batch), KEPT)
    onnx.checker.check_model(model, full_check=True)
    types = {i.name: i.data_type for i in model.graph.initializer}
    kept = select_layers(KEPT, layer_names(trunk_nodes(model.graph)))
    assert len(kept) == 7
    seen = {HALF: 0, FLOAT: 0}
    for node in (model.graph.node[one.index] for one in trunk_nodes(model.graph)):
        if node.op_type == "Conv":
            layer = node.input[1].removeprefix("model.").partition(".weight")[0]
            assert {types[name] for name in node.input[1:]} == {FLOAT if layer in kept else HALF}, layer
            seen[types[node.input[1]]] += 1
    assert min(seen.values()) > 5
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) < 20, "only where the precision changes"
    reference = heads(read_onnx(export(NAME, SMALL)))
    assert all(30 < decibels(a, b) < 90 for a, b in zip(reference, heads(model)[:3], strict=False))


def test_values_stay_in_fp32_between_kept_layers(export: Export) -> None:
    """With everything kept on the way to the prototypes they are exact, and the rest is not."""
    reference = heads(read_onnx(export(NAME, SMALL)))
    _, scores, coeff, proto = heads(lowered(export(NAME, SMALL), ("backbone", "fpn", "proto_net")))
    assert decibels(reference[3], proto) > 100
    assert decibels(reference[1], scores) < 90
    assert decibels(reference[2], coeff) < 90


def test_all_layers_kept_is_the_fp32_export(export: Export) -> None:
    layers = layer_names(trunk_nodes(read_onnx(export(NAME, SMALL)).graph))
    model = lowered(export(NAME, SMALL), tuple(layers))
    assert model.SerializeToString() == read_onnx(export(NAME, SMALL)).SerializeToString()


def test_emulation_rounds_where_the_graph_does(export: Export) -> None:
    """As noisy as real half precision, whatever the runtime optimizes, and exact where all is kept."""
    reference = heads(read_onnx(export(NAME, SMALL)))
    half = heads(lowered(export(NAME, SMALL)), optimize=False)
    emulated = heads(lowered(export(NAME, SMALL), emulate=True))
    plain = heads(lowered(export(NAME, SMALL), emulate=True), optimize=False)
    for expected, real, ours, unoptimized in zip(reference, half, emulated, plain, strict=True):
        assert decibels(expected, ours) == pytest.approx(decibels(expected, real), abs=5)
        assert decibels(expected, ours) == pytest.approx(decibels(expected, unoptimized), abs=2)
    coarse = heads(lowered(export(NAME, SMALL), emulate=True, precision="bf16"))
    for expected, ours, bf16 in zip(reference, emulated, coarse, strict=True):
        assert decibels(expected, bf16) < decibels(expected, ours) - 10, "three bits less"


def test_names_of_layers(export: Export) -> None:
    layers = layer_names(trunk_nodes(read_onnx(export(NAME, SMALL)).graph))
    assert layers[0] == "backbone.layers.0.0"
    assert layers.count("prediction_layers.0.bbox_layer") == 1, "shared by five levels"
    assert select_layers(["proto_net.1", "fpn.lat_layers.0"], [*layers, "proto_net.1"]) == {
        "proto_net.1",
        "fpn.lat_layers.0",
    }
    assert select_layers(["proto_net"], layers) == {name for name in layers if name.startswith("proto_net.")}
    with pytest.raises(ExportError, match=r"'proto_net\.11': did you mean proto_net\.10"):
        select_layers(["proto_net.11"], layers)
    with pytest.raises(ExportError, match=r"'nothing': the first of its layers is backbone\.layers\.0\.0"):
        select_layers(["nothing"], layers)


def test_half_precision_shares_the_names(export: Export) -> None:
    full, half = (
        [n.name for n in trunk_nodes(read_onnx(export(NAME, SMALL, precision=p)).graph) if n.computes]
        for p in ("fp32", "fp16")
    )
    assert full == half


def test_weights_that_fp16_cannot_hold(export: Export) -> None:
    model = read_onnx(export(NAME, SMALL))
    for constant in model.graph.initializer:
        if constant.name == "model.proto_net.10.weight":
            values = onnx.numpy_helper.to_array(constant) * np.float32(1e8)
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    spoilt = type(model)()
    spoilt.CopyFrom(model)
    with pytest.raises(ExportError, match=r"model\.proto_net\.10\.weight has values that are not finite in fp16"):
        lower_trunk(spoilt)
    lower_trunk(model, ["proto_net.10"])


def test_export(make_model: Callable[..., Any], export: Export, tmp_path: Path) -> None:
    model = make_model(NAME, SMALL)
    metadata = export_onnx(model, tmp_path / "m.onnx", ExportSpec(precision="fp16", keep_fp32=KEPT))
    assert metadata.keep_fp32 == KEPT
    written = read_onnx(tmp_path / "m.onnx")
    assert onnx_metadata(written, "") == metadata
    assert written.graph.output[-1].type.tensor_type.elem_type == HALF, "masks, as in any FP16 file"
    for ours, wanted in zip(heads(written), heads(lowered(export(NAME, SMALL), KEPT)), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    with pytest.raises(ExportError, match="no layer of this network is named 'proto'"):
        export_onnx(model, tmp_path / "m.onnx", ExportSpec(precision="fp16", keep_fp32=("proto",)))


def test_a_checkpoint_and_its_export_have_the_same_layers(
    make_model: Callable[..., Any], export: Export, tmp_path: Path
) -> None:
    """PyTorch with folded batch normalization against the file, layer by layer."""
    from yolact_deploy.evaluation.taps import OnnxTap, TorchTap
    from yolact_deploy.evaluation.trunk_comparison import compare_trunks
    from yolact_deploy.model.checkpoint import save_checkpoint

    save_checkpoint(make_model(NAME, SMALL), tmp_path / "w.safetensors")
    eager = TorchTap(tmp_path / "w.safetensors")
    for precision, least, most in (("fp32", 90, 200), ("fp16", 30, 90)):
        file = OnnxTap(export(NAME, SMALL, precision=precision), runtime="onnxruntime", threads=1)
        result = compare_trunks(eager, file, [(images(), images())])
        layers = layer_names(trunk_nodes(read_onnx(export(NAME, SMALL)).graph))
        assert {layer.name.partition("#")[0] for layer in result.layers} == {"input", *layers}
        found = [layer.sqnr_db for layer in result.layers[1:]]
        assert least < min(found) <= max(found) < most


# -- the list -------------------------------------------------------------------------------------------------------


def test_lists(tmp_path: Path) -> None:
    assert read_keep_list("proto_net.10, fpn") == ("proto_net.10", "fpn")
    file = tmp_path / "keep.json"
    file.write_text(json.dumps({"keep_fp32": ["a", "b"], "model": "m.onnx"}))
    assert read_keep_list(str(file)) == ("a", "b")
    file.write_text('["a"]')
    assert read_keep_list(str(file)) == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"keep": []}', "expected a list of layers, or one as 'keep_fp32' in an object, got {\"keep\""),
        ('{"keep_fp32": "a"}', "expected a list of layers"),
        ("[1]", "expected a list of layers"),
        ("[", "is not valid JSON"),
        (None, "no such list of layers"),
    ],
)
def test_wrong_lists(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "keep.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError) as caught:
        read_keep_list(str(file))
    assert message in str(caught.value)
    with pytest.raises(InputError, match="separated by commas"):
        read_keep_list("a,,b")

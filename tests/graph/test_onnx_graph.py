"""Reading exported files, and fitting them to a CPU runtime: cut before FastNMS, or inlined."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError

onnx = pytest.importorskip("onnx")

import tiny_onnx
from onnx import TensorProto, helper

from yolact_deploy.export import functions
from yolact_deploy.graph.onnx_graph import (
    cut_tail,
    inline_functions,
    load_graph,
    onnx_metadata,
    read_onnx,
)
from yolact_deploy.runtime.predictor import Predictor

TAILS = ("host", "graph")
CONFIG = YolactConfig(image_size=64, num_classes=2, top_k=4, max_detections=3)


def make_model(tail: str = "functions") -> Any:
    """A file like an exported one, whose trunk is four Identity nodes; its inputs are the heads themselves."""
    value = helper.make_tensor_value_info
    heads = {"boxes": (5, 4), "scores": (5, 2), "coeff": (5, 3), "proto": (6, 6, 3)}
    inputs = [value(f"{name}_in", TensorProto.FLOAT, [1, *shape]) for name, shape in heads.items()]
    # Other names than the contract's, as the exporter gives them.
    trunk = [helper.make_node("Identity", [f"{name}_in"], [f"node_{name}"]) for name in heads]
    if tail == "heads":
        outputs = [value(f"node_{name}", TensorProto.FLOAT, [1, *shape]) for name, shape in heads.items()]
        graph = helper.make_graph(trunk, "heads", inputs, outputs)
        opsets, bodies = [helper.make_opsetid("", functions.OPSET)], []
    else:
        nms = helper.make_node(
            "FastNMS",
            ["node_boxes", "node_scores", "node_coeff"],
            ["num_detections", "boxes", "scores", "labels", "found_coeff"],
            domain="yolact",
            score_threshold=0.05,
            iou_threshold=0.5,
            top_k=4,
            max_detections=3,
            cross_class=0,
            second_threshold=-1.0,
        )
        masks = helper.make_node(
            "MaskAssembly", ["node_proto", "found_coeff", "boxes"], ["masks"], domain="yolact", padding=1.0
        )
        outputs = [
            value("num_detections", TensorProto.INT32, [1]),
            value("boxes", TensorProto.FLOAT, [1, 3, 4]),
            value("scores", TensorProto.FLOAT, [1, 3]),
            value("labels", TensorProto.INT32, [1, 3]),
            value("masks", TensorProto.FLOAT, [1, 3, 6, 6]),
        ]
        graph = helper.make_graph([*trunk, nms, masks], "whole", inputs, outputs)
        opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid("yolact", 1)]
        bodies = [functions.fast_nms_function(), functions.mask_assembly_function()]
    model = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
    helper.set_model_props(model, {"yolact_deploy": Metadata(config=CONFIG, tail=tail).to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def feed() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    boxes = np.array([[0, 0, 0.4, 0.4], [0.02, 0, 0.42, 0.4], [0.5, 0.5, 1, 1], [0, 0.6, 0.3, 1], [0, 0, 1, 1]])
    return {
        "boxes_in": boxes[None].astype(np.float32),
        "scores_in": rng.random((1, 5, 2), np.float32),
        "coeff_in": rng.standard_normal((1, 5, 3)).astype(np.float32),
        "proto_in": rng.random((1, 6, 6, 3), np.float32),
    }


def run(data: bytes) -> list[Any]:
    ort = pytest.importorskip("onnxruntime")
    return list(ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed()))


# -- cutting and inlining -------------------------------------------------------------------------------------------


def test_cut_tail() -> None:
    model = make_model()
    cut_tail(model)
    assert [output.name for output in model.graph.output] == ["node_boxes", "node_scores", "node_coeff", "node_proto"]
    assert {node.op_type for node in model.graph.node} == {"Identity"}
    assert not model.functions
    for found, given in zip(run(model.SerializeToString()), feed().values(), strict=True):
        np.testing.assert_array_equal(found, given)


def test_a_tail_without_inputs_is_refused() -> None:
    model = make_model()
    del next(node for node in model.graph.node if node.op_type == "MaskAssembly").input[:]
    with pytest.raises(ArtifactError, match="MaskAssembly has no inputs in the graph: export the file again"):
        cut_tail(model)


def test_cut_tail_drops_what_only_the_tail_needs() -> None:
    model = make_model()
    for name in ("first", "second"):
        model.graph.node.insert(0, helper.make_node("Identity", ["boxes_in"], [f"unused_{name}"]))
    cut_tail(model)
    assert len(model.graph.node) == 4


@pytest.mark.parametrize("op", ["FastNMS", "MaskAssembly"])
@pytest.mark.parametrize("count", [0, 2])
def test_cut_tail_wants_one_of_each(op: str, count: int) -> None:
    model = make_model()
    node = next(node for node in model.graph.node if node.op_type == op)
    if count == 0:
        model.graph.node.remove(node)
    else:
        model.graph.node.append(node)
    with pytest.raises(ArtifactError, match=rf"expected one yolact::{op} node in the graph, got {count}: export"):
        cut_tail(model)


def test_a_node_of_another_domain_is_not_ours() -> None:
    model = make_model()
    model.graph.node[-2].domain = "elsewhere"
    with pytest.raises(ArtifactError, match="got 0"):
        cut_tail(model)


def test_inline_functions() -> None:
    model = make_model()
    whole = inline_functions(model)
    assert not whole.functions
    assert not [node for node in whole.graph.node if node.domain]
    assert [output.name for output in whole.graph.output] == [output.name for output in model.graph.output]
    for found, wanted in zip(run(whole.SerializeToString()), run(model.SerializeToString()), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    plain = make_model("heads")
    assert inline_functions(plain) is plain


@pytest.mark.parametrize(
    ("tail", "wanted", "on_host", "outputs"),
    [
        ("functions", "auto", True, 4),
        ("functions", "host", True, 4),
        ("functions", "graph", False, 5),
        ("heads", "auto", True, 4),
        ("heads", "graph", True, 4),
    ],
)
def test_load_graph(tmp_path: Path, tail: str, wanted: str, on_host: bool, outputs: int) -> None:
    onnx.save(make_model(tail), str(tmp_path / "m.onnx"))
    before = (tmp_path / "m.onnx").read_bytes()
    loaded = load_graph(tmp_path / "m.onnx", wanted)
    assert loaded.on_host is on_host
    assert loaded.mask_iou is None
    assert loaded.metadata == Metadata(config=CONFIG, tail=tail)
    assert len(run(loaded.data)) == outputs
    assert (tmp_path / "m.onnx").read_bytes() == before


# -- mask scores ----------------------------------------------------------------------------------------------------


def test_mask_scores_on_the_host_are_those_of_the_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend

    path = tiny_onnx.write_model(tmp_path / "m.onnx", mask_iou=True)
    assert load_graph(path, "host").mask_iou is not None
    assert load_graph(path, "graph").mask_iou is None
    image = np.full((64, 64, 3), 200, np.uint8)
    host, graph = (Predictor(OnnxRuntimeBackend(path, tail=tail), score_threshold=0)(image) for tail in TAILS)
    assert len(graph) > 0
    assert host.labels.tolist() == graph.labels.tolist()
    assert host.mask_scores is not None
    assert graph.mask_scores is not None
    np.testing.assert_allclose(host.mask_scores, graph.mask_scores, rtol=1e-4)
    assert len(set(graph.mask_scores / graph.scores)) > 1, "the IoUs differ"


def test_a_mask_iou_network_without_all_its_layers(tmp_path: Path) -> None:
    model = tiny_onnx.make_model(mask_iou=True)
    (last,) = (node for node in model.graph.node if "model.maskiou_net.maskiou_net.10.weight" in node.input)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == last.input[1])
    last.input[1] = weight.name = "elsewhere"
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match=r"has no maskiou_net\.maskiou_net\.10\.weight.*: export it again"):
        load_graph(tmp_path / "m.onnx", "host")


# -- reading --------------------------------------------------------------------------------------------------------


def cut_short(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "is not an ONNX file, or a truncated one: make it with: yolact-deploy export --weights WEIGHTS"),
        (lambda data: b"", "is not an ONNX file, or an empty one"),
        (lambda data: b"# a text file\n" * 30, "is not an ONNX file"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX file"),
    ],
)
def test_damaged_files(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(damage(make_model().SerializeToString()))
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(path))} {message}"):
        read_onnx(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such ONNX file: "):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match=r"cannot read .*: Is a directory"):
        read_onnx(tmp_path)


def test_metadata() -> None:
    model = make_model()
    assert onnx_metadata(model, "m.onnx").config == CONFIG
    model.metadata_props[0].key = "someone_else"
    with pytest.raises(
        ArtifactError, match=r"^m\.onnx was not exported by yolact-deploy \(no 'yolact_deploy' metadata"
    ):
        onnx_metadata(model, "m.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("tail", TAILS)
def test_weights_that_are_not_finite_are_refused(tail: str, dtype: Any, value: float, tmp_path: Path) -> None:
    model = make_model()
    good, bad = np.ones(20, dtype), np.ones(20, dtype)
    bad[7] = value
    model.graph.initializer.append(onnx.numpy_helper.from_array(good, "conv1.weight"))
    onnx.save(model, tmp_path / "m.onnx")
    load_graph(tmp_path / "m.onnx", tail)
    model.graph.initializer.append(onnx.numpy_helper.from_array(bad, "conv2.weight"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"m\.onnx: conv2\.weight has values that are not finite"):
        load_graph(tmp_path / "m.onnx", tail)

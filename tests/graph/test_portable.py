"""Inlined files compute the same, in plain operators, and our nodes can be put back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from tiny_onnx import make_model

from yolact_deploy import load
from yolact_deploy.artifact import TAIL_KEY
from yolact_deploy.errors import ArtifactError
from yolact_deploy.export.contract import describe
from yolact_deploy.graph.inlined_tail import restore_tail
from yolact_deploy.graph.onnx_graph import onnx_metadata
from yolact_deploy.graph.portable import make_portable, use_tensors

NAMES = ["num_detections", "boxes", "scores", "labels", "masks"]


def described(**options: Any) -> Any:
    model = make_model(**options)
    describe(model, onnx_metadata(model, "tiny"))
    return model


def outputs(model: Any, batch: int) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(3).integers(0, 256, (batch, 64, 64, 3), np.uint8)
    return list(session.run(NAMES, {"images": images}))


@pytest.mark.parametrize("batch", [(1, 1, 1), (1, 2, 4)])
def test_a_portable_file_computes_the_same_in_plain_operators(batch: tuple[int, int, int]) -> None:
    model = described(batch=batch)
    portable = make_portable(model)
    onnx.checker.check_model(portable, full_check=True)
    assert not portable.functions
    assert {node.domain for node in portable.graph.node} == {""}
    assert [entry.domain for entry in portable.opset_import] == [""]
    assert portable.metadata_props == model.metadata_props
    constants = [node for node in portable.graph.node if node.op_type == "Constant"]
    assert len(constants) > 10
    assert {attribute.name for node in constants for attribute in node.attribute} == {"value"}
    assert not any(node.attribute for node in portable.graph.node if node.op_type == "Shape")
    for count in {batch[0], batch[2]}:
        for expected, actual in zip(outputs(model, count), outputs(portable, count), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_the_original_stays_as_it_is() -> None:
    model = described()
    before = model.SerializeToString()
    make_portable(model)
    assert model.SerializeToString() == before
    heads = described(tail="heads")
    before = heads.SerializeToString()
    make_portable(heads)
    assert heads.SerializeToString() == before


def test_constants_keep_values_types_and_shapes() -> None:
    make, attributes = onnx.helper.make_node, {"value_float": 0.1, "value_ints": [1, 2], "value_int": 7}
    nodes = [make("Constant", [], [name], **{name: value}) for name, value in attributes.items()]
    use_tensors(nodes)
    arrays = {node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t) for node in nodes}
    assert arrays["value_float"] == np.float32(0.1)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "value_float": ("float32", ()),
        "value_ints": ("int64", (2,)),
        "value_int": ("int64", ()),
    }


@pytest.mark.parametrize("mask_iou", [False, True])
def test_nodes_are_restored(mask_iou: bool, tmp_path: Path) -> None:
    model = described(batch=(1, 1, 1), mask_iou=mask_iou)
    portable = make_portable(model)
    restored = make_portable(model)
    assert restore_tail(restored, onnx_metadata(model, ""))
    ours = [node for node in restored.graph.node if node.domain]
    originals = [node for node in model.graph.node if node.domain]
    for actual, expected in zip(ours, originals, strict=True):
        assert (actual.op_type, actual.input, actual.output) == (expected.op_type, expected.input, expected.output)
        assert {a.name: onnx.helper.get_attribute_value(a) for a in actual.attribute} == {
            a.name: onnx.helper.get_attribute_value(a) for a in expected.attribute
        }
    assert len(restored.graph.node) == len(model.graph.node)
    onnx.save(portable, str(tmp_path / "inlined.onnx"))
    onnx.save(model, str(tmp_path / "m.onnx"))
    picture = np.random.default_rng(4).integers(0, 256, (50, 60, 3), np.uint8)
    for tail, used in (("auto", "host"), ("host", "host"), ("graph", "graph")):
        with (
            load(tmp_path / "inlined.onnx", tail=tail, score_threshold=0) as inlined,
            load(tmp_path / "m.onnx", tail=tail, score_threshold=0) as plain,
        ):
            assert inlined.backend.tail.name == used
            actual, expected = inlined(picture), plain(picture)
            assert len(actual) > 0
            np.testing.assert_array_equal(actual.boxes, expected.boxes)
            np.testing.assert_array_equal(actual.masks, expected.masks)


def renamed(model: Any) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "node_scores" else name for name in names]


def unnamed(model: Any) -> None:
    model.metadata_props.remove(next(entry for entry in model.metadata_props if entry.key == TAIL_KEY))


def wrong(model: Any) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == TAIL_KEY)
    entry.value = json.dumps({"FastNMS": [["a"], 5], "MaskAssembly": None})


@pytest.mark.parametrize("change", [renamed, unnamed, wrong])
def test_what_cannot_be_restored_is_said(change: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    portable = make_portable(described(batch=(1, 1, 1)))
    change(portable)
    before = portable.graph.SerializeToString()
    assert not restore_tail(portable, onnx_metadata(portable, ""))
    assert portable.graph.SerializeToString() == before
    path = tmp_path / "changed.onnx"
    onnx.save(portable, str(path))
    with pytest.raises(ArtifactError, match=r"changed\.onnx: another tool has inlined .* load it with tail=graph"):
        load(path, tail="host")
    with load(path, score_threshold=0) as model:
        assert model.backend.tail.name == "graph"
    assert "they run in the graph, with NMS as exported" in caplog.text


def test_texts_and_class_names() -> None:
    model = described()
    metadata = onnx_metadata(model, "")
    assert "Resize pictures to 64 x 64" in model.graph.doc_string
    assert "blue, green, red" in model.graph.input[0].doc_string
    assert all(value.doc_string for value in model.graph.output)
    names = {entry.key: entry.value for entry in model.metadata_props}["names"]
    assert names == repr(dict(enumerate(metadata.config.class_names)))
    describe(model, dataclasses.replace(metadata, config=dataclasses.replace(metadata.config, fit="letterbox")))
    assert "at their own ratio, centered" in model.graph.doc_string

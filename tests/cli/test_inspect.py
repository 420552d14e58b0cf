"""`inspect`: what it tells of each kind of file, and of files that are none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from strict_schema import assert_fits

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.cli import main as cli
from yolact_deploy.cli.schemas import INSPECT
from yolact_deploy.config import get_config
from yolact_deploy.errors import ArtifactError
from yolact_deploy.inspection import NO_LAYERS, inspect_file

METADATA = Metadata(config=get_config("yolact_resnet50"), precision="fp16")


def make_onnx(path: Path, *, ours: bool, metadata: Metadata = METADATA) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    import numpy as np

    double = helper.make_function(
        "yolact",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["h"], name="scale"),
            helper.make_node("Twice", ["h"], ["y"], domain="yolact"),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["N", 3])],
        [numpy_helper.from_array(np.ones((1, 3), np.float16), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("yolact", 1)]
    model = helper.make_model(graph, functions=[double], opset_imports=opsets, ir_version=8)
    if ours:
        helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, path)
    return path


def test_onnx(tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "a.onnx", ours=True)
    facts = inspect_file(path, layers=True)
    assert facts["kind"] == "ONNX"
    assert facts["metadata"]["precision"] == "fp16"
    assert facts["opsets"] == {"ai.onnx": 17, "yolact": 1}
    assert facts["nodes"] == {"Mul": 1, "yolact::Twice": 1}
    assert facts["functions"] == [{"name": "yolact::Twice", "nodes": 1}]
    assert facts["inputs"] == [{"name": "x", "dtype": "float16", "shape": ["N", 3]}]
    assert facts["parameters"] == {"float16": {"values": 3, "bytes": 6}}
    assert facts["layers"][0]["name"] == "scale"
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    json.dumps(facts)


def test_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Form, method and images of the ranges, and the layers that were kept."""
    how = {"target": "symmetric", "method": "percentile", "images": 500, "images_sha256": "12ab" * 16}
    kept = ("proto_net.10", "fpn.lat_layers.0")
    metadata = dataclasses.replace(METADATA, precision="int8", quantization=how, keep_fp32=kept)
    path = make_onnx(tmp_path / "a.onnx", ours=True, metadata=metadata)
    assert inspect_file(path)["metadata"]["quantization"] == how
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["quantization"] == how
    assert cli.main(["inspect", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("int8", "symmetric", "percentile ranges from 500 images", "proto_net.10, fpn.lat_layers.0"):
        assert part in text


def test_foreign_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_onnx(tmp_path / "a.onnx", ours=False)
    assert inspect_file(path)["metadata"] is None
    assert cli.main(["inspect", str(path), "--layers"]) == 0
    text = capsys.readouterr().out
    assert "not made by yolact-deploy" in text
    assert "yolact::Twice" in text
    assert "N, 3" in text


def make_safetensors(path: Path, metadata: dict[str, str] | None = None) -> Path:
    header: dict[str, Any] = {"w": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    return path


def test_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_safetensors(tmp_path / "a.safetensors", {METADATA_KEY: METADATA.to_json()})
    facts = inspect_file(path, layers=True)
    assert facts["kind"] == "safetensors"
    assert facts["metadata"]["config"]["name"] == "yolact_resnet50"
    assert facts["parameters"] == {"f16": {"values": 6, "bytes": 12}}
    assert facts["layers"] == [{"name": "w", "dtype": "f16", "shape": [2, 3]}]
    assert cli.main(["inspect", str(path)]) == 0
    assert "yolact_resnet50" in capsys.readouterr().out


def test_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    path = make_safetensors(tmp_path / "a.safetensors", {METADATA_KEY: "{}"})
    facts = inspect_file(path)
    assert facts["metadata"] is None
    assert "unreadable" in facts["metadata_error"]


@pytest.mark.parametrize(
    "entries",
    [
        {"__metadata__": ["a"]},
        {"__metadata__": "x"},
        {"a": [1]},
        {"a": None},
        {"a": {"dtype": "F32", "shape": 5, "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1, 3], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "9"]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": [2**62] * 100_000, "data_offsets": [0, 4]}},
        [1, 2],
    ],
    ids=lambda entries: str(entries)[:60],
)
def test_damaged_safetensors(tmp_path: Path, entries: object) -> None:
    text = json.dumps(entries).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ArtifactError, match=r"damaged|is not a safetensors file"):
        inspect_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{" + b"9" * 10_000, b'{"a":' * 100_000])
def test_safetensors_with_json_beyond_limits(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ArtifactError, match="is not a safetensors file or is truncated"):
        inspect_file(tmp_path / "a.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no device files")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device(device: str) -> None:
    with pytest.raises(ArtifactError, match="is a device and not a file"):
        inspect_file(device)


def test_checkpoint(resnet50_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(resnet50_checkpoint), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "PyTorch checkpoint"
    assert facts["inferred_config"]["name"] == "yolact_resnet50"
    # The class, box and mask heads are in, and the batch statistics of the backbone.
    assert facts["parameters"]["float32"]["values"] > 31_164_943


def test_backbone_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"layer1.0.conv1.weight": torch.zeros(2, 2, 1, 1)}, tmp_path / "r.pth")
    facts = inspect_file(tmp_path / "r.pth")
    assert facts["tensors"] == 1
    assert "not the weights of a YOLACT" in facts["config_error"]


def test_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = b"\x00" * 40 + METADATA.to_json().encode() + b"\x00\x01"
    data = b"vtrt" + struct.pack("<IQQ4B", 0, 2, 32 + len(body), 1, 7, 1, 116) + bytes(4) + body
    path = tmp_path / "a.trt"
    path.write_bytes(data)
    assert cli.main(["inspect", str(path), "--layers"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("TensorRT for RTX engine", "1.7.1.116", "yolact_resnet50", NO_LAYERS):
        assert part in text
    pytest.importorskip("msgspec")
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert_fits(json.loads(capsys.readouterr().out), INSPECT)


@pytest.mark.parametrize("suffix", [".onnx", ".trt", ".safetensors", ".pth", ".xyz"])
@pytest.mark.parametrize("content", [b"", b"just some text, no model", b"\x08\x08:3\n\x0c\n"])
def test_files_that_are_none(tmp_path: Path, suffix: str, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip({".onnx": "onnx", ".pth": "torch"}.get(suffix, "numpy"))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert cli.main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"yolact-deploy: error: {path}")
    assert "internal" not in error
    assert error.count("\n") == 1


def test_cut_short(tmp_path: Path) -> None:
    whole = make_safetensors(tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        inspect_file(tmp_path / "b.safetensors")
    model = make_onnx(tmp_path / "a.onnx", ours=True).read_bytes()
    (tmp_path / "b.onnx").write_bytes(model[:-20])
    with pytest.raises(ArtifactError, match="truncated"):
        inspect_file(tmp_path / "b.onnx")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        inspect_file(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        inspect_file(tmp_path)

"""The spelling FILE@BACKEND, and what `load` says about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import yolact_deploy
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.loading import ModelSpec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("yolact.onnx", ModelSpec(Path("yolact.onnx"))),
        ("a/b.c/yolact.onnx", ModelSpec(Path("a/b.c/yolact.onnx"))),
        ("yolact.onnx@openvino", ModelSpec(Path("yolact.onnx"), "openvino")),
        ("yolact.onnx@openvino-bf16", ModelSpec(Path("yolact.onnx"), "openvino", "bf16")),
        ("yolact.onnx@onnxruntime:threads=2", ModelSpec(Path("yolact.onnx"), "onnxruntime", None, 2)),
        (
            "yolact.onnx@openvino-fp32:threads=4,tail=host",
            ModelSpec(Path("yolact.onnx"), "openvino", "fp32", 4, "host"),
        ),
        ("yolact.onnx@openvino:tail=graph", ModelSpec(Path("yolact.onnx"), "openvino", tail="graph")),
        ("yolact.onnx@openvino:", ModelSpec(Path("yolact.onnx"), "openvino")),
        ("me@home/yolact.onnx@torch", ModelSpec(Path("me@home/yolact.onnx"), "torch")),
        ("w.pth@torch", ModelSpec(Path("w.pth"), "torch")),
    ],
)
def test_parse(text: str, spec: ModelSpec) -> None:
    assert ModelSpec.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yolact.onnx@tflite", "unknown backend 'tflite' after '@'; known are onnxruntime"),
        ("yolact.onnx@", "unknown backend ''"),
        ("yolact.onnx@openvino-fp8", "unknown precision 'fp8'; known are fp32, bf16"),
        ("yolact.onnx@openvino:threads=0", "unknown option 'threads=0'"),
        ("yolact.onnx@openvino:threads=many", "unknown option 'threads=many'; known are threads=N and tail="),
        ("yolact.onnx@openvino:tail=gpu", "unknown option 'tail=gpu'"),
        ("yolact.onnx@openvino:batch=2", "unknown option 'batch=2'"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelSpec.parse(text)
    assert str(caught.value).startswith(f"{text}: {message}")


def test_an_existing_file_with_an_at_sign_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "yolact@home.onnx"
    path.touch()
    assert ModelSpec.parse(path) == ModelSpec(path)
    assert ModelSpec.parse(f"{path}@openvino") == ModelSpec(path, "openvino")


def test_str() -> None:
    assert str(ModelSpec.parse("a/yolact.onnx@openvino-bf16:threads=2")) == "yolact.onnx@openvino-bf16"
    assert str(ModelSpec.parse("a/yolact.onnx")) == "yolact.onnx"


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model file"):
        yolact_deploy.load(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="is a folder"):
        yolact_deploy.load(tmp_path)
    (tmp_path / "model.tflite").touch()
    with pytest.raises(ArtifactError, match=r"cannot tell what kind of model \.tflite is; known are \.onnx"):
        yolact_deploy.load(tmp_path / "model.tflite")
    (tmp_path / "model").touch()
    with pytest.raises(ArtifactError, match="cannot tell what kind of model this is"):
        yolact_deploy.load(tmp_path / "model")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="unknown backend 'tflite'; known are"):
        yolact_deploy.load(tmp_path / "model.onnx", backend="tflite")
    with pytest.raises(InputError, match="computes in the precision of the file"):
        yolact_deploy.load(tmp_path / "model.onnx", precision="bf16")


@pytest.mark.parametrize("suffix", [".trt", ".engine", ".plan", ".TRT"])
def test_engines_are_not_run_yet(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.touch()
    with pytest.raises(BackendError, match=r"cannot run them yet\. Run the ONNX file"):
        yolact_deploy.load(path)

"""The spelling FILE@BACKEND, and what `load` says about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import yolact_deploy
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.loading import ModelSpec
from yolact_deploy.machine.nvidia import find_driver


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
        ("m.trt@tensorrt:device=cuda:1", ModelSpec(Path("m.trt"), "tensorrt", device="cuda:1")),
        ("m.onnx@onnxruntime:provider=cuda", ModelSpec(Path("m.onnx"), "onnxruntime", provider="cuda")),
        (
            "m.onnx@onnxruntime-tf32:device=cuda:2,provider=cuda,tail=graph",
            ModelSpec(Path("m.onnx"), "onnxruntime", "tf32", None, "graph", "cuda:2", "cuda"),
        ),
        (
            "w.pth@torch-fp16:device=cuda,compile=yes",
            ModelSpec(Path("w.pth"), "torch", "fp16", device="cuda", compile=True),
        ),
        ("w.pth@torch:compile=no", ModelSpec(Path("w.pth"), "torch")),
    ],
)
def test_parse(text: str, spec: ModelSpec) -> None:
    assert ModelSpec.parse(text) == spec
    assert ModelSpec.parse(spec.spelling()) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yolact.onnx@tflite", "unknown backend 'tflite' after '@'; known are onnxruntime"),
        ("yolact.onnx@", "unknown backend ''"),
        ("yolact.onnx@openvino-fp8", "unknown precision 'fp8'; known are fp32, tf32, fp16, bf16"),
        ("yolact.onnx@openvino:threads=0", "unknown option 'threads=0'"),
        ("yolact.onnx@openvino:threads=many", "unknown option 'threads=many'; known are threads=N, tail="),
        ("yolact.onnx@openvino:tail=gpu", "unknown option 'tail=gpu'"),
        ("yolact.onnx@openvino:batch=2", "unknown option 'batch=2'"),
        ("yolact.onnx@onnxruntime:provider=dml", "unknown option 'provider=dml'; known are threads=N"),
        ("w.pth@torch:compile=maybe", "unknown option 'compile=maybe'"),
        ("w.pth@torch:device=gpu", "unknown device 'gpu': expected cpu, cuda or cuda:N"),
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


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("m.onnx@openvino:device=cuda", "openvino runs on the CPU here: for a GPU use onnxruntime:provider=cuda"),
        ("m.onnx@openvino:provider=cpu", "openvino has no option 'provider'; it has threads, tail, device"),
        ("m.onnx@onnxruntime-int8", r"int8 is a choice of the export \(--int8 --calibration DIR\): leave it out"),
        ("w.pth@torch-int8", "int8 is a choice of the export"),
        ("m.onnx@openvino-fp16", "openvino has no precision 'fp16'; it has fp32, bf16"),
        ("m.onnx@onnxruntime-fp16:provider=cuda", "onnxruntime computes in the precision of the file: export it"),
        ("m.onnx@onnxruntime:compile=yes", "onnxruntime has no option 'compile'"),
        ("m.onnx@onnxruntime:provider=cpu,device=cuda", "provider=cpu does not run on device=cuda"),
        ("m.onnx@onnxruntime:provider=rtx,device=cpu", "provider=rtx does not run on device=cpu"),
        ("m.onnx@onnxruntime:provider=cuda,threads=2", "threads are of provider=cpu"),
        ("m.onnx@onnxruntime-tf32", "onnxruntime-tf32 is a choice of provider=cuda only"),
        ("m.onnx@onnxruntime-tf32:provider=tensorrt", "onnxruntime-tf32 is a choice of provider=cuda only"),
        ("w.pth@torch:provider=cuda", "torch has no option 'provider'"),
        ("w.pth@torch-tf32", "torch-tf32 is a choice of device=cuda only"),
        ("m.trt@tensorrt:device=cpu", "tensorrt runs on a GPU: for the CPU use the ONNX file"),
        ("m.trt@tensorrt:threads=2", "tensorrt has no option 'threads'; it has device"),
        ("m.trt@tensorrt-fp16", "computes in the precision of the file"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, spelling: str, message: str) -> None:
    (tmp_path / spelling.partition("@")[0]).touch()
    with pytest.raises(InputError, match=message):
        yolact_deploy.load(tmp_path / spelling)


def test_a_precision_that_nobody_has(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    with pytest.raises(InputError, match="unknown precision 'fp8'; known are fp32, tf32, fp16, bf16"):
        yolact_deploy.load(tmp_path / "w.pth", precision="fp8")


def test_arguments_win_over_the_spelling(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(InputError, match="provider=rtx does not run on device=cpu"):
        yolact_deploy.load(f"{tmp_path / 'm.onnx'}@onnxruntime:provider=cuda,device=cuda", provider="rtx", device="cpu")


def has_driver() -> bool:
    try:
        find_driver()
    except BackendError:
        return False
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize(
    "spelling",
    [
        "m.onnx@onnxruntime:provider=cuda",
        "m.onnx@onnxruntime:provider=tensorrt,tail=graph",
        "m.onnx@onnxruntime:provider=rtx",
        "m.onnx@onnxruntime:device=cuda:1",
        "w.pth@torch:device=cuda",
        "w.pth@torch-fp16:device=cuda,compile=yes",
    ],
)
def test_without_a_driver_that_is_the_first_thing_said(tmp_path: Path, spelling: str) -> None:
    """Before the file is read, which here is empty, and before a package is missed."""
    (tmp_path / spelling.partition("@")[0]).touch()
    with pytest.raises(
        BackendError, match=r"^no NVIDIA driver here \(libcuda\.so\.1 cannot be loaded\): use a machine"
    ):
        yolact_deploy.load(tmp_path / spelling)

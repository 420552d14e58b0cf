"""The spelling FILE@BACKEND, and what `load` says about wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        ("mnt/me@lab/model.onnx", ModelSpec(Path("mnt/me@lab/model.onnx"))),
        ("me@lab/engine", ModelSpec(Path("me@lab/engine"))),
        ("yolact@v2.onnx", ModelSpec(Path("yolact@v2.onnx"))),
        ("a@b/yolact@v2.trt", ModelSpec(Path("a@b/yolact@v2.trt"))),
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


_NUMBER = "threads: expected a number from 1 to 1024, got"

# Wrong values as a spelling and as keyword arguments, and the message for both.
WRONG = [
    ("yolact.onnx@tflite", {"backend": "tflite"}, "backend: expected one of onnxruntime, openvino, torch, tensorrt"),
    (
        "yolact.onnx@",
        {"backend": ""},
        "backend: expected one of onnxruntime, openvino, torch, tensorrt, ncnn, litert, opencv, got ''",
    ),
    ("yolact.onnx@openvino-fp8", {"backend": "openvino", "precision": "fp8"}, "precision: expected one of fp32, tf32"),
    ("yolact.onnx@openvino:threads=0", {"backend": "openvino", "threads": 0}, f"{_NUMBER} 0"),
    ("yolact.onnx@onnxruntime:threads=-1", {"threads": "-1"}, f"{_NUMBER} '-1'"),
    ("yolact.onnx@onnxruntime:threads=1025", {"threads": 1025}, f"{_NUMBER} 1025"),
    ("yolact.onnx@onnxruntime:threads=99999999", {"threads": 99999999}, f"{_NUMBER} 99999999"),
    ("yolact.onnx@onnxruntime:threads=" + "9" * 5000, {"threads": 10**5000}, _NUMBER),
    ("yolact.onnx@onnxruntime:device=cuda:" + "9" * 5000, {"device": "cuda:" + "9" * 5000}, "unknown device 'cuda:99"),
    ("yolact.onnx@onnxruntime:device=cuda:\u00b2", {"device": "cuda:\u00b2"}, "unknown device 'cuda:\u00b2'"),
    ("yolact.onnx@onnxruntime:threads=many", {"threads": "many"}, f"{_NUMBER} 'many'"),
    ("yolact.onnx@onnxruntime:threads", {"threads": ""}, f"{_NUMBER} ''"),
    ("yolact.onnx@openvino:tail=gpu", {"tail": "gpu"}, "tail: expected one of auto, host, graph, got 'gpu'"),
    ("yolact.onnx@onnxruntime:tail=", {"tail": ""}, "tail: expected one of auto, host, graph, got ''"),
    ("yolact.onnx@onnxruntime:provider=dml", {"provider": "dml"}, "provider: expected one of cpu, cuda, tensorrt, rtx"),
    ("w.pth@torch:compile=maybe", {"compile": "maybe"}, "compile: expected True or False, got 'maybe'"),
    ("w.pth@torch:device=gpu", {"device": "gpu"}, "unknown device 'gpu': expected cpu, cuda or cuda:N"),
    (
        "m.onnx@openvino:device=cuda",
        {"backend": "openvino", "device": "cuda"},
        "openvino runs on the CPU only: for a GPU use onnxruntime:provider=cuda",
    ),
    (
        "m.onnx@openvino:provider=cpu",
        {"backend": "openvino", "provider": "cpu"},
        "openvino has no option 'provider'; it has threads, tail, device",
    ),
    ("m.onnx@onnxruntime-int8", {"precision": "int8"}, "int8 is a choice of the export (--int8 --calibration DIR)"),
    ("w.pth@torch-int8", {"precision": "int8"}, "int8 is a choice of the export"),
    (
        "m.onnx@openvino-fp16",
        {"backend": "openvino", "precision": "fp16"},
        "openvino has no precision 'fp16'; it has fp32, bf16",
    ),
    (
        "m.onnx@onnxruntime-fp16:provider=cuda",
        {"precision": "fp16", "provider": "cuda"},
        "onnxruntime computes in the precision of the file: export it",
    ),
    ("m.onnx@onnxruntime:compile=yes", {"compile": True}, "onnxruntime has no option 'compile'"),
    (
        "m.onnx@onnxruntime:provider=cpu,device=cuda",
        {"provider": "cpu", "device": "cuda"},
        "provider=cpu does not run on device=cuda",
    ),
    (
        "m.onnx@onnxruntime:provider=rtx,device=cpu",
        {"provider": "rtx", "device": "cpu"},
        "provider=rtx does not run on device=cpu",
    ),
    ("m.onnx@onnxruntime:provider=cuda,threads=2", {"provider": "cuda", "threads": 2}, "threads requires provider=cpu"),
    ("m.onnx@onnxruntime-tf32", {"precision": "tf32"}, "onnxruntime-tf32 requires provider=cuda"),
    (
        "m.onnx@onnxruntime-tf32:provider=tensorrt",
        {"precision": "tf32", "provider": "tensorrt"},
        "onnxruntime-tf32 requires provider=cuda",
    ),
    ("w.pth@torch:provider=cuda", {"provider": "cuda"}, "torch has no option 'provider'"),
    ("w.pth@torch-tf32", {"precision": "tf32"}, "torch-tf32 requires device=cuda"),
    ("m.trt@tensorrt:device=cpu", {"device": "cpu"}, "tensorrt runs on a GPU: for the CPU use the ONNX file"),
    ("m.trt@tensorrt:threads=2", {"threads": 2}, "tensorrt has no option 'threads'; it has device"),
    ("m.trt@tensorrt-fp16", {"precision": "fp16"}, "tensorrt computes in the precision of the file"),
]


@pytest.mark.parametrize(("text", "options", "message"), WRONG)
def test_wrong_values_both_ways(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    """The same code checks the spelling and keyword arguments, before the file is read."""
    path = tmp_path / text.partition("@")[0]
    path.touch()
    for spelled in (text, str(tmp_path / text)):
        with pytest.raises(InputError) as caught:
            ModelSpec.parse(spelled)
        assert str(caught.value).startswith(f"{spelled}: {message}")
    with pytest.raises(InputError) as caught:
        yolact_deploy.load(tmp_path / text)
    assert f": {message}" in str(caught.value)
    with pytest.raises(InputError) as caught:
        yolact_deploy.load(path, **options)
    assert str(caught.value).startswith(message)


def test_unknown_options() -> None:
    with pytest.raises(InputError, match=r"^m\.onnx@openvino:batch=2: unknown option 'batch=2'; known are threads=N"):
        ModelSpec.parse("m.onnx@openvino:batch=2")


@pytest.mark.parametrize("threads", [True, 2.0, -1, 0])
def test_threads_are_a_positive_integer(threads: Any) -> None:
    with pytest.raises(InputError, match="threads: expected a number from 1 to 1024"):
        ModelSpec(Path("m.onnx"), threads=threads)


def test_a_spelling_always_parses() -> None:
    spec = ModelSpec(Path("m.onnx"), threads=2)
    assert spec.spelling() == "m.onnx@onnxruntime:threads=2"
    assert ModelSpec.parse(spec.spelling()).threads == 2


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
    (tmp_path / "model.h5").touch()
    with pytest.raises(ArtifactError, match=r"unknown model type \.h5; expected one of \.onnx"):
        yolact_deploy.load(tmp_path / "model.h5")
    (tmp_path / "model").touch()
    with pytest.raises(ArtifactError, match="unknown model type without suffix"):
        yolact_deploy.load(tmp_path / "model")


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
def test_a_missing_driver_is_reported_first(tmp_path: Path, spelling: str) -> None:
    """Reported before the (empty) file is read and before a missing package."""
    (tmp_path / spelling.partition("@")[0]).touch()
    with pytest.raises(
        BackendError, match=r"^no NVIDIA driver here \(libcuda\.so\.1 cannot be loaded\): use a machine"
    ):
        yolact_deploy.load(tmp_path / spelling)

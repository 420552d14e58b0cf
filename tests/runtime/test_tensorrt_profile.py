"""`inspect --profile`: layers, precisions, tactics and times of an engine, behind a fake TensorRT and a fake driver."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from host_network import emulated

from yolact_deploy.cli import main as cli

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import fake_tensorrt
import tiny_onnx
from strict_schema import assert_fits

from yolact_deploy.cli import schemas
from yolact_deploy.errors import InputError
from yolact_deploy.loading import load
from yolact_deploy.runtime.cuda import nvtx_ranges as ranges
from yolact_deploy.runtime.tensorrt_profile import _precisions, profile_engine

__all__ = ["emulated"]

with_driver = pytest.mark.fake_cuda(memory=256 * 2**20, capability="8.9")


@pytest.fixture(autouse=True)
def fakes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    with fake_tensorrt.installed():
        if "fake_cuda" in request.keywords:
            request.getfixturevalue("emulated")
        yield
    if "fake_cuda" in request.keywords:
        gc.collect()
        assert fake.control().leaks() == ""


def engine(folder: Path, **options: Any) -> Path:
    onnx_path = tiny_onnx.write_model(folder / "tiny.onnx", tail="heads", batch=(1, 2, 4))
    return fake_tensorrt.write_engine(folder / "tiny.trt", onnx_path, profiles=((1, 2, 4),), **options)


@with_driver
@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "rtx"])
def test_layers_and_times(tmp_path: Path, rtx: bool) -> None:
    profile = profile_engine(engine(tmp_path, details=True, rtx=rtx), runs=4)
    assert (profile.batch, profile.runs, profile.detailed) == (1, 4, True)
    assert len(profile.layers) > 10
    for index, layer in enumerate(profile.layers):
        assert layer.name == f"{layer.kind}_{index}"
        assert (layer.inputs, layer.outputs, layer.tactic) == (("fp16",), ("fp16",), "t0")
        assert layer.mean_ms == pytest.approx(0.001 * (index + 1)), "warm-up runs do not count"
    assert profile.total_ms == pytest.approx(sum(0.001 * (i + 1) for i in range(len(profile.layers))))
    assert json.loads(json.dumps(profile.to_json()))["total_ms"] == profile.total_ms


@with_driver
def test_an_engine_that_knows_only_names(tmp_path: Path) -> None:
    profile = profile_engine(engine(tmp_path), runs=2, batch=3)
    assert (profile.batch, profile.detailed) == (3, False)
    assert all(layer.mean_ms and not layer.kind and not layer.tactic for layer in profile.layers)
    with pytest.raises(InputError, match="takes 1 to 4 images, got 9"):
        profile_engine(tmp_path / "tiny.trt", batch=9)


@with_driver
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = engine(tmp_path, details=True)
    assert cli.main(["inspect", str(path), "--profile", "--runs", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert_fits(facts, schemas.INSPECT)
    profile = facts["profile"]
    assert profile["runs"] == 2
    assert profile["layers"][0]["outputs"] == ["fp16"]
    assert list(profile["stages_mean_ms"]) == [
        "decode", "copy", "upload", "preprocess", "network", "nms", "assembly", "paste", "read", "detect",
    ]  # fmt: skip
    assert profile["stages_mean_ms"]["network"] > 0
    assert cli.main(["inspect", str(path), "--profile", "--runs", "2"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Layers, mean of 2 runs of 1 image(s)" in text
    assert "Stages of a frame of 640 x 480" in text
    assert "--layer-details" not in text
    assert cli.main(["inspect", str(engine(tmp_path)), "--profile", "--runs", "1"]) == 0
    assert "build it with --layer-details for the rest" in " ".join(capsys.readouterr().out.split())


@with_driver
def test_ranges_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of timed frames: each stage where the host enqueues it, and the whole frame."""
    seen: list[str] = []

    @contextlib.contextmanager
    def annotate(name: str, *, domain: str) -> Iterator[None]:
        assert domain == "yolact-deploy"
        seen.append(name)
        yield
        seen.append(f"/{name}")

    module = types.ModuleType("nvtx")
    module.annotate = annotate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvtx", module)
    ranges._nvtx.cache_clear()
    try:
        with load(engine(tmp_path)) as model:
            frame = np.zeros((48, 64, 3), np.uint8)
            model(frame)
            assert seen == []
            model.stage_times = True
            model(frame)
            stages = ("upload", "preprocess", "network", "nms", "assembly", "paste")
            assert seen == ["frame", *(word for stage in stages for word in (stage, f"/{stage}")), "/frame"]
    finally:
        ranges._nvtx.cache_clear()


def test_files_that_are_no_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_onnx.write_model(tmp_path / "tiny.onnx")
    assert cli.main(["inspect", str(path), "--profile"]) == 2
    assert "--profile requires an engine" in capsys.readouterr().err


def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(engine(tmp_path)), "--profile"]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"), ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"), ("BF16", "bf16"), ("Half", "fp16"),
        ("Float", "fp32"), ("Row major Int32 format", "int32"), ("Something else", "Something else"),
    ],
)  # fmt: skip
def test_precisions(text: str, precision: str) -> None:
    assert _precisions([{"Name": "FP8 layer", "Format/Datatype": text}]) == (precision,)

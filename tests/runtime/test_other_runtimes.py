"""OpenCV's DNN module and ncnn as backends: the detections of ONNX Runtime, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _module in ("torch", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(_module)

import cv2

from yolact_deploy import load
from yolact_deploy.datasets.shapes import render
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.loading import ModelSpec

HAS_OPENCV_5 = int(cv2.__version__.partition(".")[0]) >= 5
PICTURES: list[Any] = [render(seed, height=320, width=320).image for seed in range(3)]


def assert_agrees(one: str | Path, other: Path, **choices: Any) -> dict[str, Any]:
    """Both detect the same; returns what the first says of itself."""
    meter = AgreementMeter()
    with load(one, **choices) as model, load(other) as reference:
        for picture in PICTURES:
            meter.add(reference(picture), model(picture))
        described = model.backend.describe()
    agreed = meter.result()
    assert agreed.reference_detections > 8
    assert (agreed.missed, agreed.extra) == (0, 0)
    return described


@pytest.mark.skipif(not HAS_OPENCV_5, reason="OpenCV is older than 5")
@pytest.mark.parametrize("tail", ["host", "graph"])
def test_opencv(tail: str, demo_onnx: Path) -> None:
    before = cv2.getNumThreads()
    described = assert_agrees(f"{demo_onnx}@opencv", demo_onnx, tail=tail, threads=1)
    assert (described["backend"], described["tail"], described["precision"]) == ("opencv", tail, "fp32")
    assert (described["threads"], cv2.getNumThreads()) == (1, before)


def test_opencv_refuses(demo_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="takes inputs of 320 only"):
        load(f"{demo_onnx}@opencv", image_size=256)
    with pytest.raises(InputError, match=r"opencv has no option 'device'; it has threads, tail"):
        ModelSpec.parse(f"{demo_onnx}@opencv:device=cuda")
    monkeypatch.setattr(cv2, "__version__", "4.13.0")
    with pytest.raises(BackendError, match=r"the backend opencv needs OpenCV 5, and 4\.13\.0 is installed"):
        load(f"{demo_onnx}@opencv")


@pytest.fixture(scope="module")
def ncnn_folder(demo_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("ncnn", "pnnx"):
        pytest.importorskip(module)
    from yolact_deploy.export.targets.registry import write_target
    from yolact_deploy.export.targets.target_source import TargetSource

    path = Path(shutil.copy(demo_onnx, tmp_path_factory.mktemp("ncnn") / "demo.onnx"))
    write_target("ncnn", TargetSource(onnx_path=path, metadata=onnx_metadata(read_onnx(path), path)))
    return path.with_name("demo_ncnn_model")


def test_ncnn(ncnn_folder: Path, demo_onnx: Path, tmp_path: Path) -> None:
    file = ncnn_folder / "model.ncnn.param"
    described = assert_agrees(file, demo_onnx, threads=1)
    assert (described["backend"], described["tail"], described["threads"]) == ("ncnn", "host", 1)
    with pytest.raises(InputError, match=r"is a folder: name the model file in it, such as .*model\.ncnn\.param"):
        load(ncnn_folder)
    with pytest.raises(InputError, match="takes inputs of 320 only"):
        load(file, image_size=256)
    with pytest.raises(InputError, match=r"ncnn runs the \.param file that 'export --format ncnn' writes, not x\.onnx"):
        ModelSpec.parse("x.onnx@ncnn")
    alone = Path(shutil.copy(file, tmp_path))
    with pytest.raises(ArtifactError, match=r"model\.ncnn\.bin is not beside it: copy the whole folder"):
        load(alone)
    for name in ("model.ncnn.bin", "metadata.json"):
        shutil.copy(ncnn_folder / name, tmp_path)
    alone.write_text("7767517\nnonsense\n")
    with pytest.raises(ArtifactError, match="ncnn cannot read"):
        load(alone)


@pytest.mark.skipif(not HAS_OPENCV_5, reason="OpenCV is older than 5")
def test_a_batch(demo_onnx: Path) -> None:
    with load(f"{demo_onnx}@opencv") as model:
        together, apart = model(PICTURES), [model(picture) for picture in PICTURES]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)

"""OpenCV's DNN module and ncnn as backends: the detections of ONNX Runtime, and what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few

for _module in ("torch", "onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(_module)

import cv2

from yolact_deploy import load
from yolact_deploy.cli import main as cli
from yolact_deploy.datasets.shapes import render, write_shapes
from yolact_deploy.errors import ArtifactError, BackendError, InputError
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.evaluation.engines import EngineSource, told_apart
from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
from yolact_deploy.inspection import inspect_file
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
@pytest.mark.parametrize("tail", few(["host", "graph"], 0))
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


def test_ncnn_files_are_described(ncnn_folder: Path, tmp_path: Path) -> None:
    facts = inspect_file(ncnn_folder / "model.ncnn.param", layers=True)
    sizes = [(ncnn_folder / f"model.ncnn.{part}").stat().st_size for part in ("param", "bin")]
    assert (facts["kind"], facts["bytes"]) == ("ncnn", sum(sizes))
    assert facts["metadata"]["config"]["name"] == "shapes_demo"
    assert sum(facts["nodes"].values()) == len(facts["layers"])
    assert facts["layers"][0] == {"name": "in0", "type": "Input", "inputs": [], "outputs": ["in0"]}
    damaged = tmp_path / "model.ncnn.param"
    for text in (
        "7767517",
        "7767517\n2 2\nInput in0 0 1 in0",
        "7767517\n1 1\nInput in0 0 x in0",
        "7767517\n1 1\nInput",
    ):
        damaged.write_text(text)
        with pytest.raises(ArtifactError, match="is not ncnn's text of layers, or is truncated"):
            inspect_file(damaged)


def test_a_folder_stands_for_its_only_file(tmp_path: Path) -> None:
    folder = tmp_path / "m_opencv_model"
    folder.mkdir()
    for name in ("m.onnx", "metadata.json", "readme.txt"):
        (folder / name).write_text("x")
    for backend in ("opencv", "openvino", "onnxruntime"):
        spec = ModelSpec.parse(f"{folder}@{backend}")
        assert (spec.path, spec.files) == (folder / "m.onnx", (folder / "m.onnx",))
        assert ModelSpec.parse(spec.spelling()) == spec
    with pytest.raises(InputError, match=r"ncnn runs the \.param file .* not m_opencv_model"):
        ModelSpec.parse(f"{folder}@ncnn")
    with pytest.raises(InputError, match=r"m_opencv_model is a folder: name the model file in it, such as .*m\.onnx"):
        load(folder)
    (folder / "other.onnx").write_text("x")
    with pytest.raises(InputError, match=r"m_opencv_model is a folder: name the model file in it, such as .*m\.onnx"):
        load(f"{folder}@opencv")


def test_models_of_the_same_file_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b", "c/m_opencv_model", "d/m_opencv_model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "m.onnx").write_text("x")
    spellings = ("a/m.onnx", "b/m.onnx", "b/m.onnx@openvino", "c/m_opencv_model@opencv", "d/m_opencv_model@opencv")
    sources = told_apart([EngineSource.from_spec(str(tmp_path / spelling)) for spelling in spellings])
    assert [source.name for source in sources] == [
        "a/m.onnx",
        "b/m.onnx",
        "m.onnx@openvino",
        "c/m_opencv_model@opencv",
        "d/m_opencv_model@opencv",
    ]


@pytest.mark.skipif(not HAS_OPENCV_5, reason="OpenCV is older than 5")
def test_bench_and_compare_take_the_folders(
    ncnn_folder: Path, demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run with accuracy and speed, and the tables name folder and runtime."""
    for module in ("msgspec", "pycocotools"):
        pytest.importorskip(module)
    folder = tmp_path / "demo_opencv_model"
    folder.mkdir()
    shutil.copy(demo_onnx, folder / "demo.onnx")
    assert list(write_shapes(tmp_path / "shapes", {"val": 2}))
    engines = [str(demo_onnx), f"{folder}@opencv", f"{ncnn_folder}@ncnn"]
    given = [word for engine in engines for word in ("--engine", engine)]
    data = ["--data", str(tmp_path / "shapes")]
    record = tmp_path / "bench.json"
    assert cli.main(["bench", *given, *data, "--warmup", "1", "-o", str(record)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^demo_opencv_model@opencv +opencv +fp32 ", printed, re.MULTILINE)
    assert re.search(r"^demo_ncnn_model@ncnn +ncnn +fp32 ", printed, re.MULTILINE)
    rows = json.loads(record.read_text())["engines"]
    assert [row["backend"] for row in rows] == ["onnxruntime", "opencv", "ncnn"]
    for row in rows[1:]:
        assert row["latency"]["p50_ms"] > 0
        assert row["accuracy"]["mask"]["ap"] == pytest.approx(rows[0]["accuracy"]["mask"]["ap"], abs=1e-3)
    assert rows[2]["file_mib"] > 1, "the weights count"
    assert cli.main(["compare", "--reference", engines[0], "--engine", engines[2], *data, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["engine"], compared["agreement"]["missed"]) == ("demo_ncnn_model@ncnn", 0)


@pytest.mark.skipif(not HAS_OPENCV_5, reason="OpenCV is older than 5")
def test_a_batch(demo_onnx: Path) -> None:
    with load(f"{demo_onnx}@opencv") as model:
        together, apart = model(PICTURES), [model(picture) for picture in PICTURES]
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)

"""The scripts in examples/ work: each one runs on generated pictures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from yolact_deploy import load
from yolact_deploy.preprocess import read_image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of shapes: shapes.yaml and images/."""
    pytest.importorskip("torch")
    from yolact_deploy.cli.main import main

    folder = tmp_path_factory.mktemp("shapes")
    assert main(["data", "shapes", "-o", str(folder), "--train", "8", "--val", "4", "--size", "160x120"]) == 0
    return folder


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call an example's ``main`` as if its script ran with these arguments."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    example(name).main()


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    own_source, readme = Path(__file__).read_text("utf-8"), (EXAMPLES / "README.md").read_text("utf-8")
    names = [path.stem for path in EXAMPLES.glob("*.py")]
    assert len(names) >= 4
    assert [name for name in names if f'"{name}"' not in own_source or f"({name}.py)" not in readme] == []


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}


def test_embed_in_a_loop(
    demo_onnx: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "shapes.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"mp4v"), 10, (160, 120))
    for path in sorted((pictures / "images").glob("val_*.png")):
        writer.write(read_image(path))
    writer.release()
    run("embed_in_a_loop", demo_onnx, video, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"frame {number}" for number in range(4)]
    assert not any("nothing" in line or " 0% covered" in line for line in lines)


def test_embed_in_a_loop_without_a_video(demo_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"cannot open .*missing\.mp4: expected a video file or a camera number"):
        run("embed_in_a_loop", demo_onnx, tmp_path / "missing.mp4", monkeypatch=monkeypatch)


def test_batch_of_a_folder(demo_onnx: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "results.json"
    run("batch_of_a_folder", demo_onnx, pictures / "images", output, monkeypatch=monkeypatch)
    results = json.loads(output.read_text("utf-8"))
    paths = sorted((pictures / "images").iterdir())
    assert {result["image_id"] for result in results} == set(range(1, len(paths) + 1))
    with load(demo_onnx) as model:
        expected = model(paths[2]).to_coco(3, model.config.category_ids)
    assert [result for result in results if result["image_id"] == 3] == expected


@pytest.mark.slow  # half a minute: a training and an export
def test_own_dataset_end_to_end(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    picture = next((pictures / "images").glob("val_*.png"))
    tiny = ["--set", "config.image_size=64", "--set", "batch=4", "--set", "iterations=3"]
    arguments = [pictures / "shapes.yaml", *tiny, "--picture", picture, "-o", tmp_path]
    run("own_dataset_end_to_end", *arguments, monkeypatch=monkeypatch)
    assert read_image(tmp_path / "detections.png").shape == (120, 160, 3)
    with load(tmp_path / "model.onnx") as model:
        assert model.config.image_size == 64


def test_plain_onnxruntime_equals_the_package(demo_onnx: Path, pictures: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(demo_onnx, providers=["CPUExecutionProvider"])
    detect = example("plain_onnxruntime").detect
    with load(demo_onnx, tail="graph") as model:
        for path in sorted((pictures / "images").iterdir())[:4]:
            image = read_image(path)
            boxes, scores, labels, masks = detect(session, image)
            expected = model(image)
            assert len(expected) > 0
            np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
            np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
            np.testing.assert_array_equal(labels, expected.labels)
            assert masks.dtype == np.bool_
            assert masks.shape == expected.masks.shape
            # Interpolation rounds differently: a pixel at the threshold may change sides.
            assert (masks != expected.masks).sum(axis=(1, 2)).max() <= 2


def test_plain_onnxruntime_runs_without_the_package(demo_onnx: Path, pictures: Path, tmp_path: Path) -> None:
    picture, output = next((pictures / "images").glob("val_*.png")), tmp_path / "overlay.png"
    code = (
        "import runpy, sys; sys.modules['yolact_deploy'] = None; script = sys.argv.pop(1); sys.argv[0] = script; "
        "runpy.run_path(script, run_name='__main__')"
    )
    script = EXAMPLES / "plain_onnxruntime.py"
    command = [sys.executable, "-W", "error", "-c", code, str(script), str(demo_onnx), str(picture), str(output)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    with load(demo_onnx) as model:
        detections = model(picture)
    assert [line.split()[:2] for line in lines] == [
        [name, f"{score:.2f}"] for name, score in zip(detections.names, detections.scores, strict=True)
    ]
    assert not np.array_equal(read_image(output), read_image(picture))

"""`predict --workers` and `--shards`, and `eval --shards`: the files and figures of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.shapes import render, write_shapes

FORMATS = ("--format", "overlay,json,coco", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures, two of one name in two folders, and a damaged one."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for i in range(5):
        cv2.imwrite(str(folder / f"{i}.png"), render(i).image)
    cv2.imwrite(str(folder / "more" / "3.png"), render(7).image)
    cv2.imwrite(str(folder / "street.jpg"), render(8).image)
    (folder / "broken.jpg").write_bytes((folder / "street.jpg").read_bytes()[:3000])
    return folder


@pytest.fixture(scope="module")
def whole(demo_onnx: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert run(demo_onnx, pictures, folder) == 2, "a picture is damaged"
    return folder


def run(model: Path, pictures: Path, output: Path, *options: str) -> int:
    sources = [str(pictures), str(pictures / "more")]
    return main(["predict", str(model), *sources, "-o", str(output), *FORMATS, *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_workers_write_the_same(
    demo_onnx: Path, pictures: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(demo_onnx, pictures, tmp_path, "--workers", "2", "--json") == 2
    printed = capsys.readouterr()
    assert contents(tmp_path) == contents(whole)
    summary = json.loads(printed.out)
    assert summary["images"] == 7
    assert [Path(failure["source"]).name for failure in summary["failed"]] == ["broken.jpg"]
    assert printed.err.count("broken.jpg") == 1
    assert set(map(Path, summary["outputs"])) == {path for path in tmp_path.rglob("*") if path.is_file()}
    coco = json.loads((whole / "detections.coco.json").read_text())
    assert len(coco) >= 7, "a test without detections proves nothing"


def test_shards_write_the_same(demo_onnx: Path, pictures: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    codes = [run(demo_onnx, pictures, output, "--shards", f"{i}/3") for i in (1, 2, 3)]
    assert sorted(codes) == [0, 0, 2]
    for kind in ("coco", "images"):
        parts = [str(output / f"detections.{kind}-{i}-of-3.json") for i in (1, 2, 3)]
        assert main(["merge", *parts, "-o", str(tmp_path / f"{kind}.json"), "--quiet"]) == 0
        for part in parts:
            Path(part).unlink()
    assert by_picture(tmp_path / "coco.json") == by_picture(whole / "detections.coco.json")
    files = contents(whole)
    assert contents(output) == {name: files[name] for name in files if not name.startswith("detections.")}


def by_picture(path: Path) -> Any:
    return sorted(json.loads(path.read_text()), key=lambda result: result["image_id"])


def test_errors(demo_onnx: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (("--shards", "9/9"), "there are only 8 pictures"),
        (("--shards", "0/2"), "--shards: expected i/n"),
        (("--shards", "1/2", "--workers", "2"), "--shards runs pictures in one process"),
    ):
        assert run(demo_onnx, pictures, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "detections.coco.json").write_text("[]")
    assert run(demo_onnx, pictures, tmp_path / "own", "--workers", "2") == 2
    assert "no earlier run wrote it" in capsys.readouterr().err


def test_eval_in_shards(demo_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycocotools")
    list(write_shapes(tmp_path / "set", {"val": 6}, seed=3))
    data = ["--data", str(tmp_path / "set")]
    model = ["--engine", f"{demo_onnx}@onnxruntime:threads=1", "--workers", "1"]

    def figures(*arguments: str) -> dict[str, Any]:
        assert main(["eval", *arguments, *data, "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        return {key: values[key] for key in ("box", "mask")}

    expected = figures(*model)
    parts = [tmp_path / f"part-{i}-of-2.json" for i in (1, 2)]
    for i, part in enumerate(parts, start=1):
        figures(*model, "--shards", f"{i}/2", "--save-results", str(part))
    assert main(["merge", *map(str, parts), "-o", str(tmp_path / "all.json"), "--quiet"]) == 0
    assert figures("--results", str(tmp_path / "all.json")) == expected
    assert main(["eval", *model, *data, "--shards", "1/2"]) == 2
    assert "--shards requires --save-results" in capsys.readouterr().err

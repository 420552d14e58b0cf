"""`predict --slice` and `eval --slice`: large pictures in tiles, from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from blobs import SIDE, BlobBackend

from yolact_deploy import loading
from yolact_deploy.cli.main import main
from yolact_deploy.evaluation import evaluate

SMALL = 14  #: side of the squares in the pictures: 7 of the network's pixels if a picture is run as a whole


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BlobBackend:
    """A model file, two pictures of squares, one of which lies on the border of two tiles, and their annotations."""
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"")
    Path("images").mkdir()
    annotations: list[dict[str, Any]] = []
    for number in (1, 2):
        picture = np.zeros((256, 256, 3), np.uint8)
        for x, y, w in ((20, 20, SMALL), (100, 60, 50), (200, 200, SMALL), (20, 40 * number, SMALL)):
            picture[y : y + SMALL, x : x + w] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 2, "iscrowd": 0,
                    "bbox": [x, y, w, SMALL], "area": w * SMALL,
                    "segmentation": [[x, y, x + w, y, x + w, y + SMALL, x, y + SMALL]],
                }
            )  # fmt: skip
        assert cv2.imwrite(f"images/{number}.png", picture)
    images = [{"id": number, "file_name": f"{number}.png", "height": 256, "width": 256} for number in (1, 2)]
    categories = [{"id": 1, "name": "dim"}, {"id": 2, "name": "bright"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path("a.json").write_text(json.dumps(content))
    blobs = BlobBackend()
    monkeypatch.setattr(loading, "_open", lambda *args: blobs)
    monkeypatch.setattr(evaluate, "_stored_config", lambda model: blobs.metadata.config)
    return blobs


def evaluated(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    command = ["eval", "--engine", "model.onnx", "--annotations", "a.json", "--images-dir", "images", "--json"]
    assert main([*command, "--workers", "1", *more]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_predict(capsys: pytest.CaptureFixture[str], backend: BlobBackend) -> None:
    assert main(["predict", "model.onnx", "images", "--slice", str(SIDE), "--overlap", "0.25", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["detections"]) == (2, 8)
    assert "merge" in summary["mean_ms"]
    found = json.loads(Path("predictions/1.json").read_text())["detections"]
    wide = [d["box"] for d in found if d["box"][2] - d["box"][0] > 40]
    assert len(wide) == 1, "the object on the border is one"
    assert np.abs(np.subtract(wide[0], [100, 60, 150, 60 + SMALL])).max() <= 3
    assert max(backend.batches) == backend.max_batch


def test_eval_with_and_without(capsys: pytest.CaptureFixture[str]) -> None:
    plain, sliced = evaluated(capsys), evaluated(capsys, "--slice", str(SIDE))
    assert sliced["mask"]["ap"] > plain["mask"]["ap"]
    assert sliced["max_detections"] > plain["max_detections"] == 100
    assert "merge" in sliced["time"]["stages_s"]


def test_the_cache_knows_the_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluated(capsys, "--slice", str(SIDE), "--cache", "c.jsonl")
    again = evaluated(capsys, "--slice", str(SIDE), "--cache", "c.jsonl", "--resume")
    assert (again["mask"], again["max_detections"]) == (first["mask"], first["max_detections"])
    command = ["eval", "--engine", "model.onnx", "--annotations", "a.json", "--images-dir", "images", "--resume"]
    assert main([*command, "--cache", "c.jsonl", "--slice", str(SIDE), "--overlap", "0.5"]) == 2
    assert "c.jsonl has other detections: slicing is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "0.3"], "--overlap is a rule for tiles: give their size with --slice"),
        (["--class-agnostic"], "--class-agnostic is a rule for tiles"),
        (["--no-standard-prediction"], "--no-standard-prediction is a rule for tiles"),
        (["--slice", "640", "--overlap", "1"], "overlap: expected 0 <= value < 1, got 1.0"),
        (["--slice", "4"], "slice: expected a side"),
        (["--slice", "640", "--postprocess-match-threshold", "2"], "match_threshold: expected 0 < value <= 1"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_bad_options(command: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    of_eval = ["eval", "--engine", "model.onnx", "--data", "images"]
    start = {"predict": ["predict", "model.onnx", "images"], "eval": of_eval}
    assert main([*start[command], *options]) == 2
    assert words in capsys.readouterr().err
    assert not Path("predictions").exists()


def test_no_tiles_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--results", "r.json", "--annotations", "a.json", "--slice", "64"]) == 2
    assert "--slice has no effect with --results" in capsys.readouterr().err

"""Every JSON output of `predict`, `eval`, `doctor` and `inspect` fits its schema, and no released schema changes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

for module in ("jsonschema", "msgspec", "pycocotools"):
    pytest.importorskip(module)

import jsonschema
from clips import write_clip
from scripted import SCRIPT, ScriptedBackend, predictor, write_coco
from scripted_backend import install
from strict_schema import FOLDER, assert_fits, schema_of

from yolact_deploy import samples
from yolact_deploy.benchmarks.described_schema import described_schema
from yolact_deploy.cli import main as cli
from yolact_deploy.cli import schemas
from yolact_deploy.cli.schemas.output_types import OUTPUTS
from yolact_deploy.evaluation import engines
from yolact_deploy.runtime import checks

#: SHA-256 of each schema: one that was released stays as it is
RELEASED = {
    "detections-v1": "e33444c94f7777c314e50a392b11b660d10e7874aeef57ddae82b451f672fc3a",
    "doctor-v1": "0ab62636dd2040f3bb0a9b5edf1e63f07b337e580af2a0f55a0a29ed53b31b9e",
    "eval-v1": "ae5d181e1513a282302816b8d1697ef274d2ef085157afdbfb76ec9cb90f8cfe",
    "inspect-v1": "cbd6a4654800bda52292850e14528ea9e0a4673a6531a6dbb886295745e92870",
    "predict-ray-v1": "eb46969d09bafe77b7f3e1f9d1b1bc163a61e8a020549c747ddbc1bfd1bc4213",
    "predict-v1": "1308aa808d3291a699ca1ae0601f735ef7893e6babf7c29d6e055829dd50a8d6",
}


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert cli.main([*map(str, words), "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_schema_is_that_of_the_type(name: str) -> None:
    derived = json.loads(json.dumps(described_schema(OUTPUTS[name])))
    assert schema_of(name) == derived, "raise the version, then run python -m yolact_deploy.cli.schemas"
    jsonschema.Draft202012Validator.check_schema(derived)
    assert derived["properties"]["schema"] == {"enum": [name]}


def test_a_released_schema_does_not_change() -> None:
    digests = {
        path.name.removesuffix(".schema.json"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.glob("*.schema.json")
    }
    assert digests == RELEASED, "a changed schema gets the next version: name-v2; the old file stays"


def test_a_wrong_output_does_not_fit() -> None:
    machine = {"yolact_deploy": "1", "system": "a", "processor": "b", "cores": 2, "instructions": [], "python": "3"}
    right = {"schema": "doctor-v1", "machine": machine, "findings": []}
    assert_fits(right, "doctor-v1")
    for wrong in ({**right, "more": 1}, {**right, "machine": {**machine, "cores": "2"}}, {"schema": "doctor-v1"}):
        with pytest.raises(jsonschema.ValidationError):
            assert_fits(wrong, "doctor-v1")


def test_predict_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch)
    for name in ("a.png", "b.png"):
        assert cv2.imwrite(str(tmp_path / name), np.full((90, 120, 3), 60, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert cli.main(["predict", "model.onnx", str(tmp_path), "-o", str(out), "--json"]) == 2
    summary = json.loads(capsys.readouterr().out)
    assert_fits(summary, schemas.PREDICT)
    assert summary["failed"]
    assert summary["left_out"]
    for name in ("a", "b"):
        assert_fits(json.loads((out / f"{name}.json").read_text()), schemas.DETECTIONS)


def test_predict_a_video(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    install(monkeypatch)
    clip = write_clip(tmp_path / "clip.mp4", 6)
    counting = ("--track", "--count-line", "48,0,48,64")
    assert_fits(printed(capsys, "predict", "model.onnx", clip, "-o", tmp_path / "out", *counting), schemas.PREDICT)
    lines = (tmp_path / "out" / "clip.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for line in lines:
        assert_fits(json.loads(line), schemas.DETECTIONS)
    assert "track" in json.loads(lines[-1])["detections"][0]


def test_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "load", lambda model, **options: predictor(ScriptedBackend(SCRIPT)))
    monkeypatch.setattr("yolact_deploy.evaluation.evaluate.inspect_file", lambda path: {})
    Path("good.onnx").write_bytes(b"good")
    write_coco(Path("coco"))
    common = ("eval", "--coco", "coco", "--quiet")
    saved = ("--cache", "good.jsonl", "--save-results", "good.json")
    assert_fits(printed(capsys, *common, "--engine", "good.onnx", *saved), schemas.EVAL)
    of_file = printed(capsys, *common, "--results", "good.json", "--reference", "good.jsonl", "--samples", "20")
    assert_fits(of_file, schemas.EVAL)
    assert of_file["difference"]
    assert of_file["time"] is None


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = checks.examine(["onnx", "tensorrt"])
    ready = checks.Finding("onnxruntime CPU", "runtime", True)
    monkeypatch.setattr(checks, "examine", lambda timeout, progress: [ready, *findings])
    assert_fits(printed(capsys, "doctor"), schemas.DOCTOR)


@pytest.mark.parametrize("more", [(), ("--layers",)])
def test_inspect(export: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"backbone.conv1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "other.pth")
    onnx = export("small", 138)
    for path in (onnx, samples.DEMO_MODEL, tmp_path / "other.pth"):
        assert_fits(printed(capsys, "inspect", path, *more), schemas.INSPECT)

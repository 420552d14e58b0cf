"""`train` as a command: what it makes is exported and predicts; what is wrong is told in one sentence."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
import tiny
import torch

from yolact_deploy.cli import main as cli


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    tiny.leave_out_pictures(monkeypatch)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_classes(folder: Path) -> Path:
    """A set of a user's: two classes with the ids 7 and 42, bright discs and squares on black."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(8):
        picture = np.zeros((80, 80, 3), np.uint8)
        category = (7, 42)[number % 2]
        x, y, side = 6 + 4 * number, 10 + 2 * number, 30
        cv2.rectangle(
            picture, (x, y), (x + side - 1, y + side - 1), (60, 200, 90) if category == 7 else (200, 60, 220), -1
        )
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "height": 80, "width": 80})
        polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": category, "bbox": [x, y, side, side],
             "area": side * side, "iscrowd": 0, "segmentation": [polygon]}
        )  # fmt: skip
    categories = [{"id": 7, "name": "green box"}, {"id": 42, "name": "pink box"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    split = "{annotations: boxes.json, images: images}"
    (folder / "boxes.yaml").write_text(f"names: [green box, pink box]\ntrain: {split}\nval: {split}\n")
    return folder / "boxes.yaml"


def train(*arguments: object, settings: tuple[str, ...] = ()) -> int:
    given = [str(argument) for argument in arguments]
    recipe = [] if "--recipe" in given else ["--recipe", "shapes_demo"]
    return cli.main(["train", *recipe, *given, *tiny.as_arguments((*tiny.SETTINGS, *settings)), "--workers", "0",
                     "--device", "cpu", "--quiet"])  # fmt: skip


@pytest.mark.parametrize("iterations", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("short_check")
def test_a_set_of_ones_own_trains_exports_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], iterations: int
) -> None:
    """A hundred iterations find the boxes; five show that each step takes what the one before it wrote."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    data, run = two_classes(tmp_path / "set"), tmp_path / "run"
    settings = (
        f"iterations={iterations}", "batch=8", "optimizer=adamw", "lr=4e-3", f"milestones={iterations * 4 // 5}",
        f"warmup_iterations={iterations // 10}",
        "augmentation.expand=1", "augmentation.crop=no", "augmentation.hue=0", "augmentation.brightness=0",
        "augmentation.contrast=1,1", "augmentation.saturation=1,1",
        f"eval_interval={iterations // 2}", f"save_interval={iterations}", f"log_interval={iterations // 5}",
    )  # fmt: skip
    assert train("--data", data, "--output", run, "--json", settings=settings) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["finished"]
    assert iterations < 100 or result["accuracy"]["box"]["ap50"] > 0.5
    assert iterations < 100 or (run / "best.safetensors").exists()

    weights = run / "last.safetensors"
    assert (
        cli.main(["export", "--weights", str(weights), "--engine", "none", "-o", str(tmp_path / "m"), "--quiet"]) == 0
    )
    pictures, firsts = tmp_path / "set" / "images", []
    for model in (weights, tmp_path / "m.onnx"):
        out = tmp_path / f"out_{model.suffix[1:]}"
        assert cli.main(["predict", str(model), str(pictures), "-o", str(out), "--quiet"]) == 0
        detections = [json.loads((out / f"{number}.json").read_text())["detections"] for number in range(8)]
        if iterations < 100:
            continue
        assert {d["name"] for of_picture in detections for d in of_picture} == {"green box", "pink box"}
        firsts.append([of_picture[0]["name"] if of_picture else "" for of_picture in detections])
    if iterations < 100:
        return
    assert firsts[0] == firsts[1]
    # What is right differs by a picture between CPUs: a hundred iterations amplify the rounding of each.
    assert sum(name == ("green box", "pink box")[i % 2] for i, name in enumerate(firsts[0])) >= 4


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err.strip()
    assert "\n" not in text, text
    return text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "yolact_resnet"], "did you mean yolact_resnet50"),
        (["--recipe", "yolact_base"], "--data is missing"),
        (["--data", "nowhere.yaml"], "no such dataset: nowhere.yaml"),
        (["--data", "SET", "--set", "lrr=1"], "did you mean lr?"),
        (["--data", "SET", "--weights", "nothing.pth"], "no such weights file"),
        (["--data", "SET", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny.tiny_set(tmp_path / "set")) if a == "SET" else a for a in arguments]
    recipe = [] if "--recipe" in given else ["--recipe", "shapes_demo"]
    assert cli.main(["train", *recipe, *given, "-o", str(tmp_path / "run")]) == 2
    assert words in error_of(capsys)


def test_a_broken_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.tiny_set(tmp_path / "set")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state_00000004.pt").write_bytes(b"PK\x03\x04 half")
    assert train("--data", data, "-o", tmp_path / "run", "--resume") == 2
    assert "state_00000004.pt is damaged" in error_of(capsys)


def test_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = two_classes(tmp_path / "set")
    content = json.loads((tmp_path / "set" / "boxes.json").read_text())
    (tmp_path / "set" / "boxes.json").write_text(json.dumps({**content, "images": [], "annotations": []}))
    assert train("--data", data, "-o", tmp_path / "run") == 2
    assert "boxes.json" in error_of(capsys)
    assert not os.path.lexists(tmp_path / "run")


def test_a_stop_is_told_and_its_exit_code_is_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yolact_deploy.training.interrupt import StopRequest

    def pressed(self: StopRequest) -> StopRequest:
        self.wanted = True
        return self

    monkeypatch.setattr(StopRequest, "__enter__", pressed)
    data = tiny.tiny_set(tmp_path / "set")
    arguments = ["train", "--recipe", "shapes_demo", "--data", str(data), "-o", str(tmp_path / "run"), "--workers", "0"]
    assert cli.main([*arguments, "--device", "cpu", *tiny.as_arguments()]) == 2
    assert "stopped after 1 iterations" in capsys.readouterr().out
    assert (tmp_path / "run" / "state_00000001.pt").exists()


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--recipe", "list"]) == 0
    assert "yolact_darknet53" in capsys.readouterr().out
    assert cli.main(["train", "--recipe", "yolact_base", "--set", "help"]) == 0
    assert "augmentation.mirror" in capsys.readouterr().out

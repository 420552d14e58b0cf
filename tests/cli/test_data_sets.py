"""``data split``, ``merge`` and ``view``, and other formats as ``--data`` of the commands."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

import tiny
from format_sets import masks_of, worst_iou, write_coco

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.calibration_images import calibration_images
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.preprocess import read_image
from yolact_deploy.training.model_card import NAME


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    assert main(["data", "shapes", "-o", str(folder), "--train", "24", "--val", "4", "--size", "96x80", "--quiet"]) == 0
    return folder


def test_split_has_every_class_in_each_part(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        words = ["data", "split", str(shapes), "-o", str(tmp_path / name), "--val", "0.25", "--seed", "3", "--json"]
        assert main([*words, "--pictures", "link"]) == 0
    facts = [json.loads(part) for part in capsys.readouterr().out.replace("}\n{", "}\0{").split("\0")]
    assert {name: part["images"] for name, part in facts[0]["splits"].items()} == {"train": 21, "val": 7}
    files = [(tmp_path / n / "annotations" / "instances_val.json").read_text() for n in ("a", "b")]
    assert files[0] == files[1]
    content = json.loads(files[0])
    used = {a["category_id"] for a in content["annotations"]}
    assert used == {c["id"] for c in content["categories"]}
    assert main(["data", "check", str(tmp_path / "a"), "--deep", "--json"]) == 0


@pytest.mark.parametrize("words", [["--val", "1"], ["--val", "0.6", "--test", "0.5"], ["--val", "nan"]])
def test_shares_that_leave_nothing(words: list[str], shapes: Path, tmp_path: Path) -> None:
    assert main(["data", "split", str(shapes), "-o", str(tmp_path / "x"), *words]) == 2


def test_merge_joins_classes_by_name(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = write_coco(tmp_path / "coco")
    assert main(["data", "merge", str(coco), str(shapes), str(coco), "-o", str(tmp_path / "all"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["images"] == 3 + 24 + 3
    assert facts["classes"][:3] == ["cat", "traffic light", "owl"]
    assert len(facts["classes"]) == 3 + 8
    assert sum(count for note, count in facts["notes"].items() if "renamed" in note) == 4
    count = Counter(o[0] for objects in masks_of(tmp_path / "all").values() for o in objects)
    own = Counter(o[0] for objects in masks_of(coco).values() for o in objects)
    assert all(count[name] == 2 * number for name, number in own.items())


def test_view_draws_the_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = write_coco(tmp_path / "coco")
    assert main(["data", "view", str(coco), "-o", str(tmp_path / "sheet.png"), "--split", "train"]) == 0
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] == 3 * 320
    source = read_image(coco / "images" / "train" / "a.png")
    cell = sheet[130:190, 120:200]
    changed = (cell != source).any(axis=2)
    masks = np.logical_or.reduce([mask for _, _, mask in masks_of(coco)["a"]])
    assert changed[masks].mean() > 0.95
    assert not changed[~cv2.dilate(masks.astype(np.uint8), np.ones((3, 3))).astype(bool)].any()
    assert main(["data", "view", str(coco), "-o", str(tmp_path / "sheet.html"), "--class", "cat", "--json"]) == 0
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<figure>") == 3
    assert "traffic light" not in page.partition("<main>")[2]
    assert main(["data", "view", str(coco), "-o", str(tmp_path / "sheet.gif")]) == 2
    assert main(["data", "view", str(coco), "-o", str(tmp_path / "s.png"), "--class", "cow"]) == 2
    assert "has no class 'cow'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target", ["yolo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("labelme", "cvat", "masks"))]
)
@pytest.mark.slow
def test_another_format_as_data(target: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is checked, evaluated, calibrated on, and trained on without a dataset file."""
    folder = tmp_path / target
    assert main(["data", "convert", str(shapes), "-o", str(folder), "--to", target, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(folder)]) == 0
    assert f"note: {folder}: " in capsys.readouterr().err
    assert len(open_images(coco=folder)) == 4
    assert len(calibration_images(folder)) == 24
    run = tmp_path / "run"
    settings = tiny.as_arguments((*tiny.SETTINGS, "iterations=20", "eval_interval=0", "save_interval=100"))
    words = ["train", "--recipe", "shapes_demo", "--data", str(folder), "-o", str(run), *settings, "--workers", "0"]
    assert main([*words, "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert "training: 20/20" in output.err
    assert f"next: yolact-deploy export --weights {run}" in output.err
    card = (run / NAME).read_text()
    assert "| train | 24 |" in card
    assert "find it out before you pass the weights on" in card


def test_coco_in_odd_layouts(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco")
    truth = masks_of(coco)
    odd = tmp_path / "odd"
    (odd / "data").mkdir(parents=True)
    content = json.loads((coco / "annotations" / "instances_val.json").read_text())
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    for category in content["categories"][1:]:
        category["supercategory"] = "animals"
    (odd / "labels.json").write_text(json.dumps(content))
    (coco / "images" / "val" / "c.png").rename(odd / "data" / "c.png")
    assert len(open_images(coco=odd)) == 1
    assert main(["data", "convert", str(odd), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert "animals" not in (tmp_path / "out" / "dataset.yaml").read_text()
    assert worst_iou({"c": truth["c"]}, masks_of(tmp_path / "out")) == 1

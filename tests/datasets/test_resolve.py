"""A dataset in any common layout is accepted by train, data check, bench, eval and --calibration alike."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from few import few

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from scripted import SCRIPT, ScriptedBackend, coco_content, predictor, write_pictures

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.calibration_images import calibration_images
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.datasets.resolve import has_annotations, resolve_dataset
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation import engines
from yolact_deploy.training.data import CocoDataset, open_dataset

YAML = """\
names: [cat, dog, owl]
train: {annotations: a.json, images: some}
val: {annotations: b.json, images: other}
"""

#: per split: annotations file and folder of the pictures
LAYOUTS = {
    "coco": {"train": ("annotations/instances_train2017.json", "train2017"),
             "val": ("annotations/instances_val2017.json", "val2017")},
    "named like the splits": {"train": ("annotations/instances_train.json", "train"),
                              "val": ("annotations/instances_val.json", "val")},
    "below images": {"train": ("annotations/instances_train.json", "images/train"),
                     "val": ("annotations/instances_val.json", "images/val")},
    "years in the files alone": {"train": ("annotations/instances_train2017.json", "images/train"),
                                 "val": ("annotations/instances_val2017.json", "images/valid")},
    "one folder": {"train": ("annotations/instances_train.json", "images"),
                   "val": ("annotations/instances_val.json", "images")},
    "beside the pictures": {"train": ("instances_train.json", "."), "val": ("instances_val.json", ".")},
    "roboflow": {"train": ("train/_annotations.coco.json", "train"), "val": ("valid/_annotations.coco.json", "valid"),
                 "test": ("test/_annotations.coco.json", "test")},
    "one file": {"train": ("annotations/instances_default.json", "images/default")},
    "one roboflow folder": {"train": ("_annotations.coco.json", ".")},
    "training and others": {"train": ("annotations/instances_train.json", "images"),
                            "other": ("annotations/instances_other.json", "images")},
    "described": {"train": ("a.json", "some"), "val": ("b.json", "other")},
}  # fmt: skip


def write(folder: Path, layout: str) -> Path:
    """Two pictures for each split, named after it."""
    for split, (file, images) in LAYOUTS[layout].items():
        content: dict[str, Any] = coco_content(numbers=(1, 2))
        (folder / images).mkdir(parents=True, exist_ok=True)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        for record, picture in zip(content["images"], write_pictures(folder / "made", (1, 2)), strict=True):
            record["file_name"] = f"{split}_{picture.name}"
            picture.rename(folder / images / record["file_name"])
        (folder / file).write_text(json.dumps(content))
        shutil.rmtree(folder / "made")
    if layout == "described":
        (folder / "set.yaml").write_text(YAML)
    return folder


def split_of(paths: list[Path]) -> set[str]:
    return {path.name.partition("_")[0] for path in paths}


@pytest.mark.parametrize("layout", few(LAYOUTS, 0, 3, 6))
def test_every_command_takes_it(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "set", layout)
    held_out = "val" if "val" in LAYOUTS[layout] else "train"
    spec = open_dataset(folder)
    assert split_of([spec.split("train").images / CocoDataset.of_split(spec, "train").record(0).file_name]) == {"train"}
    assert ("val" in spec.splits) == (held_out == "val")
    images = open_images(coco=folder)
    assert (len(images), split_of(images.paths)) == (2, {held_out})
    assert all(path.is_file() for path in images.paths)
    assert split_of(calibration_images(folder)) == {"train"}
    assert len(calibration_images(folder)) == 2

    monkeypatch.setattr(engines, "load", lambda *_, **__: predictor(ScriptedBackend(SCRIPT, name="onnxruntime")))
    (tmp_path / "m.onnx").write_bytes(b"model")
    common = ["--engine", str(tmp_path / "m.onnx"), "--coco", str(folder), "--json", "--quiet"]
    for command in (["eval", *common], ["bench", *common], ["data", "check", str(folder), "--json"]):
        assert main(command) == 0, capsys.readouterr().err
        json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("layout", ["named like the splits", "roboflow", "described"])
def test_an_annotations_file_alone_finds_its_pictures(layout: str, tmp_path: Path) -> None:
    folder = write(tmp_path, layout)
    file, images = LAYOUTS[layout]["val"]
    if layout == "described":
        with pytest.raises(DatasetError, match="none of the 2 images"):
            open_images(annotations=folder / file)
        assert len(open_images(annotations=folder / file, images_dir=folder / images)) == 2
        return
    assert split_of(open_images(annotations=folder / file).paths) == {"val"}
    assert split_of(open_images(coco=folder / file).paths) == {"val"}
    assert open_dataset(folder / file).split("val").images == folder / images


@pytest.mark.parametrize("source", ["annotations/instances_val.json", ".", "set.yaml"])
def test_pictures_named_apart(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--images-dir has one meaning in every command."""
    folder = write(tmp_path / "set", "one folder")
    (folder / "set.yaml").write_text("val: {annotations: annotations/instances_val.json, images: .}\n")
    if source == ".":
        (folder / "set.yaml").unlink()
    elsewhere = tmp_path / "elsewhere"
    (folder / "images").rename(elsewhere)
    assert main(["data", "check", str(folder / source)]) == 2
    assert "missing image" in capsys.readouterr().err
    assert main(["data", "check", str(folder / source), "--images-dir", str(elsewhere)]) == 0
    assert split_of(open_images(coco=folder / source, images_dir=elsewhere).paths) == {"val"}
    assert open_dataset(folder / source, images_dir=elsewhere).split("val").images == elsewhere
    with pytest.raises(DatasetError, match="--images-dir: expected a folder, there is none"):
        open_dataset(folder / source, images_dir=tmp_path / "absent")


def test_only_a_held_out_split(tmp_path: Path) -> None:
    folder = write(tmp_path, "named like the splits")
    (folder / "annotations" / "instances_train.json").unlink()
    assert split_of(open_images(coco=folder).paths) == {"val"}
    assert split_of(calibration_images(folder)) == {"val"}
    with pytest.raises(DatasetError, match="has no 'train', only val"):
        open_dataset(folder).split("train")


def test_pictures_in_folders_of_their_own(tmp_path: Path) -> None:
    """The names of the records lead into them."""
    folder = write(tmp_path, "one folder")
    for split, (file, images) in LAYOUTS["one folder"].items():
        content = json.loads((folder / file).read_text())
        (folder / images / "deep" / split).mkdir(parents=True)
        for record in content["images"]:
            name = f"deep/{split}/{record['file_name']}"
            (folder / images / record["file_name"]).rename(folder / images / name)
            record["file_name"] = name
        (folder / file).write_text(json.dumps(content))
    assert split_of(calibration_images(folder)) == {"train"}
    assert split_of(open_images(coco=folder).paths) == {"val"}
    assert len(CocoDataset.of_split(open_dataset(folder), "train")) == 2


def test_the_classes_of_a_dataset_file_are_evaluated(tmp_path: Path) -> None:
    folder = write(tmp_path, "described")
    (folder / "set.yaml").write_text(YAML.replace("cat, dog, owl", "owl, dog"))
    content = open_images(coco=folder / "set.yaml").content
    assert content is not None
    assert [category["name"] for category in content["categories"]] == ["dog", "owl"]
    assert {annotation["category_id"] for annotation in content["annotations"]} == {7, 9}


def test_yaml_files_of_other_tools_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, "coco")
    (folder / "data.yaml").write_text("names: {0: cat}\ntrain: images/train\nval: images/val\n")
    with caplog.at_level(logging.WARNING):
        assert len(resolve_dataset(folder).splits) == 2
        assert not caplog.records
        (folder / "broken.yaml").write_text("names: [cat")
        assert len(resolve_dataset(folder).splits) == 2
    assert "ignoring" in caplog.text


def test_several_dataset_files(tmp_path: Path) -> None:
    folder = write(tmp_path, "described")
    (folder / "other.yaml").write_text(YAML)
    for use in (open_dataset, has_annotations, calibration_images, lambda path: open_images(coco=path)):
        with pytest.raises(DatasetError, match=r"several dataset files \(other.yaml, set.yaml\)"):
            use(folder)


def test_has_annotations(tmp_path: Path) -> None:
    assert has_annotations(write(tmp_path / "set", "coco"))
    assert not has_annotations(tmp_path / "set" / "val2017")
    assert not has_annotations(tmp_path / "nothing")

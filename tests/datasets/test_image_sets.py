"""Finding, checking and choosing the images of a benchmark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data import data_dir
from scripted import CONFIG, coco_content, write_coco, write_pictures

from yolact_deploy.config import get_config
from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.datasets.image_sets import open_images, plain_images
from yolact_deploy.errors import DatasetError

Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("name", ["annotations/instances_val2017.json", "instances_x.json"])
@pytest.mark.parametrize("pictures", ["images", "val2017", "train2017", "."])
def test_layouts(tmp_path: Path, name: str, pictures: str) -> None:
    write_coco(tmp_path, name=name)
    if pictures != "images":
        shutil.copytree(tmp_path / "images", tmp_path / pictures, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "images")
    images = open_images(coco=tmp_path)
    assert images.image_ids == [1, 2, 3]
    assert images.annotations == tmp_path / name
    assert [path.parent.resolve() for path in images.paths] == [(tmp_path / pictures).resolve()] * 3
    assert images.describe() == f"3 images ({Path(name).name})"


def test_file_and_folder_named(tmp_path: Path) -> None:
    file = write_coco(tmp_path)
    moved = shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    assert len(open_images(annotations=file, images_dir=moved)) == 3


def test_limit_takes_the_first_by_image_id(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].reverse()
    write_coco(tmp_path, content)
    images = open_images(coco=tmp_path, limit=2)
    assert images.image_ids == [1, 2]
    assert images.describe() == "the first 2 of 3 images (instances_val2017.json)"
    assert images.select(images.image_ids[1:]).describe() == "1 of 3 images (instances_val2017.json)"


def test_limit_passes_over_missing_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_coco(tmp_path)
    (tmp_path / "images/000001.png").unlink()
    assert open_images(coco=tmp_path, limit=2).image_ids == [2, 3]
    assert not caplog.records
    assert open_images(coco=tmp_path, limit=3).image_ids == [2, 3]
    assert "only 2 images have files" in caplog.text


def test_val_is_taken_among_several(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco(tmp_path, name="annotations/instances_train2017.json")
    images = open_images(coco=tmp_path)
    assert images.annotations is not None
    assert images.annotations.name == "instances_val2017.json"
    chosen = open_images(coco=tmp_path, annotations=tmp_path / "annotations/instances_train2017.json")
    assert "instances_train2017.json" in chosen.describe()


def test_several_without_a_favorite(tmp_path: Path) -> None:
    write_coco(tmp_path, name="instances_a.json")
    write_coco(tmp_path, name="instances_b.json")
    with pytest.raises(DatasetError, match=r"instances_a.json, instances_b.json.*--annotations"):
        open_images(coco=tmp_path)


def test_plain_pictures(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    for images in (open_images(coco=tmp_path), open_images(images_dir=tmp_path), plain_images(paths)):
        assert images.content is None
        assert images.paths == paths
    assert open_images(coco=tmp_path, limit=2).describe() == "the first 2 of 3 images (pictures without annotations)"
    assert images.category_ids(CONFIG) == CONFIG.category_ids


@pytest.mark.parametrize("suffix", [".jp2", ".pgm", ".hdr", ""])
def test_what_opencv_reads_is_a_picture(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    (picture,) = write_pictures(tmp_path / "set", [1])
    picture_of: dict[str, Any] = {".pgm": np.full((60, 80), 9, np.uint8), ".hdr": np.full((60, 80, 3), 0.4, np.float32)}
    encoded = cv2.imencode(suffix or ".png", picture_of.get(suffix, np.full((60, 80, 3), 9, np.uint8)))[1]
    (tmp_path / "set" / f"b{suffix}").write_bytes(np.asarray(encoded).tobytes())
    assert [path.name for path in plain_images([tmp_path / "set"]).paths] == [picture.name, f"b{suffix}"]
    assert not caplog.messages


def test_what_is_left_out_of_a_folder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path)
    for name in ("notes.txt", "clip.mp4", "._000001.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "sub").mkdir()
    assert len(open_images(coco=tmp_path)) == 3
    lines = sorted(message.removeprefix(f"{tmp_path}: left out ") for message in caplog.messages)
    assert lines == [
        "1 dead links: gone.jpg",
        "2 files that OpenCV cannot read as pictures: clip.mp4, notes.txt",
        "2 hidden files: .DS_Store, ._000001.png",
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(annotations={}), "no list 'annotations'"),
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c.update(images={}), "no list 'images'"),
        (lambda c: c.update(images=[]), "1 x no images"),
        (lambda c: c["images"][1].pop("width"), r"1 x malformed image record \(number 1: no width\)"),
        (lambda c: c["images"].append(c["images"][0]), r"duplicate image id \(1\)"),
        (lambda c: c["images"][0].update(id="1"), r"malformed image record \(number 0: id is '1', expected an"),
        (lambda c: c["images"][0].update(file_name=3), r"malformed image record \(number 0: file_name is 3"),
        (lambda c: c["images"].append(7), r"malformed image record \(number 3: 7\)"),
        (lambda c: c["annotations"][0].pop("id"), r"malformed annotation \(number 0: no id\)"),
        (lambda c: c["annotations"][1].pop("bbox"), r"malformed annotation \(annotation 2: no bbox\)"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"impossible box \(annotation \d+: bbox \[1, 2, 3\]\)"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "impossible box"),
        (
            lambda c: c["annotations"][0].update(category_id=99),
            r"unknown category id \(annotation 1: category_id 99\)",
        ),
        (lambda c: c["annotations"][1].update(id=1), r"duplicate annotation id \(annotation 1\)"),
    ],
)
def test_malformed_annotations(tmp_path: Path, edit: Edit, message: str) -> None:
    content = coco_content()
    edit(content)
    write_coco(tmp_path, content)
    with pytest.raises(DatasetError, match=message):
        open_images(coco=tmp_path)


def test_not_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, [1, 2])
    with pytest.raises(DatasetError, match="expected a JSON object, got a list"):
        open_images(coco=tmp_path)
    file = tmp_path / "broken.json"
    file.write_text('{"images": [')
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_annotations(file)
    with pytest.raises(DatasetError, match="no such annotation file"):
        read_annotations(tmp_path / "absent.json")


def test_a_missing_iscrowd_is_none(tmp_path: Path) -> None:
    content = coco_content()
    del content["annotations"][0]["iscrowd"]
    file = write_coco(tmp_path, content)
    assert read_annotations(file)["annotations"][0]["iscrowd"] == 0


def test_missing_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "images/000002.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 3 images.*000002.png.*--limit 2"):
        open_images(coco=tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DatasetError, match=r"none of the 3 images.*--images-dir"):
        open_images(coco=tmp_path)


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no images named"):
        open_images()
    with pytest.raises(DatasetError, match=r"no such dataset: .*absent"):
        open_images(coco=tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="--images-dir: expected a folder, it is a file"):
        open_images(images_dir=tmp_path / "file")
    with pytest.raises(DatasetError, match="has no pictures"):
        open_images(coco=tmp_path)
    with pytest.raises(DatasetError, match="no such picture"):
        plain_images([tmp_path / "absent.jpg"])
    with pytest.raises(DatasetError, match="expected 1 or more, got 0"):
        open_images(coco=tmp_path, limit=0)


def test_the_shared_set() -> None:
    images = open_images(coco=data_dir("coco_mini"))
    assert images.describe() == "72 images (instances_val_mini.json)"
    assert images.category_ids(base := get_config("yolact_base")) == base.category_ids
    json.dumps(images.to_json())

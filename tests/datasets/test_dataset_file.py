"""The description of a dataset: what it may contain, and the errors of everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from sets import SPEC, content, write_set

from yolact_deploy.errors import DatasetError
from yolact_deploy.training.data import open_dataset

TRAIN = "train: {annotations: train.json, images: images}\n"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    spec = open_dataset(write_set(tmp_path))
    assert spec.split("train").annotations == tmp_path / "train.json"
    assert spec.split("val").images == tmp_path / "images"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [cat, dog]\n", {"cat": 7, "dog": 42}),
        ("names: [dog, cat]\n", {"dog": 42, "cat": 7}),
        ("names: {42: hound, 7: tom}\n", {"hound": 42, "tom": 7}),
        ("", {"cat": 7, "dog": 42}),
    ],
)
def test_classes_by_name_by_id_or_of_the_file(tmp_path: Path, names: str, expected: dict[str, int]) -> None:
    spec = open_dataset(write_set(tmp_path, spec=names + TRAIN))
    assert dict(zip(spec.names, spec.category_ids, strict=True)) == expected
    assert list(spec.names) == list(expected)
    assert spec.classes == {number: name for name, number in expected.items()}


def test_a_folder_with_one_yaml_file(tmp_path: Path) -> None:
    assert open_dataset(write_set(tmp_path).parent).names == ("cat", "dog")


@pytest.mark.parametrize("pictures", ["train2017", "images/train2017", "images", "."])
def test_a_coco_folder(tmp_path: Path, pictures: str) -> None:
    write_set(tmp_path / "old")
    (tmp_path / "new" / "annotations").mkdir(parents=True)
    (tmp_path / "new" / "images").mkdir()
    (tmp_path / "old" / "train.json").rename(tmp_path / "new" / "annotations" / "instances_train2017.json")
    (tmp_path / "new" / pictures).mkdir(parents=True, exist_ok=True)
    for picture in (tmp_path / "old" / "images").iterdir():
        picture.rename(tmp_path / "new" / pictures / picture.name)
    spec = open_dataset(tmp_path / "new")
    assert list(spec.splits) == ["train"]
    assert (spec.split("train").images / "1.png").is_file()
    assert spec.category_ids == (7, 42)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [cat", "not valid YAML"),
        ("- cat", "not a dataset file"),
        ("names: [cat, dog]\n", "neither train nor val"),
        ("names: [cat, dog]\ntest: {}\n" + TRAIN, "unknown 'test'"),
        ("names: [cat, cow]\n" + TRAIN, "no category called 'cow', only 'cat', 'dog'"),
        ("names: [cat, cat]\n" + TRAIN, "two classes called 'cat'"),
        ("names: cat\n" + TRAIN, "expected a list of names"),
        ("names: {cat: 7}\n" + TRAIN, "names by category id"),
        ("train: {annotations: train.json}\n", "'annotations: FILE' and 'images: DIR'"),
        ("train: {annotations: 3, images: images}\n", "expected paths"),
        ("train: {annotations: train.json, images: absent}\n", "no such folder of images"),
        ("train: {annotations: absent.json, images: images}\n", "no such annotation file"),
        ("train: {annotations: set.yaml, images: images}\n", "not valid JSON"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_dataset(write_set(tmp_path, spec=text))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset"):
        open_dataset(tmp_path / "absent.yaml")
    with pytest.raises(DatasetError, match="write a dataset file"):
        open_dataset(tmp_path)
    write_set(tmp_path)
    with pytest.raises(DatasetError, match="has no 'val', only train"):
        open_dataset(write_set(tmp_path, spec=SPEC.splitlines()[0] + "\n" + TRAIN)).split("val")


def test_categories_must_be_distinct(tmp_path: Path) -> None:
    data = content()
    data["categories"].append({"id": 7, "name": "cow"})
    with pytest.raises(DatasetError, match="two categories with id 7"):
        open_dataset(write_set(tmp_path, data))

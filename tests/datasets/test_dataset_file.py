"""The description of a dataset: what it may contain, and the errors of everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from sets import SPEC, content, write_set

from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.errors import DatasetError
from yolact_deploy.training.data import open_dataset

TRAIN = "train: {annotations: train.json, images: images}\n"
#: written out, it has 9 ** 9 words
LAUGHS = ", ".join(["[&a0 [" + "x, " * 9 + "]", *(f"&a{i} [" + f"*a{i - 1}, " * 9 + "]" for i in range(1, 10))]) + "]"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    spec = open_dataset(write_set(tmp_path))
    assert spec.split("train").annotations == tmp_path / "train.json"
    assert spec.split("val").images == tmp_path / "images"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [cat, dog]\n", {"cat": 7, "dog": 42}),
        ("names: [dog, cat]\n", {"dog": 42, "cat": 7}),
        ("names: {42: dog, 7: cat}\n", {"dog": 42, "cat": 7}),
        ("", {"cat": 7, "dog": 42}),
    ],
)
def test_classes_by_name_by_id_or_of_the_file(tmp_path: Path, names: str, expected: dict[str, int]) -> None:
    spec = open_dataset(write_set(tmp_path, spec=names + TRAIN))
    assert dict(zip(spec.names, spec.category_ids, strict=True)) == expected
    assert list(spec.names) == list(expected)
    assert spec.classes == {number: name for name, number in expected.items()}


@pytest.mark.parametrize("names", ["{42: hound, 7: tom}", "{42: cat, 7: dog}"])
def test_names_that_the_annotations_do_not_have_are_refused(names: str, tmp_path: Path) -> None:
    """By training and evaluation alike: figures of a class under another name would mislead."""
    path = write_set(tmp_path, spec=f"names: {names}\n" + TRAIN)
    for use in (open_dataset, lambda source: open_images(coco=source)):
        with pytest.raises(DatasetError, match=r"set.yaml: names: category 42 is '\w+', but 'dog' in train.json"):
            use(path)


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
        ("names:\n" + TRAIN, "names has no value: list the classes"),
        (f"names: {LAUGHS}\n{TRAIN}", r"aliases \(\*name\), more than"),
        ("[" * 5000 + "]" * 5000, "opening brackets, more than"),
        ("{a: " * 5000 + "}" * 5000, "opening brackets, more than"),
        ("names: " + "[{a: " * 5000, "opening brackets, more than"),
        (f"train: {LAUGHS}\n", r"aliases \(\*name\), more than"),
        ("a: &a {x: 1}\nb: &b {<<: [*a, *a, *a]}\nc: {<<: [*b, *b, *b]}\n" + TRAIN, "unknown 'a', 'b', 'c'"),
        ("names: &n [*n]\n" + TRAIN, "expected a list of names"),
        ("names: &a [&b [&c [x, x], *c], *b]\n" + TRAIN, "expected a list of names"),
        ("&t {train: *t}\n", "'annotations: FILE' and 'images: DIR'"),
        ("[" * 20_000 + "]" * 20_000, "not valid YAML"),
        ("2020-13-45: 1\n" + TRAIN, "not valid YAML"),
        (f"names: {'9' * 9999}\n" + TRAIN, "not valid YAML"),
        ("names: !!python/object/apply:os.system ['true']\n" + TRAIN, "not valid YAML"),
        ("names: {99999999999999999999: cat}\n" + TRAIN, "names by category id"),
        ('train: {annotations: "a\\0b", images: images}\n', "cannot read annotation file"),
        ('train: {annotations: train.json, images: "a\\0b"}\n', "no such folder of images"),
        (f"train: {{annotations: train.json, images: {'x' * 5000}}}\n", "no such folder of images"),
        (f"{'x' * 1000}: 1\n" + TRAIN, "unknown 'x"),
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


ROOT = {"id": 0, "name": "pets", "supercategory": "none"}


@pytest.mark.parametrize(
    ("root", "above", "names"),
    [
        ({**ROOT, "name": "cat"}, "none", ("cat", "dog")),  # as Roboflow writes sets of one class
        (ROOT, "pets", ("cat", "dog")),
        (ROOT, "none", ("pets", "cat", "dog")),  # a class without objects
        ({**ROOT, "supercategory": "animals"}, "pets", ("pets", "cat", "dog")),
    ],
)
def test_a_category_above_all_others(tmp_path: Path, root: dict[str, Any], above: str, names: tuple[str, ...]) -> None:
    data = content()
    for category in data["categories"]:
        category["supercategory"] = above
    data["categories"].append(root)
    assert open_dataset(write_set(tmp_path, data, TRAIN)).names == names


def test_two_used_categories_of_one_name(tmp_path: Path) -> None:
    data = content()
    data["categories"][0]["name"] = "cat"
    with pytest.raises(DatasetError, match=r"two classes called 'cat'.*names: \{7: 'cat 7', 42: 'cat 42'\}"):
        open_dataset(write_set(tmp_path, data, TRAIN))
    named = open_dataset(write_set(tmp_path, data, "names: {7: 'cat 7', 42: 'cat 42'}\n" + TRAIN))
    assert named.names == ("cat 7", "cat 42")


def test_categories_must_be_distinct(tmp_path: Path) -> None:
    data = content()
    data["categories"].append({"id": 7, "name": "cow"})
    with pytest.raises(DatasetError, match="two categories with id 7"):
        open_dataset(write_set(tmp_path, data))

"""The generated set: the same everywhere, sound, and as hard as it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from yolact_deploy.datasets.shapes import KINDS, OUTLINES, render, write_shapes
from yolact_deploy.errors import DatasetError, OutputError
from yolact_deploy.training.data import CocoDataset, check_dataset, open_dataset

#: of labels, masks and crowds of the first images of seed 0 at 160 x 120
PINNED = "4564d54fe3135273"


def digest(first: int, last: int) -> str:
    """Of what is annotated; the pictures' blur is OpenCV's."""
    total = hashlib.sha256()
    for index in range(first, last):
        for shape in render(index, seed=0, height=120, width=160).shapes:
            total.update(bytes([shape.label, shape.iscrowd]))
            total.update(np.packbits(shape.mask).tobytes())
    return total.hexdigest()[:16]


def test_annotations_never_change() -> None:
    assert digest(0, 12) == PINNED


def test_each_index_and_seed_is_another_image() -> None:
    first, again, other, seeded = render(5), render(5), render(6), render(5, seed=1)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, seeded.image)


def test_every_kind_has_its_outline() -> None:
    assert len(KINDS) == len(OUTLINES)
    y, x = np.mgrid[-1.5:1.5:120j, -1.5:1.5:120j]
    drawn = [inside(x, y) for inside in OUTLINES]
    for i, mask in enumerate(drawn):
        assert 0.05 < mask.mean() < 0.5, KINDS[i]
        for other in drawn[:i]:
            assert (mask & other).sum() / (mask | other).sum() < 0.85


def test_images_are_varied() -> None:
    made = [render(i, height=120, width=160) for i in range(60)]
    areas = np.array([s.mask.sum() for m in made for s in m.shapes if not s.iscrowd])
    assert {s.label for m in made for s in m.shapes} == set(range(len(KINDS)))
    assert np.percentile(areas, 90) > 8 * np.percentile(areas, 10)  # small to large
    assert sum(s.iscrowd for m in made for s in m.shapes) >= 2
    assert len({len(m.shapes) for m in made}) >= 5


def test_what_is_seen_of_shapes_does_not_overlap() -> None:
    for index in range(20):
        masks = [shape.mask for shape in render(index, height=120, width=160).shapes]
        assert not masks or np.sum(masks, axis=0).max() <= 1


def test_a_written_set_is_sound_and_holds_the_masks(tmp_path: Path) -> None:
    names = list(write_shapes(tmp_path, {"train": 5, "val": 3}, seed=3, height=96, width=128))
    assert names == [f"train_{i:06d}.png" for i in range(5)] + [f"val_{i}.png" for i in range(1_000_000, 1_000_003)]
    spec = open_dataset(tmp_path)
    assert spec.names == KINDS
    report = check_dataset(spec, deep=True)
    assert [problem.kind for problem in report.errors] == []
    dataset = CocoDataset.of_split(spec, "val")
    for index in range(3):
        image, target = dataset[index]
        made = render(1_000_000 + index, seed=3, height=96, width=128)
        np.testing.assert_array_equal(image.permute(1, 2, 0), made.image[..., ::-1])
        shapes = sorted(made.shapes, key=lambda shape: shape.iscrowd)
        assert target["labels"].tolist() == [shape.label for shape in shapes]
        for mask, shape in zip(target["masks"], shapes, strict=True):
            np.testing.assert_array_equal(mask, shape.mask)


def test_a_longer_set_begins_as_a_shorter_one(tmp_path: Path) -> None:
    for name, count in (("a", 2), ("b", 3)):
        list(write_shapes(tmp_path / name, {"train": count}, height=96, width=128))
    a, b = (json.loads((tmp_path / n / "annotations/instances_train.json").read_text()) for n in "ab")
    assert b["annotations"][: len(a["annotations"])] == a["annotations"]


def test_held_out_images_are_the_same_beside_any_training_set(tmp_path: Path) -> None:
    for name, counts in (("a", {"train": 2, "val": 2}), ("b", {"train": 0, "val": 2})):
        list(write_shapes(tmp_path / name, counts, height=96, width=128))
    a, b = ((tmp_path / n / "annotations/instances_val.json").read_text() for n in "ab")
    assert a == b
    assert list(open_dataset(tmp_path / "b").splits) == ["val"]
    assert not list((tmp_path / "b" / "images").glob("train*"))


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(DatasetError, match="64 x 64"):
        render(0, height=40, width=300)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another folder"):
        list(write_shapes(tmp_path / "file" / "set", {"train": 1}))

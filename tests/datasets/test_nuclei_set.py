"""The dataset of cell nuclei, made from a small source in the form of the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.datasets import rle
from yolact_deploy.datasets.nuclei_set import HELD_OUT, pictures_in, write_nuclei
from yolact_deploy.errors import DatasetError

GRAY, STAINED = "a" * 64, HELD_OUT["val"].split()[0].ljust(64, "0")


def read(path: Path, flags: int) -> Any:
    picture = cv2.imread(str(path), flags)
    assert picture is not None
    return picture


def put(place: Path, picture: np.ndarray, masks: list[np.ndarray]) -> None:
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True)
    cv2.imwrite(str(place / "images" / f"{place.name}.png"), picture)
    for number, mask in enumerate(masks):
        cv2.imwrite(str(place / "masks" / f"{number}.png"), mask * np.uint8(255))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ring = np.zeros((20, 30), np.uint8)
    ring[4:12, 5:15], ring[7:9, 8:10] = 1, 0
    gray = rng.integers(0, 256, (20, 30, 1), np.uint8).repeat(4, axis=2)
    put(tmp_path / "stage1_train" / GRAY, gray, [ring, np.zeros_like(ring), ring[::-1]])
    put(tmp_path / "stage1_train" / STAINED, rng.integers(0, 256, (20, 30, 4), np.uint8), [ring])
    return tmp_path


def test_every_pixel_is_kept(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert list(write_nuclei(folder, source)) == [f"{STAINED[:16]}.png", f"{GRAY[:16]}.png"]
    for part, name, objects in (("train", GRAY, 2), ("val", STAINED, 1), ("test", "", 0)):
        content = json.loads((folder / "annotations" / f"instances_{part}.json").read_text())
        assert [image["file_name"][:16] for image in content["images"]] == ([name[:16]] if name else [])
        assert len(content["annotations"]) == objects  # the empty mask is none
    (stained,) = json.loads((folder / "annotations" / "instances_val.json").read_text())["annotations"]
    assert (stained["bbox"], stained["area"]) == ([5, 4, 10, 8], 76)
    mask = rle.decode(stained["segmentation"]["counts"].encode(), 20, 30)
    written = read(source / "stage1_train" / STAINED / "masks" / "0.png", cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(mask, written > 127)  # the hole is still one
    for name, channels in ((GRAY, 2), (STAINED, 3)):
        copied = read(folder / "images" / f"{name[:16]}.png", cv2.IMREAD_UNCHANGED)
        assert copied.ndim == channels
        original = read(source / "stage1_train" / name / "images" / f"{name}.png", cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(copied if channels == 3 else copied[..., None].repeat(3, axis=2), original)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no folder stage1_train with pictures: give a checkout of https"):
        pictures_in(tmp_path)


def test_a_mask_of_another_size_is_refused(source: Path, tmp_path: Path) -> None:
    path = source / "stage1_train" / GRAY / "masks" / "0.png"
    cv2.imwrite(str(path), np.full((9, 9), 255, np.uint8))
    with pytest.raises(DatasetError, match=r"0\.png is 9 x 9, its picture 30 x 20"):
        list(write_nuclei(tmp_path / "out", source))


def test_held_out_pictures_are_in_one_part_only() -> None:
    val, test = (set(HELD_OUT[part].split()) for part in ("val", "test"))
    assert (len(val), len(test), val & test) == (60, 40, set())

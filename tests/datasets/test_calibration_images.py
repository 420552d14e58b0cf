"""Which pictures are calibrated on, and what is reported about unusable ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_deploy.datasets.calibration_images import calibration_images, usable_images
from yolact_deploy.errors import InputError


def write(folder: Path, count: int, name: str = "{:03}.png", seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = [folder / name.format(i) for i in range(count)]
    for path in paths:
        assert cv2.imwrite(str(path), random.integers(0, 255, (24, 32, 3), np.uint8))
    return paths


def test_pictures_are_spread_evenly(tmp_path: Path) -> None:
    paths = write(tmp_path, 10)
    (tmp_path / "notes.txt").write_text("no picture")
    assert calibration_images(tmp_path) == calibration_images(tmp_path, 99) == paths
    assert calibration_images(tmp_path, 5) == paths[::2]
    assert calibration_images(tmp_path, 1) == paths[:1]


def test_training_pictures_of_a_coco_folder(tmp_path: Path) -> None:
    write(tmp_path / "val2017", 3)
    assert calibration_images(tmp_path) == sorted((tmp_path / "val2017").iterdir())
    paths = write(tmp_path / "train2017", 4)
    assert calibration_images(tmp_path) == paths
    assert calibration_images(tmp_path / "val2017", 2) == sorted((tmp_path / "val2017").iterdir())[:2]
    own = write(tmp_path, 2)
    assert calibration_images(tmp_path) == own


def test_a_folder_with_pictures_of_both_splits(tmp_path: Path) -> None:
    """The annotations say which ones belong to the training split."""
    shapes = pytest.importorskip("yolact_deploy.datasets.shapes")
    list(shapes.write_shapes(tmp_path, {"train": 3, "val": 2}))
    assert [path.name[:5] for path in calibration_images(tmp_path)] == ["train"] * 3
    assert len(calibration_images(tmp_path / "images")) == 5
    (tmp_path / "annotations" / "instances_train.json").unlink()
    assert len(calibration_images(tmp_path)) == 5


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pictures \(\.jpg.*\) in .*, nor in train2017.*: give a folder that has"):
        calibration_images(tmp_path)
    with pytest.raises(InputError, match="expected a folder with pictures, there is none"):
        calibration_images(tmp_path / "nothing")
    with pytest.raises(InputError, match="expected a folder with pictures, it is a file"):
        calibration_images(write(tmp_path, 1)[0])


def test_the_fingerprint_is_of_the_bytes(tmp_path: Path) -> None:
    paths = write(tmp_path / "a", 40)
    usable = usable_images(paths)
    assert usable.paths == tuple(paths)
    assert usable.notes == ()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert usable_images(sorted((tmp_path / "b").iterdir())).sha256 == usable.sha256
    assert usable_images(paths[::-1]).sha256 != usable.sha256
    assert usable_images(paths[1:]).sha256 != usable.sha256


def test_few_pictures_and_copies_are_reported(tmp_path: Path) -> None:
    paths = write(tmp_path, 31)
    shutil.copy(paths[0], tmp_path / "copy.png")
    usable = usable_images([*paths, tmp_path / "copy.png"])
    assert usable.paths == tuple(paths)
    assert [note.partition(":")[0] for note in usable.notes] == [
        "left out of the calibration",
        "only 31 pictures for the calibration",
    ]
    assert "1 copies" in usable.notes[0]


def test_some_useless_pictures_are_left_out(tmp_path: Path) -> None:
    paths = write(tmp_path, 40)
    paths[3].write_bytes(b"no picture")
    cv2.imwrite(str(paths[5]), np.full((24, 32, 3), (20, 200, 90), np.uint8))
    usable = usable_images(paths)
    assert usable.paths == tuple(p for i, p in enumerate(paths) if i not in (3, 5))
    assert usable.notes == (
        "left out of the calibration: 1 cannot be read (first: 003.png)",
        "left out of the calibration: 1 have a single color (first: 005.png)",
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_constant_pictures(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{i}{suffix}" for i in range(3)]
    for shade, path in enumerate(paths):
        cv2.imwrite(str(path), np.full((300, 200, 3), (80 * shade, 10, 0), np.uint8))
    with pytest.raises(InputError, match=rf"of 3 calibration pictures, 3 have a single color \(first: 0\{suffix}"):
        usable_images(paths)


def test_too_many_useless_pictures(tmp_path: Path) -> None:
    paths = write(tmp_path, 20)
    for path in paths[:3]:
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"of 20 calibration pictures, 3 cannot be read \(first: 000\.png\)"):
        usable_images(paths)
    with pytest.raises(InputError, match="of 0 calibration pictures, none exists"):
        usable_images([])

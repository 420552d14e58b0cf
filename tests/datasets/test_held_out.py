"""Pictures to calibrate on are not those to judge by, where there are enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolact_deploy.datasets.calibration_images import calibration_apart, judged_of_folder, spread
from yolact_deploy.datasets.image_sets import plain_images
from yolact_deploy.errors import InputError


def make_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:04d}.png").write_bytes(b"")  # nothing reads them here
    return folder


def test_one_folder_for_both(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "pictures", 200)
    judged = judged_of_folder(folder, 100)
    assert len(judged) == 40, "a fifth at most"
    numbers = [int(path.stem) for path in judged.paths]
    assert numbers == list(range(0, 200, 5)), "from all over the folder"
    paths, note = calibration_apart(folder, 100, judged)
    assert (len(paths), note) == (100, "")
    assert not set(paths).intersection(judged.paths)
    assert len(calibration_apart(folder, None, judged)[0]) == 160
    assert calibration_apart(folder, 100, judged)[0] == paths
    assert len(judged_of_folder(folder, 7)) == 7


def test_links_to_the_same_pictures(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "pictures", 100)
    (tmp_path / "again").symlink_to(folder)
    judged = plain_images([tmp_path / "again"], 50)
    paths, note = calibration_apart(folder, 500, judged)
    assert [path.name for path in paths] == [f"{i:04d}.png" for i in range(50, 100)]
    assert note == ""


def test_other_folders(tmp_path: Path) -> None:
    a, b = make_files(tmp_path / "a", 40), make_files(tmp_path / "b", 40)
    paths, note = calibration_apart(a, None, plain_images([b]))
    assert (len(paths), note) == (40, "")


def test_too_few_to_keep_apart(tmp_path: Path) -> None:
    """Then ranges come from all, with a note."""
    folder = make_files(tmp_path / "pictures", 60)
    paths, note = calibration_apart(folder, None, plain_images([folder], 50))
    assert len(paths) == 60
    assert note.startswith("only 10 calibration pictures are not among those that the result is judged by")
    few = make_files(tmp_path / "few", 3)
    assert len(judged_of_folder(few, 100)) == 1
    paths, note = calibration_apart(few, None, judged_of_folder(few, 100))
    assert len(paths) == 3
    assert note.startswith("only 2 calibration pictures")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--calibration: expected a folder"):
        judged_of_folder(tmp_path / "none", 10)


def test_spread() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread([1, 2], 5) == [1, 2]

"""What is written in a format and read again has the same objects, parts, holes, crowds and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

from format_sets import masks_of, parts_mask, ring_mask, worst_iou, write_coco

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.convert import TARGETS, read_any
from yolact_deploy.datasets.formats.mask_shapes import join_rings, mask_rle, one_outline, pixel_rings, pixels
from yolact_deploy.datasets.resolve import resolve_dataset

#: formats that cannot say that an object is a crowd
WITHOUT_CROWDS = ("yolo", "masks")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pictures", ["copy", "link"])
def test_there_and_back(target: str, pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_coco(tmp_path / "source"), tmp_path / target
    words = ["data", "convert", str(source), "-o", str(out), "--to", target, "--pictures", pictures, "--json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["splits"]["train"] == {"images": 3, "objects": 4, "crowds": 1}
    assert any("crowd" in note for note in printed["notes"]) == (target != "coco")
    back = read_any(out)
    crowds = target not in WITHOUT_CROWDS
    assert worst_iou(masks_of(source), masks_of(back), crowds=crowds) >= 0.99
    assert {name: len(part) for name, part in back.splits.items()} == {"train": 3, "val": 1}
    classes = {"cat", "traffic light"} | ({"owl"} if target != "masks" else set())
    assert set(back.names) == classes
    assert main(["data", "check", str(out), "--json"]) == 0


def test_coco_keeps_ids_and_pictures_where_they_are(tmp_path: Path) -> None:
    source, out = write_coco(tmp_path / "coco"), tmp_path / "out"
    assert main(["data", "convert", str(source), "-o", str(out), "--pictures", "keep", "--quiet"]) == 0
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert [c["id"] for c in content["categories"]] == [3, 9, 11]
    assert not (out / "images").exists()
    assert worst_iou(masks_of(source), masks_of(out)) == 1


def test_a_folder_with_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_coco(tmp_path / "coco")
    assert main(["data", "convert", str(source), "-o", str(source)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_direct_use_reads_once_until_a_file_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_coco(tmp_path / "coco"), tmp_path / "yolo"
    assert main(["data", "convert", str(source), "-o", str(out), "--to", "yolo", "--quiet"]) == 0
    first = resolve_dataset(out)
    assert [split.name for split in first.splits] == ["train", "val"]
    before = first.splits[0].annotations.stat().st_mtime_ns
    assert resolve_dataset(out / "data.yaml").splits[0].annotations != first.splits[0].annotations
    assert resolve_dataset(out).splits[0].annotations.stat().st_mtime_ns == before
    labels = out / "labels" / "train" / "a.txt"
    labels.write_text(labels.read_text().splitlines()[0] + "\n")
    split = resolve_dataset(out).splits[0]
    assert sum(a["image_id"] == 1 for a in json.loads(split.annotations.read_text())["annotations"]) == 1


@pytest.mark.parametrize("make", [ring_mask, parts_mask])
def test_one_outline_has_the_same_pixels(make: Callable[[], np.ndarray[tuple[int, int], np.dtype[np.bool_]]]) -> None:
    mask = make()
    height, width = mask.shape
    outline = one_outline(mask_rle(mask), height, width)
    assert np.array_equal(pixels([outline.ravel().tolist()], height, width), mask)


def test_borders_of_random_masks() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        mask = rng.random((9, 11)) < 0.5
        if not mask.any():
            continue
        ring = join_rings(pixel_rings(mask)).ravel().astype(float).tolist()
        assert np.array_equal(pixels([ring], 9, 11), mask)


def test_parts_that_overlap_do_not_cancel_out() -> None:
    rings = [[2.0, 2, 20, 2, 20, 20, 2, 20], [10.0, 10, 30, 10, 30, 30, 10, 30]]
    outline = one_outline(rings, 40, 40)
    assert np.array_equal(pixels([outline.ravel().tolist()], 40, 40), pixels(rings, 40, 40))

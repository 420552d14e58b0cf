"""The choice of the sixteen images and the set made of them; the training itself is a matter of minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from yolact_deploy.benchmarks.scenarios.sixteen_photographs import LEAST_SIDE, choose, main, write_subset
from yolact_deploy.datasets.image_sets import open_images
from yolact_deploy.datasets.shapes import write_shapes
from yolact_deploy.errors import DatasetError
from yolact_deploy.training.data import CocoDataset, open_dataset


def _annotation(image: int, side: float = 50.0, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "area": side**2, "iscrowd": 0, **more}


def test_the_choice() -> None:
    content = {
        "annotations": [
            _annotation(9),
            *(_annotation(2) for _ in range(8)),
            *(_annotation(3) for _ in range(9)),  # too many
            _annotation(4, iscrowd=1),
            _annotation(5),
            _annotation(5, side=LEAST_SIDE - 1),
            _annotation(7, side=LEAST_SIDE),
            _annotation(8),  # its picture is missing
        ]
    }
    present = [9, 7, 6, 5, 4, 3, 2]
    assert choose(content, present, 3) == [2, 7, 9]
    assert choose(content, present, 2) == [2, 7]
    with pytest.raises(DatasetError, match="only 3 of 7 images"):
        choose(content, present, 4)


def test_the_set(tmp_path: Path) -> None:
    list(write_shapes(tmp_path / "all", {"val": 6}, height=96, width=128))
    images = open_images(coco=tmp_path / "all")
    chosen = images.image_ids[1:4]
    spec = open_dataset(write_subset(images, chosen, tmp_path))
    for split in ("train", "val"):
        dataset = CocoDataset.of_split(spec, split, keep_empty=True)
        assert [dataset.record(i).image_id for i in range(len(dataset))] == chosen
        dataset.image(0)
    assert len(spec.names) == 8


def test_too_few_images_are_told_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(write_shapes(tmp_path, {"val": 2}, height=96, width=128))
    assert main(["--coco", str(tmp_path)]) == 2
    assert "error: only" in capsys.readouterr().err


def test_the_committed_result() -> None:
    """What the README says of it."""
    path = Path(__file__).parents[3] / "benchmarks" / "results" / "sixteen_images.json"
    result = json.loads(path.read_text())
    assert len(result["images"]) == 16
    assert result["recipe"]["name"] == "sixteen_images"
    assert min(score["mask"]["ap50"] for score in result["scores"].values()) >= 0.80

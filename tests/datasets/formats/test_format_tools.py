"""What datumaro and supervision have written is read by us: four generated pictures, and thirty of COCO.

The generated ones are golden files. For COCO's, ``YOLACT_CONVERTERS`` names a Python with both tools, which need an
environment of their own, since they bring another OpenCV.

What the tools themselves change is allowed for, and nothing else: CVAT and VOC of datumaro do not keep crowds; in VOC a
pixel has one owner; supervision draws polygons with their border and traces them again, which moves outlines by up to
three pixels, fills holes, and writes an object for each part.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

import cv2
from format_sets import Masks, coco_pictures, iou, masks_of, python_of, worst_iou, written_by

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.convert import read_any
from yolact_deploy.preprocess import read_image

GOLDEN = Path(__file__).parents[2] / "golden" / "formats"
#: where the pictures of each golden dataset belong
PLACES = {"coco_instances": "images/default", "cvat": "images", "voc": "JPEGImages", "supervision_yolo": "images",
          "supervision_voc": "images"}  # fmt: skip


@pytest.fixture(scope="module", params=["golden", pytest.param("coco_mini", marks=pytest.mark.slow)])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A COCO dataset, and a folder with what the tools made of it."""
    target = tmp_path_factory.mktemp("written")
    if request.param == "golden":
        for name, place in PLACES.items():
            shutil.copytree(GOLDEN / name, target / name)
            shutil.copytree(GOLDEN / "source" / "images", target / name / place)
        return GOLDEN / "source", target
    source = coco_pictures(tmp_path_factory.mktemp("source"))
    for tool in ("datumaro", "supervision"):
        written_by(tool, source, target)
    return source, target


@pytest.fixture(scope="module")
def source(folders: tuple[Path, Path]) -> Path:
    return folders[0]


@pytest.fixture(scope="module")
def written(folders: tuple[Path, Path]) -> Path:
    return folders[1]


@pytest.fixture(scope="module")
def truth(source: Path) -> Masks:
    return masks_of(source)


def filled(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The mask without its holes, which supervision does not write."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)  # type: ignore[return-value]


def without_crowd_flags(masks: Masks) -> Masks:
    return {stem: [(name, False, mask) for name, _, mask in objects] for stem, objects in masks.items()}


def test_coco_of_datumaro(truth: Masks, written: Path) -> None:
    assert worst_iou(truth, masks_of(written / "coco_instances")) >= 0.99


def test_cvat_of_datumaro(source: Path, truth: Masks, written: Path) -> None:
    dataset = read_any(written / "cvat")
    assert dataset.names == read_any(source).names
    assert not dataset.notes
    assert worst_iou(without_crowd_flags(truth), without_crowd_flags(masks_of(dataset))) >= 0.99


def test_voc_of_datumaro(written: Path) -> None:
    """Against the colors of its pictures, counted here without our reader."""
    read = masks_of(written / "voc")
    for file in sorted((written / "voc" / "SegmentationObject").glob("*.png")):
        colors = read_image(file).reshape(-1, 3)
        values, counts = np.unique(colors, axis=0, return_counts=True)
        black = [not value.any() or value.tolist() == [192, 224, 224] for value in values]
        expected = sorted(int(count) for count, is_black in zip(counts, black, strict=True) if not is_black)
        assert sorted(int(mask.sum()) for _, _, mask in read[file.stem]) == expected, file.stem


@pytest.mark.parametrize("name", ["supervision_yolo", "supervision_voc"])
def test_outlines_of_supervision(name: str, truth: Masks, written: Path) -> None:
    """All parts are there, with their classes; each class of a picture covers what it covered, within a border."""
    read = masks_of(written / name)
    for stem, objects in truth.items():
        assert {o[0] for o in read[stem]} <= {o[0] for o in objects}
        for label in {o[0] for o in objects}:
            before = np.logical_or.reduce([m for n, _, m in objects if n == label])
            after = np.logical_or.reduce([m for n, _, m in read[stem] if n == label] or [np.zeros_like(before)])
            border = cv2.dilate(filled(before), np.ones((7, 7), np.uint8)).astype(np.bool_)
            inner = cv2.erode(np.pad(before, 2).astype(np.uint8), np.ones((5, 5)))[2:-2, 2:-2].astype(np.bool_)
            assert not (after & ~border).any(), (stem, label)
            assert not inner.any() or iou(inner & after, inner) >= 0.99, (stem, label)


def test_ours_read_by_datumaro_and_supervision(source: Path, tmp_path: Path) -> None:
    """What we write, the tools read: the same number of objects of each class."""
    python = python_of("datumaro")
    code = (
        "import sys, json, collections, datumaro, supervision as sv\n"
        "data = datumaro.Dataset.import_from(sys.argv[1], 'cvat')\n"
        "names = data.categories()[datumaro.AnnotationType.label]\n"
        "cvat = collections.Counter(names[i].name for item in data for i in\n"
        "  {(a.group or id(a)): a.label for a in item.annotations if a.type.name in ('polygon', 'mask')}.values())\n"
        "root = sys.argv[2]\n"
        "places = [f'{root}/{name}' for name in ('images/default', 'labels/default', 'data.yaml')]\n"
        "yolo = sv.DetectionDataset.from_yolo(*places, force_masks=True)\n"
        "count = collections.Counter(yolo.classes[c] for _, _, d in yolo for c in d.class_id.tolist())\n"
        "print(json.dumps([cvat, count]))\n"
    )
    for target in ("cvat", "yolo"):
        assert main(["data", "convert", str(source), "-o", str(tmp_path / target), "--to", target, "--quiet"]) == 0
    words = [python, "-c", code, str(tmp_path / "cvat"), str(tmp_path / "yolo")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cvat, yolo = json.loads(done.stdout.splitlines()[-1])
    objects = [o for group in masks_of(source).values() for o in group]
    assert cvat == Counter(name for name, _, _ in objects)
    assert yolo == Counter(name for name, crowd, _ in objects if not crowd)

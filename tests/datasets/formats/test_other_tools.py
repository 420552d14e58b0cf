"""Thirty COCO pictures, written by datumaro and supervision and read by us.

The tools need an environment of their own, since they bring another OpenCV. ``YOLACT_CONVERTERS`` names its Python.

What the tools themselves change is allowed for, and nothing else: CVAT and VOC of datumaro do not keep crowds; in VOC a
pixel has one owner, so objects are compared with their visible part; supervision draws polygons with their border,
which adds a pixel to each, and writes an object for each part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

import cv2
from data import data_dir
from format_sets import Masks, iou, masks_of, worst_iou

from yolact_deploy.datasets.convert import read_any

SCRIPT = Path(__file__).parents[2] / "helpers" / "other_tools.py"
PICTURES = 30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures with crowds and those with the lowest ids."""
    mini, folder = data_dir("coco_mini"), tmp_path_factory.mktemp("source")
    content = json.loads((mini / "instances_coco_mini.json").read_text())
    crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
    content["images"] = sorted(content["images"], key=lambda i: (i["id"] not in crowded, i["id"]))[:PICTURES]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    (folder / "annotations" / "instances_default.json").write_text(json.dumps(content))
    for image in content["images"]:
        shutil.copy(mini / "images" / image["file_name"], folder / "images")
    return folder


@pytest.fixture(scope="module")
def truth(source: Path) -> Masks:
    return masks_of(source)


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = os.environ.get("YOLACT_CONVERTERS")
    if not python:
        pytest.skip("YOLACT_CONVERTERS names no Python with datumaro and supervision")
    target = tmp_path_factory.mktemp("written")
    done = subprocess.run([python, SCRIPT, source, target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def without_crowd_flags(masks: Masks) -> Masks:
    return {stem: [(name, False, mask) for name, _, mask in objects] for stem, objects in masks.items()}


@pytest.mark.slow
def test_coco_of_datumaro(truth: Masks, written: Path) -> None:
    assert worst_iou(truth, masks_of(written / "coco_instances")) >= 0.99


@pytest.mark.slow
def test_cvat_of_datumaro(truth: Masks, written: Path) -> None:
    dataset = read_any(written / "cvat")
    assert len(dataset.names) == 80
    assert not dataset.notes
    assert worst_iou(without_crowd_flags(truth), without_crowd_flags(masks_of(dataset))) >= 0.99


@pytest.mark.slow
def test_voc_of_datumaro(written: Path) -> None:
    """Against the colors of its pictures, counted here without our reader."""
    read = masks_of(written / "voc")
    for file in sorted((written / "voc" / "SegmentationObject").glob("*.png")):
        colors = cv2.imread(str(file)).reshape(-1, 3)
        values, counts = np.unique(colors, axis=0, return_counts=True)
        black = [not value.any() or value.tolist() == [192, 224, 224] for value in values]
        expected = sorted(int(count) for count, is_black in zip(counts, black, strict=True) if not is_black)
        assert sorted(int(mask.sum()) for _, _, mask in read[file.stem]) == expected, file.stem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supervision_yolo", "supervision_voc"])
def test_outlines_of_supervision(name: str, truth: Masks, written: Path) -> None:
    """All parts are there, with their classes; each class of a picture covers what it covered, within a border."""
    read = masks_of(written / name)
    for stem, objects in truth.items():
        assert {o[0] for o in read[stem]} <= {o[0] for o in objects}
        for label in {o[0] for o in objects}:
            before = np.logical_or.reduce([m for n, _, m in objects if n == label])
            after = np.logical_or.reduce([m for n, _, m in read[stem] if n == label] or [np.zeros_like(before)])
            border = cv2.dilate(before.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)
            inner = cv2.erode(before.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.bool_)
            assert not (after & ~border).any(), (stem, label)
            assert not inner.any() or iou(inner & after, inner) >= 0.99, (stem, label)


@pytest.mark.slow
def test_ours_read_by_datumaro_and_supervision(source: Path, written: Path, tmp_path: Path) -> None:
    """What we write, the tools read: the same number of objects of each class."""
    from yolact_deploy.cli.main import main

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
    words = [os.environ["YOLACT_CONVERTERS"], "-c", code, tmp_path / "cvat", tmp_path / "yolo"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cvat, yolo = json.loads(done.stdout.splitlines()[-1])
    objects = [o for group in masks_of(source).values() for o in group]
    assert cvat == Counter(name for name, _, _ in objects)
    assert yolo == Counter(name for name, crowd, _ in objects if not crowd)

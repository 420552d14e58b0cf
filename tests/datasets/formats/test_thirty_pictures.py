"""Thirty pictures of COCO, written in each format by another tool, are read with the same objects, and trained on.

Where no tool writes a format (SBD, mask pictures, Roboflow's COCO), this module does, from the masks that pycocotools
draws. What a format cannot keep is taken from the truth before the comparison: crowds, their flags, or what is hidden.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _module in ("pycocotools", "yaml", "torch"):
    pytest.importorskip(_module)
matlab: Any = pytest.importorskip("scipy.io")

import cv2
from format_sets import Masks, coco_pictures, iou, masks_of, written_by
from tiny import SETTINGS, as_arguments

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.convert import read_any
from yolact_deploy.datasets.formats.pascal_voc import CLASSES
from yolact_deploy.preprocess import read_image

pytestmark = pytest.mark.slow  # other tools, and twenty iterations on what each of them wrote

#: VOC's names of COCO's classes
_VOC = {"airplane": "aeroplane", "dining table": "diningtable", "motorcycle": "motorbike",
        "potted plant": "pottedplant", "couch": "sofa", "tv": "tvmonitor"}  # fmt: skip


# -- what a format keeps of the truth ---------------------------------------------------------------------------------


def everything(truth: Masks) -> Masks:
    return truth


def without_flags(truth: Masks) -> Masks:
    return {stem: [(name, False, mask) for name, _, mask in objects] for stem, objects in truth.items()}


def without_crowds(truth: Masks) -> Masks:
    return {stem: [o for o in objects if not o[1]] for stem, objects in truth.items()}


def visible(truth: Masks) -> Masks:
    """Each pixel belongs to the last object that has it."""
    result: Masks = {}
    for stem, objects in truth.items():
        result[stem] = []
        taken = np.zeros(objects[0][2].shape, np.bool_) if objects else np.zeros((0, 0), np.bool_)
        for name, _, mask in reversed(objects):
            if (mask & ~taken).any():
                result[stem].append((name, False, mask & ~taken))
            taken |= mask
    return result


def of_voc(truth: Masks) -> Masks:
    renamed = {stem: [(_VOC.get(name, name), crowd, mask) for name, crowd, mask in objects]
               for stem, objects in truth.items()}  # fmt: skip
    return visible({stem: [o for o in objects if o[0] in CLASSES] for stem, objects in renamed.items()})


# -- formats that no tool writes --------------------------------------------------------------------------------------


def roboflow(source: Path, target: Path) -> None:
    """Its export: annotations beside the pictures of a split, and a category 0 that is no class."""
    folder = target / "roboflow" / "train"
    shutil.copytree(source / "images", folder)
    content = json.loads((source / "annotations" / "instances_default.json").read_text())
    content["categories"] = [{"id": 0, "name": "things", "supercategory": "none"},
                             *({**c, "supercategory": "things"} for c in content["categories"])]  # fmt: skip
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def sbd(source: Path, target: Path) -> None:
    folder = target / "sbd"
    (folder / "inst").mkdir(parents=True)
    shutil.copytree(source / "images", folder / "img")
    for stem, objects in of_voc(masks_of(source)).items():
        height, width = read_image(folder / "img" / f"{stem}.jpg").shape[:2]
        numbers = np.zeros((height, width), np.uint8)
        for number, (_, _, mask) in enumerate(objects, 1):
            numbers[mask] = number
        categories = np.array([[CLASSES.index(name) + 1] for name, _, _ in objects], np.uint8).reshape(-1, 1)
        matlab.savemat(folder / "inst" / f"{stem}.mat", {"GTinst": {"Segmentation": numbers, "Categories": categories}})


def mask_pictures(source: Path, target: Path) -> None:
    folder = target / "mask_pictures"
    shutil.copytree(source / "images", folder / "images")
    for stem, objects in without_crowds(masks_of(source)).items():
        for number, (name, _, mask) in enumerate(objects):
            place = folder / "masks" / name
            place.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / f"{stem}-{number}.png"), mask.astype(np.uint8) * 255)


def by(tool: str) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        written_by(tool, source, target)

    return write


#: the folder that a writer makes, the writer, and what the format keeps of the truth
FORMATS: dict[str, tuple[Any, Callable[[Masks], Masks]]] = {
    "coco_instances": ("datumaro", everything),
    "cvat": ("datumaro", without_flags),
    "voc": ("datumaro", visible),
    "supervision_yolo": ("supervision", without_crowds),
    "supervision_voc": ("supervision", without_crowds),
    "ultralytics_yolo": ("ultralytics", without_crowds),
    "labelme": ("labelme", without_flags),
    "label_studio": ("label_studio", without_crowds),
    "roboflow": (roboflow, everything),
    "sbd": (sbd, of_voc),
    "mask_pictures": (mask_pictures, without_crowds),
}
#: supervision draws outlines with their border; test_format_tools.py says how far they are from the truth
EXACT = [name for name, (tool, _) in FORMATS.items() if tool != "supervision"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_pictures(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``written(name)``: the folder of a format."""
    target = tmp_path_factory.mktemp("written")

    @cache
    def run(tool: Any) -> None:
        (by(tool) if isinstance(tool, str) else tool)(source, target)

    def get(name: str) -> Path:
        run(FORMATS[name][0])
        return target / name

    return get


@pytest.fixture(scope="module")
def truth(source: Path) -> Masks:
    return masks_of(source)


def parts_apart(source: Path) -> Masks:
    """Label Studio's converter writes each outline as an object of its own."""
    dataset = read_any(source)
    for picture in dataset.pictures:
        picture.objects[:] = [
            type(o)(o.name, [ring]) for o in picture.objects if isinstance(o.mask, list) for ring in o.mask
        ]
    return masks_of(dataset)


@pytest.mark.parametrize("name", EXACT)
def test_the_same_objects(name: str, source: Path, truth: Masks, written: Callable[[str], Path]) -> None:
    expected = parts_apart(source) if name == "label_studio" else FORMATS[name][1](truth)
    actual = masks_of(written(name))
    assert sum(map(len, actual.values())) == sum(map(len, expected.values())) > (50 if name == "sbd" else 700)
    for stem, objects in expected.items():
        assert sorted(o[:2] for o in actual[stem]) == sorted(o[:2] for o in objects), stem
        for label, crowd, mask in objects:
            same = [other for n, c, other in actual[stem] if (n, c) == (label, crowd)]
            closest = max(same, key=lambda other: iou(mask, other))
            # Datumaro rounds corners to 32 bits, which decides about halves: a pixel of a small outline moves.
            moved = 6 if name == "voc" and mask.sum() < 700 else 0
            assert iou(mask, closest) >= 0.99 or (mask ^ closest).sum() <= moved, (stem, label, mask.sum())


@pytest.mark.parametrize("name", FORMATS)
def test_twenty_iterations(name: str, written: Callable[[str], Path], tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """From the command line, on the folder as the tool wrote it."""
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    words = ["train", "--recipe", "shapes_demo", "--data", str(written(name)), "--workers", "0", "--device", "cpu"]
    settings = as_arguments((*SETTINGS, "iterations=20", "save_interval=20", "batch=2"))
    assert main([*words, *settings, "-o", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["finished"], result["step"]) == (True, 20)
    assert (tmp_path / "run" / "last.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_our_yolo_text(source: Path, truth: Masks, tmp_path: Path) -> None:
    """Its lines, read here without our reader and drawn by pycocotools, have the pixels of the objects."""
    from pycocotools import mask as coco_mask

    folder = tmp_path / "yolo"
    assert main(["data", "convert", str(source), "-o", str(folder), "--to", "yolo", "--quiet"]) == 0
    names = read_any(source).names
    for stem, objects in without_crowds(truth).items():
        (file,) = folder.glob(f"labels/*/{stem}.txt")
        lines = [line.split() for line in file.read_text().splitlines()]
        assert sorted(names[int(line[0])] for line in lines) == sorted(o[0] for o in objects)
        for line, (_, _, mask) in zip(lines, objects, strict=True):
            height, width = mask.shape
            ring = (np.array(line[1:], float).reshape(-1, 2) * (width, height)).ravel().tolist()
            drawn = coco_mask.decode(coco_mask.frPyObjects([ring], height, width)).any(axis=2)
            assert iou(mask, drawn) >= 0.99, (stem, line[0], int(mask.sum()), iou(mask, drawn))

"""A small COCO set with all that a format may lose: parts, holes, crowds, empty pictures, classes without objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data import data_dir
from numpy.typing import NDArray
from sets import rectangle

from yolact_deploy.datasets.convert import read_any
from yolact_deploy.datasets.formats.mask_shapes import mask_rle, pixels
from yolact_deploy.datasets.formats.read_set import ReadSet

#: pictures of COCO that other tools convert
PICTURES = 30
_TOOLS = Path(__file__).with_name("other_tools.py")
#: the variable that names a Python which has the tool, since they bring libraries that exclude each other
_PYTHONS = {"datumaro": "YOLACT_CONVERTERS", "supervision": "YOLACT_CONVERTERS", "ultralytics": "YOLACT_READERS",
            "labelme": "YOLACT_READERS", "label_studio": "YOLACT_LABEL_STUDIO"}  # fmt: skip
HEIGHT, WIDTH = 60, 80
Masks = dict[str, list[tuple[str, bool, NDArray[np.bool_]]]]


def ring_mask() -> NDArray[np.bool_]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    far = (x - 40) ** 2 + (y - 30) ** 2
    mask: NDArray[np.bool_] = (far < 20**2) & (far > 9**2)
    return mask


def parts_mask() -> NDArray[np.bool_]:
    """Parts that touch at a corner, a single pixel, and a hole with an island."""
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:8, 2:8] = mask[8:12, 8:12] = True
    mask[20:40, 20:44] = True
    mask[24:36, 24:40] = False
    mask[28:32, 28:36] = True
    mask[59, 79] = True
    return mask


def write_coco(folder: Path) -> Path:
    """Splits train (a, b, empty) and val (c); ids with gaps."""
    star = [10.0, 4.0, 21.5, 40.25, 2.0, 18.0, 26.0, 15.0, 5.5, 41.0]
    two = [*rectangle(50, 5, 12, 9), *rectangle(60, 40, 15, 15)]
    objects: dict[str, list[dict[str, Any]]] = {
        "train/a": [_object(3, rectangle(5, 6, 30, 20)), _object(9, two),
                    _object(9, mask_rle(parts_mask()), iscrowd=1)],
        "train/b": [_object(9, mask_rle(ring_mask())), _object(3, [star])],
        "train/empty": [],
        "val/c": [_object(3, mask_rle(parts_mask())), _object(9, rectangle(0, 0, 80, 60)),
                  _object(3, rectangle(70, 50, 9, 9))],
    }  # fmt: skip
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        images, annotations = [], []
        names = [name for name in objects if name.startswith(split)]
        for number, name in enumerate(names, 7):
            rng = np.random.default_rng(len(name) + number)
            (folder / "images" / split).mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            cv2.imwrite(str(folder / "images" / f"{name}.png"), picture)
            images.append({"id": 3 * number, "file_name": f"{Path(name).name}.png", "height": HEIGHT, "width": WIDTH})
            annotations += [{**o, "id": 100 * number + i, "image_id": 3 * number} for i, o in enumerate(objects[name])]
        categories = [{"id": 3, "name": "cat"}, {"id": 9, "name": "traffic light"}, {"id": 11, "name": "owl"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def _object(category: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
    mask = pixels(segmentation, HEIGHT, WIDTH)
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    return {"category_id": category, "bbox": box, "area": int(mask.sum()), "iscrowd": iscrowd,
            "segmentation": segmentation}  # fmt: skip


def coco_pictures(folder: Path) -> Path:
    """The pictures with crowds and those with the lowest ids, as a COCO folder."""
    mini = data_dir("coco_mini")
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


def python_of(tool: str) -> str:
    """The Python that has another tool; skips the test where there is none."""
    python = os.environ.get(_PYTHONS[tool])
    if not python:
        pytest.skip(f"{_PYTHONS[tool]} names no Python with {tool}")
    return python


def written_by(tool: str, source: Path, target: Path) -> None:
    """Let another tool write a COCO folder in its formats."""
    words = [python_of(tool), *map(str, (_TOOLS, source, target)), tool]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def masks_of(dataset: ReadSet | Path) -> Masks:
    """Class, crowd and pixels of the objects of each picture, by its stem."""
    result: Masks = defaultdict(list)
    for picture in (read_any(dataset) if isinstance(dataset, Path) else dataset).pictures:
        result[picture.path.stem] += [
            (o.name, o.iscrowd, pixels(o.mask, picture.height, picture.width)) for o in picture.objects
        ]
    return result


def worst_iou(expected: Masks, actual: Masks, *, crowds: bool = True) -> float:
    """The lowest IoU of an object with the best of its class and kind; asserts that their numbers are equal."""
    worst = 1.0
    for stem, objects in expected.items():
        wanted = [o for o in objects if crowds or not o[1]]
        assert sorted(o[:2] for o in actual[stem]) == sorted(o[:2] for o in wanted), stem
        for name, crowd, mask in wanted:
            same = [m for n, c, m in actual[stem] if (n, c) == (name, crowd)]
            worst = min(worst, max(iou(mask, other) for other in same))
    return worst


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))

"""A small COCO-style set on disk, with two classes whose ids are 7 and 42, for the tests of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SPEC = """\
names: [cat, dog]
train: {annotations: train.json, images: images}
val: {annotations: train.json, images: images}
"""


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def annotation(number: int, image: int, category: int, box: tuple[float, ...], **changes: Any) -> dict[str, Any]:
    """An annotated rectangle."""
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": rectangle(*box),
        **changes,
    }


def content() -> dict[str, Any]:
    """Three images of 64 x 48: two objects and a crowd, one object, none."""
    crowd = {"size": [48, 64], "counts": [48 * 40, 48 * 10, 48 * 14]}  # columns 40 to 49
    return {
        "categories": [{"id": 42, "name": "dog"}, {"id": 7, "name": "cat"}],
        "images": [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in (3, 1, 2)],
        "annotations": [
            annotation(1, 1, 42, (40, 0, 10, 48), iscrowd=1, segmentation=crowd),
            annotation(2, 1, 7, (10, 12, 20, 16)),
            annotation(3, 2, 42, (5, 6, 50, 30)),
            annotation(4, 1, 42, (2, 2, 8, 8)),
        ],
    }


def write_set(folder: Path, data: dict[str, Any] | None = None, spec: str = SPEC) -> Path:
    """Write ``set.yaml``, ``train.json`` and noisy pictures; the path of the first."""
    data = content() if data is None else data
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for image in content()["images"]:
        rng = np.random.default_rng(image["id"])
        picture = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        cv2.imwrite(str(folder / "images" / image["file_name"]), picture)
    (folder / "train.json").write_text(json.dumps(data))
    (folder / "set.yaml").write_text(spec)
    return folder / "set.yaml"

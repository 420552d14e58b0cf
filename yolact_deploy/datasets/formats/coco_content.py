"""The content of a COCO instances file from what a reader found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.datasets.formats.read_set import ReadObject, ReadPicture, ReadSet
from yolact_deploy.datasets.rle import image_runs, mask_bounds


def coco_content(dataset: ReadSet, pictures: Sequence[ReadPicture], names: Mapping[Path, str]) -> dict[str, Any]:
    """The content for some pictures; ids of images and annotations count from 1.

    Args:
        names: file name of each picture, from the folder of the pictures
    """
    ids = category_ids(dataset)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        size = {"height": picture.height, "width": picture.width}
        images.append({**picture.more, "id": number, "file_name": names[picture.path], **size})
        for o in picture.objects:
            box, area = _extent(o, picture)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": ids[o.name], "bbox": box, "area": area,
                 "iscrowd": int(o.iscrowd), "segmentation": o.mask, **o.more}
            )  # fmt: skip
    known = {record["name"]: record for record in dataset.categories}
    categories = [{**known.get(name, {}), "id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def category_ids(dataset: ReadSet) -> dict[str, int]:
    """The id of each class: those of the dataset, or 1, 2, ..."""
    numbers = dataset.ids or range(1, len(dataset.names) + 1)
    return dict(zip(dataset.names, numbers, strict=True))


def _extent(o: ReadObject, picture: ReadPicture) -> tuple[list[float], float]:
    """Box [x, y, width, height] and area of a mask."""
    if isinstance(o.mask, dict):
        runs = image_runs(o.mask["counts"], picture.height, picture.width)
        assert runs is not None  # readers make sound run lengths
        area = float(runs[1::2].sum())
        x0, y0, x1, y1 = mask_bounds(runs, picture.height) if area else (0.0, 0.0, 0.0, 0.0)
        return [x0, y0, x1 - x0, y1 - y0], area
    rings = [np.array(ring, np.float64).reshape(-1, 2) for ring in o.mask]
    points = np.concatenate(rings)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()], sum(map(_area, rings))


def _area(ring: np.ndarray[Any, Any]) -> float:
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2

"""One pass over a COCO file: sound annotations go into a compact table, problems into findings.

It checks records and which files exist, but opens no pictures; `check` does that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.datasets.annotations import ImageRecord, RecordCheck, categories_of, read_coco
from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.instance_table import ObjectTable, TableBuilder
from yolact_deploy.datasets.rle import image_runs
from yolact_deploy.errors import DatasetError

Rings = list[list[float]]

_SLACK = 2.0  # pixels by which a box may leave its image, or a mask its box, without a finding


@dataclass(frozen=True)
class Scan:
    """The content of a file: ``table`` has the objects of each of ``images``."""

    classes: dict[int, str]  #: name of each category id, in the order of the labels
    images: list[ImageRecord]
    table: ObjectTable
    findings: Findings
    objects_of_class: NDArray[np.int64]  #: [classes] without crowds


def scan_file(annotations: Path, folder: Path, classes: Mapping[int, str] | None = None) -> Scan:
    """Read and check a COCO file.

    Args:
        folder: of the pictures
        classes: name of each category id, in the order of the labels; by default those of the file

    Raises:
        DatasetError: not a COCO file, or its categories have other names than ``classes``.
    """
    content = read_coco(annotations)
    own = categories_of(content, annotations)
    known = dict(own if classes is None else classes)
    renamed = [f"{n} is {own[n]!r} there and {name!r} here" for n, name in known.items() if own.get(n, name) != name]
    if renamed and set(known.values()) & set(own.values()):
        raise DatasetError(
            f"{annotations}: category {'; '.join(renamed[:3])}: are the ids of all splits the same? Correct the file, "
            "or the names of the dataset"
        )
    return _scan(content, folder, known)


def _scan(content: Mapping[str, Any], folder: Path, classes: dict[int, str]) -> Scan:
    check = RecordCheck(classes, folder)
    findings, images = check.findings, check.images
    check.add_images(content["images"])
    sound = [a for number, a in enumerate(content["annotations"]) if check.is_sound(a, number)]
    sound.sort(key=lambda a: (check.index_of[a["image_id"]], is_crowd(a)))  # the table needs images in order
    label_of = {number: label for label, number in enumerate(classes)}
    builder = TableBuilder(_keypoint_mirror(content["categories"]))
    keys: set[int] = set()
    for annotation in sound:
        index = check.index_of[annotation["image_id"]]
        shape = _Shape.of(annotation, images[index], findings)
        if shape is None:
            continue
        key = hash((index, annotation["category_id"], *annotation["bbox"]))
        if key in keys:
            findings.add("duplicate annotation", f"annotation {annotation['id']}")
        keys.add(key)
        keypoints = annotation.get("keypoints") or ()
        if len(keypoints) != 3 * len(builder.keypoint_mirror):
            keypoints = ()
        label = label_of[annotation["category_id"]]
        builder.add(index, label, shape.box, annotation["area"], is_crowd(annotation), shape.mask, keypoints)
    table = builder.build(len(images))
    labels = table.labels[~table.iscrowd]
    if images and not len(labels):
        findings.add("no objects")
    for index in np.flatnonzero(table.counts() == 0).tolist():
        findings.add("image without objects", images[index].file_name)
    return Scan(classes, images, table, findings, np.bincount(labels, minlength=len(classes)))


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


@dataclass(frozen=True)
class _Shape:
    """The checked box (xyxy, within the image) and mask of an annotation."""

    box: list[float]
    mask: Rings | bytes

    @classmethod
    def of(cls, annotation: Mapping[str, Any], image: ImageRecord, findings: Findings) -> _Shape | None:
        """The shape of a sound record; None, with the finding, if it cannot be trained on."""
        name = f"annotation {annotation['id']}"
        mask = _check_mask(annotation["segmentation"], image, name, findings)
        box = _check_box(annotation["bbox"], image, name, findings)
        if mask is None or box is None:
            return None
        if isinstance(mask, list) and _apart(mask, box):
            findings.add("mask far from its box", name)
        return cls(box, mask)


def _check_box(xywh: list[float], image: ImageRecord, name: str, findings: Findings) -> list[float] | None:
    """The box as xyxy within the image; None, with the finding, if nothing of it is left."""
    x, y, w, h = xywh
    if w == 0 or h == 0:
        findings.add("box without area", name)
        return None
    box = [max(x, 0), max(y, 0), min(x + w, image.width), min(y + h, image.height)]
    if box[0] >= box[2] or box[1] >= box[3]:
        findings.add("box outside its image", name)
        return None
    if max(a - b for a, b in zip((w, h), (box[2] - box[0], box[3] - box[1]), strict=True)) > _SLACK:
        findings.add("box partly outside its image", name)
    return box


def _check_mask(value: Any, image: ImageRecord, name: str, findings: Findings) -> Rings | bytes | None:
    """Polygon rings or a run-length encoding; None, with the finding, if there is no mask."""
    if isinstance(value, dict):
        return _check_encoding(value, image, name, findings)
    if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
        findings.add("malformed mask", name)
        return None
    if not any(value):
        findings.add("empty mask", name)
        return None
    if not all(map(_is_ring, value)):
        findings.add("malformed mask", name)
        return None
    rings = [ring for ring in value if len(ring) >= 6]
    if len(rings) < len(value):
        findings.add("polygon of fewer than three points" if rings else "empty mask", name)
    if rings and max(map(_polygon_area, rings)) <= 0:
        findings.add("mask without area", name)
        return None
    return rings or None


def _check_encoding(value: dict[str, Any], image: ImageRecord, name: str, findings: Findings) -> bytes | None:
    size = [image.height, image.width]
    counts = image_runs(value.get("counts"), *size)
    if value.get("size") != size or counts is None:
        findings.add("malformed mask", f"{name}: run lengths for {value.get('size')}, image {size}")
        return None
    if not counts[1::2].any():
        findings.add("empty mask", name)
        return None
    if isinstance(value["counts"], list):
        encoded: bytes = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"]
        return encoded
    return str(value["counts"]).encode()


def _is_ring(ring: list[Any]) -> bool:
    """True for finite numbers, x and y in turn."""
    values = np.array(ring) if not any(isinstance(v, (list, dict)) for v in ring) else np.array("")
    return values.dtype.kind in "iuf" and len(ring) % 2 == 0 and bool(np.isfinite(values).all())


def _polygon_area(ring: Sequence[float]) -> float:
    x, y = np.array(ring, np.float64).reshape(-1, 2).T
    return abs(float(np.dot(np.roll(x, 1), y) - np.dot(x, np.roll(y, 1)))) / 2


def _apart(rings: Rings, box: Sequence[float]) -> bool:
    """Whether the polygons leave the box by more than the slack."""
    points = np.array(list(chain.from_iterable(rings))).reshape(-1, 2)
    low, high = points.min(axis=0) + _SLACK, points.max(axis=0) - _SLACK
    return bool((low < box[:2]).any() or (high > box[2:]).any())


def _keypoint_mirror(categories: Sequence[Any]) -> tuple[int, ...]:
    """Which keypoint each becomes in a mirror, by names with left and right; of the category that has the most."""
    lists = [c["keypoints"] for c in categories if isinstance(c, dict) and isinstance(c.get("keypoints"), list)]
    names: list[Any] = max(lists, key=len, default=[])
    swap = {"left": "right", "right": "left"}
    other = ["_".join(swap.get(part, part) for part in str(name).split("_")) for name in names]
    return tuple(names.index(name) if name in names else i for i, name in enumerate(other))

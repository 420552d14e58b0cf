"""One pass over the content of a COCO file: what is sound goes into a compact table, what is not into findings.

It looks at records and at which files exist, not into pictures; `check` does that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from yolact_deploy.datasets.annotations import is_box, is_whole
from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.instance_table import ObjectTable, TableBuilder
from yolact_deploy.datasets.rle import run_lengths

Rings = list[list[float]]

_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "segmentation")
_SLACK = 2.0  # pixels by which boxes may be outside their image, or masks outside their box, unnoticed


@dataclass(frozen=True)
class ImageRecord:
    """One picture of a set."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass
class Scan:
    """What was found in a file: ``table`` has a row of objects for each of ``images``."""

    images: list[ImageRecord]
    table: ObjectTable
    findings: Findings
    objects_of_class: NDArray[np.int64]  #: [classes] without crowds


@dataclass
class _Scanner:
    folder: Path
    label_of: Mapping[Any, int]
    findings: Findings = field(default_factory=Findings)
    images: list[ImageRecord] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)  # image id -> index into images
    ids: set[int] = field(default_factory=set)  # of annotations
    boxes_seen: set[int] = field(default_factory=set)  # hashes

    def add_images(self, records: Sequence[Any]) -> None:
        names: set[str] = set()
        for number, record in enumerate(records):
            if not _is_image(record):
                self.findings.add("malformed image record", f"number {number}")
                continue
            if record["id"] in self.place:
                self.findings.add("duplicate image id", str(record["id"]))
                continue
            if record["file_name"] in names:
                self.findings.add("duplicate image file", record["file_name"])
            elif not (self.folder / record["file_name"]).is_file():
                self.findings.add("missing image", record["file_name"])
            names.add(record["file_name"])
            self.place[record["id"]] = len(self.images)
            self.images.append(ImageRecord(record["id"], record["file_name"], record["height"], record["width"]))
        if not self.images:
            self.findings.add("no images")

    def is_sound(self, annotation: Any, number: int) -> bool:
        """Whether the record can be placed: it has its keys, an image, a class and a box."""
        if not isinstance(annotation, dict) or not all(key in annotation for key in _ANNOTATION_KEYS):
            self.findings.add("malformed annotation", f"number {number}")
            return False
        name = f"annotation {annotation['id']}"
        if not is_whole(annotation["id"]) or not _is_number(annotation["area"]):
            self.findings.add("malformed annotation", name)
        elif annotation["id"] in self.ids:
            self.findings.add("duplicate annotation id", name)
        elif not is_whole(annotation["image_id"]) or annotation["image_id"] not in self.place:
            self.findings.add("annotation of an unknown image", f"{name}: image {annotation['image_id']}")
        elif not is_whole(annotation["category_id"]) or annotation["category_id"] not in self.label_of:
            self.findings.add("unknown category id", f"{name}: category {annotation['category_id']}")
        elif not is_box(annotation["bbox"]):
            self.findings.add("impossible box", f"{name}: {annotation['bbox']}")
        else:
            self.ids.add(annotation["id"])
            return True
        return False

    def add_annotation(self, annotation: dict[str, Any], builder: TableBuilder) -> None:
        """Check box and mask of a sound record, and add it if it can be trained on."""
        name, place = f"annotation {annotation['id']}", self.place[annotation["image_id"]]
        image = self.images[place]
        mask = self._mask(annotation["segmentation"], image, name)
        box = self._box(annotation["bbox"], image, name)
        if mask is None or box is None:
            return
        if isinstance(mask, list) and _apart(mask, box):
            self.findings.add("mask far from its box", name)
        key = hash((place, annotation["category_id"], *annotation["bbox"]))
        if key in self.boxes_seen:
            self.findings.add("duplicate annotation", name)
        self.boxes_seen.add(key)
        keypoints = annotation.get("keypoints") or ()
        if len(keypoints) != 3 * len(builder.keypoint_mirror):
            keypoints = ()
        label = self.label_of[annotation["category_id"]]
        builder.add(place, label, box, annotation["area"], is_crowd(annotation), mask, keypoints)

    def _box(self, xywh: list[float], image: ImageRecord, name: str) -> list[float] | None:
        """The box as xyxy within the image; None, with the finding, where nothing is left of it."""
        x, y, w, h = xywh
        if w == 0 or h == 0:
            self.findings.add("box without area", name)
            return None
        box = [max(x, 0), max(y, 0), min(x + w, image.width), min(y + h, image.height)]
        if box[0] >= box[2] or box[1] >= box[3]:
            self.findings.add("box outside its image", name)
            return None
        if max(a - b for a, b in zip((w, h), (box[2] - box[0], box[3] - box[1]), strict=True)) > _SLACK:
            self.findings.add("box partly outside its image", name)
        return box

    def _mask(self, value: Any, image: ImageRecord, name: str) -> Rings | bytes | None:
        """Polygon rings or a run-length encoding; None, with the finding, where there is no mask."""
        if isinstance(value, dict):
            return self._encoded(value, image, name)
        if not isinstance(value, list) or not all(isinstance(ring, list) for ring in value):
            self.findings.add("malformed mask", name)
            return None
        if not any(value):
            self.findings.add("empty mask", name)
            return None
        if not all(map(_is_ring, value)):
            self.findings.add("malformed mask", name)
            return None
        rings = [ring for ring in value if len(ring) >= 6]
        if len(rings) < len(value):
            self.findings.add("polygon of fewer than three points" if rings else "empty mask", name)
        if rings and max(map(_polygon_area, rings)) <= 0:
            self.findings.add("mask without area", name)
            return None
        return rings or None

    def _encoded(self, value: dict[str, Any], image: ImageRecord, name: str) -> bytes | None:
        counts = run_lengths(value.get("counts"))
        size = [image.height, image.width]
        if value.get("size") != size or counts is None or (counts < 0).any() or counts.sum() != size[0] * size[1]:
            self.findings.add("malformed mask", f"{name}: run lengths for {value.get('size')}, image {size}")
            return None
        if not counts[1::2].any():
            self.findings.add("empty mask", name)
            return None
        if isinstance(value["counts"], list):
            encoded: bytes = coco_mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)["counts"]
            return encoded
        return str(value["counts"]).encode()


def scan(content: Mapping[str, Any], folder: Path, label_of: Mapping[Any, int]) -> Scan:
    """Look at a COCO file's content, whose lists "images", "annotations" and "categories" are there.

    Args:
        folder: where the pictures are
        label_of: 0-based class of each category id
    """
    scanner = _Scanner(folder, label_of)
    scanner.add_images(content["images"])
    sound = [a for number, a in enumerate(content["annotations"]) if scanner.is_sound(a, number)]
    sound.sort(key=lambda a: (scanner.place[a["image_id"]], is_crowd(a)))  # the table wants images in order
    builder = TableBuilder(_keypoint_mirror(content["categories"]))
    for annotation in sound:
        scanner.add_annotation(annotation, builder)
    table = builder.build(len(scanner.images))
    labels = table.labels[~table.iscrowd].numpy()
    if scanner.images and not len(labels):
        scanner.findings.add("no objects")
    for index in np.flatnonzero(table.counts() == 0).tolist():
        scanner.findings.add("image without objects", scanner.images[index].file_name)
    return Scan(scanner.images, table, scanner.findings, np.bincount(labels, minlength=len(set(label_of.values()))))


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _is_image(record: Any) -> bool:
    if not isinstance(record, dict) or not is_whole(record.get("id")) or not isinstance(record.get("file_name"), str):
        return False
    return all(is_whole(record.get(key)) and record[key] > 0 for key in ("height", "width"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


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
    """Which keypoint each becomes in a mirror, by names with left and right; of the category that has most."""
    lists = [c["keypoints"] for c in categories if isinstance(c, dict) and isinstance(c.get("keypoints"), list)]
    names: list[Any] = max(lists, key=len, default=[])
    swap = {"left": "right", "right": "left"}
    other = ["_".join(swap.get(part, part) for part in str(name).split("_")) for name in names]
    return tuple(names.index(name) if name in names else i for i, name in enumerate(other))

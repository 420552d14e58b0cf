"""COCO instances files: one reader, and one check of their records for training, evaluation and calibration."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.findings import Findings
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import read_json

#: what to do about a file of another kind
CURE = "give a COCO instances file"

_LISTS = ("images", "annotations", "categories")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "segmentation")


@dataclass(frozen=True)
class ImageRecord:
    """One image of a dataset."""

    image_id: int
    file_name: str
    height: int
    width: int


def read_coco(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a COCO file; only its three lists are checked.

    Raises:
        DatasetError: no such file, not JSON or not COCO.
    """
    content = read_json(path, "annotation file", DatasetError)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DatasetError(f"{path} is not a COCO instances file (expected a JSON object, got a {kind}): {CURE}")
    for key in _LISTS:
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{path} is not a COCO instances file (no list {key!r}): {CURE}")
    return content


def read_annotations(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a COCO instances file and check its records; a missing ``iscrowd`` becomes 0.

    Masks are not checked, and annotations of images that the file does not list are accepted.

    Raises:
        DatasetError: not a COCO file, or records that are incomplete, contradictory or missing.
    """
    content = read_coco(path)
    check = RecordCheck(categories_of(content, path))
    check.add_images(content["images"])
    for number, annotation in enumerate(content["annotations"]):
        check.is_sound(annotation, number)
        if isinstance(annotation, dict):
            annotation.setdefault("iscrowd", 0)
    check.findings.raise_errors(path, ignore=("annotation of an unknown image",))
    return content


def categories_of(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """Name of each category id of a COCO file, in the order of the ids; raises :class:`DatasetError`."""
    names: dict[int, str] = {}
    for record in content["categories"]:
        if not isinstance(record, dict) or not is_whole(record.get("id")) or not isinstance(record.get("name"), str):
            raise DatasetError(
                f"{path}: expected categories with an integer id and a name, got {record!r}: repair the file"
            )
        if record["id"] in names:
            raise DatasetError(f"{path}: two categories with id {record['id']}: remove one")
        names[record["id"]] = record["name"]
    return dict(sorted(names.items()))


class RecordCheck:
    """Checks images, then annotations, record by record; problems go into :attr:`findings`.

    Args:
        categories: the known category ids
        folder: of the pictures, to report missing files; None does not look for them

    Attributes:
        images: the sound image records
        index_of: index into ``images`` of each image id
    """

    def __init__(self, categories: Collection[int], folder: Path | None = None) -> None:
        self.categories, self.folder = categories, folder
        self.findings = Findings()
        self.images: list[ImageRecord] = []
        self.index_of: dict[int, int] = {}
        self._annotation_ids: set[int] = set()

    def add_images(self, records: Sequence[Any]) -> None:
        names: set[str] = set()
        for number, record in enumerate(records):
            if not _is_image(record):
                self.findings.add("malformed image record", f"number {number}")
                continue
            if record["id"] in self.index_of:
                self.findings.add("duplicate image id", str(record["id"]))
                continue
            if record["file_name"] in names:
                self.findings.add("duplicate image file", record["file_name"])
            elif self.folder is not None and not (self.folder / record["file_name"]).is_file():
                self.findings.add("missing image", record["file_name"])
            names.add(record["file_name"])
            self.index_of[record["id"]] = len(self.images)
            self.images.append(ImageRecord(record["id"], record["file_name"], record["height"], record["width"]))
        if not self.images:
            self.findings.add("no images")

    def is_sound(self, annotation: Any, number: int) -> bool:
        """Whether annotation ``number`` of the file has its keys, an image, a category and a box."""
        if not isinstance(annotation, dict) or not all(key in annotation for key in _ANNOTATION_KEYS):
            self.findings.add("malformed annotation", f"number {number}")
            return False
        name = f"annotation {annotation['id']}"
        if not is_whole(annotation["id"]) or not is_number(annotation["area"]):
            self.findings.add("malformed annotation", name)
        elif annotation["id"] in self._annotation_ids:
            self.findings.add("duplicate annotation id", name)
        elif not is_whole(annotation["category_id"]) or annotation["category_id"] not in self.categories:
            self.findings.add("unknown category id", f"{name}: category {annotation['category_id']}")
        elif not is_box(annotation["bbox"]):
            self.findings.add("impossible box", f"{name}: {annotation['bbox']}")
        elif not is_whole(annotation["image_id"]) or annotation["image_id"] not in self.index_of:
            self.findings.add("annotation of an unknown image", f"{name}: image {annotation['image_id']}")
        else:
            self._annotation_ids.add(annotation["id"])
            return True
        return False


def is_whole(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_box(value: object) -> bool:
    """True for four finite numbers of which the last two (width, height) are not negative."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(v, (int, float)) and abs(v) < float("inf") for v in value):
        return False
    return bool(value[2] >= 0 and value[3] >= 0)


def _is_image(record: Any) -> bool:
    if not isinstance(record, dict) or not is_whole(record.get("id")) or not isinstance(record.get("file_name"), str):
        return False
    return all(is_whole(record.get(key)) and record[key] > 0 for key in ("height", "width"))


def is_number(value: object) -> bool:
    """True for a finite int or float that is not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

"""COCO instances files: read and checked, once, for whatever works on them afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from yolact_deploy.artifact import read_json
from yolact_deploy.errors import DatasetError

#: what to do about a file of another kind
CURE = "give a COCO instances file with --annotations"

_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "segmentation")


def read_annotations(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a COCO instances file; a missing ``iscrowd`` is taken as 0.

    Raises:
        DatasetError: not JSON, not COCO, or with records that are incomplete, contradictory or none at all.
    """
    content = read_json(path, "annotation file", DatasetError)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a COCO file (expected a JSON object, got a {_kind(content)}): {CURE}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{path} is not a COCO instances file (no list {key!r}): {CURE}")
    _check_records(path, content["images"], "image", ("id", "file_name", "height", "width"))
    _check_records(path, content["categories"], "category", ("id", "name"))
    _check_records(path, content["annotations"], "annotation", _ANNOTATION_KEYS)
    if not content["images"]:
        raise DatasetError(f"{path} lists no images: {CURE}")
    known = {category["id"] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)
        if not is_box(annotation["bbox"]):
            raise DatasetError(
                f"{path}: annotation {annotation['id']}: expected bbox [x, y, width, height], "
                f"got {annotation['bbox']!r}: repair the file"
            )
        if annotation["category_id"] not in known:
            raise DatasetError(
                f"{path}: annotation {annotation['id']} has category id {annotation['category_id']}, which is not "
                "among the file's categories: repair the file"
            )
    return content


def _check_records(path: object, records: Sequence[Any], what: str, keys: Sequence[str]) -> None:
    seen: set[int] = set()
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DatasetError(f"{path}: {what} number {index} is a {_kind(record)}, expected an object: {CURE}")
        missing = [key for key in keys if key not in record]
        if missing:
            raise DatasetError(f"{path}: {what} number {index} has no {', '.join(missing)}: {CURE}")
        if "file_name" in keys and not isinstance(record["file_name"], str):
            raise DatasetError(f"{path}: {what} number {index}: expected text as file_name: repair the file")
        number = record["id"]
        if not is_whole(number):
            raise DatasetError(f"{path}: {what} number {index}: expected a whole number as id, got {number!r}")
        if number in seen:
            raise DatasetError(f"{path}: two records with {what} id {number}: remove one, or merge the sets again")
        seen.add(number)


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


def _kind(value: object) -> str:
    return type(value).__name__

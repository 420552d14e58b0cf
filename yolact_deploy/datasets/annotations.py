"""COCO instances files: one reader, and one check of their records for training, evaluation and calibration."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.mask_check import MOST_COORDINATE, CheckedMask, inner_box, is_box, is_number
from yolact_deploy.datasets.picture_size import wrong_sizes
from yolact_deploy.datasets.resolve import picture_path
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import is_file, read_json, shown

#: what to do about a file of another kind
CURE = "give a COCO instances file"

_LISTS = ("images", "annotations", "categories")
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "segmentation")
_MOST_SIDE, _MOST_PIXELS = 1 << 20, 1 << 30  # what OpenCV decodes


@dataclass(frozen=True)
class ImageRecord:
    """One image of a dataset."""

    image_id: int
    file_name: str
    height: int
    width: int


def read_coco(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a COCO file; only its three lists are checked. Files that only list images (``image_info``) may lack
    ``annotations``.

    Raises:
        DatasetError: no such file, not JSON or not COCO.
    """
    content = read_json(path, "annotation file", DatasetError)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DatasetError(f"{path} is not a COCO instances file (expected a JSON object, got a {kind}): {CURE}")
    if isinstance(content.get("images"), list):
        content.setdefault("annotations", [])
    for key in _LISTS:
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{path} is not a COCO instances file (no list {key!r}): {CURE}")
    return content


def read_annotations(path: str | os.PathLike[str], *, lenient: bool = False) -> dict[str, Any]:
    """Read and check a COCO file without its pictures; see :func:`check_records`."""
    return check_records(read_coco(path), path, lenient=lenient)


def check_records(
    content: Mapping[str, Any], path: str | os.PathLike[str], folder: Path | None = None, *, lenient: bool = False
) -> dict[str, Any]:
    """The content of a COCO file with complete and sound records in one form, which every evaluator can take.

    A missing or negative ``area`` is computed from the mask; a missing ``iscrowd`` becomes 0.

    Args:
        content: its records are modified
        path: of the file, for errors
        folder: of the pictures; file names become relative to it
        lenient: leave out records that are not sound, and log how many

    Raises:
        DatasetError: records that are incomplete, contradictory or not sound; the message lists them.
    """
    check = RecordCheck(categories_of(content, path), folder)
    check.add_images(content["images"])
    checked = [check.annotation(record, number) for number, record in enumerate(content["annotations"])]
    check.findings.settle(path, lenient=lenient)
    return {**content, "images": check.records, "annotations": [a.record for a in checked if a is not None]}


def categories_of(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """Name of each category id of a COCO file, in the order of the ids; raises :class:`DatasetError`."""
    names: dict[int, str] = {}
    for record in content["categories"]:
        if not isinstance(record, dict) or not is_id(record.get("id")) or not isinstance(record.get("name"), str):
            raise DatasetError(
                f"{path}: expected categories with an integer id and a name, got {shown(record)}: repair the file"
            )
        if record["id"] in names:
            raise DatasetError(f"{path}: two categories with id {record['id']}: remove one")
        names[record["id"]] = record["name"]
    return dict(sorted(names.items()))


@dataclass(frozen=True)
class CheckedAnnotation:
    """A sound annotation.

    Attributes:
        record: with ``area``, ``iscrowd`` (0 or 1) and ``segmentation`` in the form of :class:`CheckedMask`
        image: index of its image
        box: xyxy within the image; None if there is nothing to train on, because box or mask has no area
    """

    record: dict[str, Any]
    image: int
    box: list[float] | None


class RecordCheck:
    """Checks images, then annotations, record by record; problems go into :attr:`findings`.

    Args:
        categories: the known category ids
        folder: of the pictures, to check file names; None does not look at them
        need_files: leave out images without a file, as an error
        sizes: leave out images whose pictures have another size than their records, as an error

    Attributes:
        images: the sound image records
        records: those of ``images`` as they are in the file, with file names relative to the folder
        index_of: index into ``images`` of each image id
    """

    def __init__(
        self,
        categories: Collection[int],
        folder: Path | None = None,
        *,
        need_files: bool = False,
        sizes: bool = False,
    ) -> None:
        self.categories, self.folder, self.need_files, self.sizes = categories, folder, need_files, sizes
        self.findings = Findings()
        self.images: list[ImageRecord] = []
        self.records: list[dict[str, Any]] = []
        self.index_of: dict[int, int] = {}
        self._refused: set[int] = set()
        self._annotation_ids: set[int] = set()

    def add_images(self, records: Sequence[Any]) -> None:
        ids, names, sound = set[int](), set[str](), []
        for number, record in enumerate(records):
            problem = _image_problem(record)
            if problem:
                self.findings.add("malformed image record", f"number {number}: {problem}")
                continue
            if record["id"] in ids:
                self.findings.add("duplicate image id", str(record["id"]))
                continue
            ids.add(record["id"])
            if self._has_file(record):
                if record["file_name"] in names:
                    self.findings.add("duplicate image file", record["file_name"])
                names.add(record["file_name"])
                sound.append(record)
        if self.sizes and self.folder is not None:
            sound = list(of_right_size(sound, self.folder, self.findings))
        self._refused = ids - {record["id"] for record in sound}
        for record in sound:
            self.index_of[record["id"]] = len(self.images)
            self.images.append(ImageRecord(record["id"], record["file_name"], record["height"], record["width"]))
        self.records += sound
        if not self.images:
            self.findings.add("no images")

    def _has_file(self, record: dict[str, Any]) -> bool:
        """Whether the file name stays in the folder, and leads to a file if that is required."""
        if self.folder is None:
            return True
        path = picture_path(self.folder, record["file_name"])
        if path is None:
            self.findings.add("file name outside the folder", shown(record["file_name"]))
            return False
        if self.need_files and not is_file(path):
            self.findings.add("missing image", shown(record["file_name"]))
            return False
        record["file_name"] = path.relative_to(self.folder).as_posix()
        return True

    def annotation(self, record: Any, number: int) -> CheckedAnnotation | None:
        """Annotation ``number`` of the file, completed in place; None, with the finding, if it is not sound."""
        problem = self._problem(record, number)
        if problem:
            self.findings.add(*problem)
            return None
        self._annotation_ids.add(record["id"])
        if record["image_id"] in self._refused:
            return None  # reported with its image
        name, index = f"annotation {record['id']}", self.index_of[record["image_id"]]
        height, width = self.images[index].height, self.images[index].width
        mask = CheckedMask.of(record["segmentation"], height, width, name, self.findings)
        box = inner_box(record["bbox"], height, width, name, self.findings)
        if mask is None:
            return None
        if record.get("area") is None or record["area"] < 0:
            self.findings.add("no area", name)
            record["area"] = mask.area
        record["segmentation"], record["iscrowd"] = mask.segmentation, int(record.get("iscrowd") or 0)
        if box is not None and not mask.fits(box, height, width):
            self.findings.add("box that does not fit its mask", f"{name}: {shown(record['bbox'])}")
        return CheckedAnnotation(record, index, box if mask.area > 0 else None)

    def _problem(self, record: Any, number: int) -> tuple[str, str] | None:
        """Kind and example of what is wrong with a record apart from its mask."""
        if not isinstance(record, dict):
            return "malformed annotation", f"number {number}: {shown(record)}"
        name = f"annotation {record['id']}" if is_id(record.get("id")) else f"number {number}"
        missing = [key for key in _ANNOTATION_KEYS if key not in record]
        if missing:
            return "malformed annotation", f"{name}: no {' and no '.join(missing)}"
        for key, valid, expected in _FIELDS:
            if not valid(record.get(key)):
                return "malformed annotation", f"{name}: {key} is {shown(record.get(key))}, expected {expected}"
        if record["id"] in self._annotation_ids:
            return "duplicate annotation id", name
        if not is_id(record["category_id"]) or record["category_id"] not in self.categories:
            return "unknown category id", f"{name}: category_id {shown(record['category_id'])}"
        if not is_box(record["bbox"]):
            return "impossible box", f"{name}: bbox {shown(record['bbox'])}"
        image = record["image_id"]
        if not is_id(image) or (image not in self.index_of and image not in self._refused):
            return "annotation of an unknown image", f"{name}: image_id {shown(image)}"
        return None


def of_right_size(records: Sequence[dict[str, Any]], folder: Path, findings: Findings) -> Iterator[dict[str, Any]]:
    """Those image records whose pictures have the size that they say."""
    expected = [(folder / record["file_name"], (record["height"], record["width"])) for record in records]
    for record, actual in zip(records, wrong_sizes(expected), strict=True):
        if actual is None:
            yield record
        else:
            height, width = actual
            example = f"{record['file_name']}: {width} x {height}, not {record['width']} x {record['height']}"
            findings.add("image of another size", example)


class PictureIds:
    """Image ids by file name, for pictures that may be in other folders than the annotations say.

    Args:
        images: image records
    """

    def __init__(self, images: Iterable[Mapping[str, Any]]) -> None:
        self._by_name: dict[str, int] = {}
        self._by_last: dict[str, int | None] = {}
        for record in images:
            name = _slashes(record["file_name"])
            self._by_name[name] = record["id"]
            last = name.rpartition("/")[2]
            self._by_last[last] = None if last in self._by_last else record["id"]

    def find(self, path: str) -> int | None:
        """The id of the record that shares the most of its end with a path; None without one, or with several."""
        name = _slashes(path)
        parts = name.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((self._by_name[end] for end in ends if end in self._by_name), self._by_last.get(parts[-1]))

    def of(self, paths: Iterable[str]) -> dict[str, int]:
        """The id of each path that has one; raises :class:`DatasetError` if two paths have the same."""
        ids: dict[str, int] = {}
        path_of: dict[int, str] = {}
        for path in dict.fromkeys(paths):
            number = self.find(path)
            if number is None:
                continue
            if number in path_of:
                raise DatasetError(
                    f"the pictures {shown(path_of[number])} and {shown(path)} both have the name of image {number} of "
                    "the annotations: give one of them"
                )
            ids[path], path_of[number] = number, path
        return ids


def picture_ids(content: Mapping[str, Any], path: str | os.PathLike[str]) -> PictureIds:
    """The image ids of the content of a COCO file, which may have no annotations; raises :class:`DatasetError`."""
    check = RecordCheck(())
    check.add_images(content["images"])
    check.findings.settle(path)
    return PictureIds(check.records)


def _slashes(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def is_whole(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: object) -> bool:
    """True for an integer of 64 bits, which all tools can store."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_area(value: object) -> bool:
    """True for a number that an area can be, and for what is replaced: a negative number and none."""
    return value is None or (is_number(value) and value <= MOST_COORDINATE**2)


def _are_keypoints(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(map(is_number, value)))


#: fields with the check of their values, and what the check expects
_FIELDS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("id", is_id, "an integer"),
    ("area", _is_area, "a number"),
    ("iscrowd", lambda value: value is None or (isinstance(value, int) and value in (0, 1)), "0 or 1"),
    ("keypoints", _are_keypoints, "a list of numbers"),
)


def _image_problem(record: Any) -> str | None:
    if not isinstance(record, dict):
        return shown(record)
    for key in ("id", "file_name", "height", "width"):
        if key not in record:
            return f"no {key}"
    for key in ("height", "width"):
        if not is_whole(record[key]) or not 0 < record[key] <= _MOST_SIDE:
            return f"{key} is {shown(record[key])}, expected pixels"
    if record["height"] * record["width"] > _MOST_PIXELS:
        return f"{record['width']} x {record['height']} pixels are too many"
    if not is_id(record["id"]):
        return f"id is {shown(record['id'])}, expected an integer"
    return None if isinstance(record["file_name"], str) else f"file_name is {shown(record['file_name'])}, expected text"

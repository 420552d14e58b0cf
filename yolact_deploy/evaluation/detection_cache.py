"""Detections of many images on disk, so that an interrupted evaluation can continue where it stopped.

The file has JSON lines. The first identifies the model, options and images; each further line has the detections of one
image, in the order of the images: ``{"image_id", "detections": [COCO results without image_id]}``. Each line is one
write to the operating system. A line that is torn nevertheless (full disk, power cut) is the last one; it is dropped.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from yolact_deploy.datasets.annotations import is_id
from yolact_deploy.datasets.coco_results import Result, check_results
from yolact_deploy.errors import DatasetError, InputError, OutputError
from yolact_deploy.untrusted import parse_json, shown

_FORMAT = "yolact-deploy detections"
_VERSION = 1
#: first bytes of each file
_MAGIC = b'{"format":"' + _FORMAT.encode() + b'"'
_CURE = "remove it or choose another file"


class StoredImage(NamedTuple):
    """The detections of one image, as COCO results."""

    image_id: int
    results: list[Result]


class DetectionCache:
    """The detections of one model on some images; a context manager.

    Args:
        path: file to create or to continue
        key: everything the detections depend on, as JSON-ready values: hash of the model file, options, images
        image_ids: all images, in the order in which they will be added
        resume: whether to continue an existing file

    Raises:
        InputError: the file exists and ``resume`` is False.
        DatasetError: the file has another key or is damaged.
        OutputError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], key: Mapping[str, Any], image_ids: Sequence[int], *, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self._image_ids = image_ids
        #: number of images in the file
        self.stored = 0
        header = {"format": _FORMAT, "version": _VERSION, "key": json.loads(json.dumps(key))}
        if self.path.exists() and not resume:
            raise InputError(f"{self.path} exists: continue it with --resume, {_CURE}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that each line is a single write.
            self._file = io.FileIO(self.path, "r+" if self.path.exists() else "x+")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}. Choose another location") from error
        try:
            self._open(header)
        except BaseException:
            self._file.close()
            raise

    def _open(self, header: dict[str, Any]) -> None:
        """Check the header, count the images, and cut off everything after the last complete line."""
        reader = io.BufferedReader(self._file)
        whole = 0
        for line in reader:
            if not line.endswith(b"\n"):
                if whole == 0 and not _MAGIC.startswith(line[: len(_MAGIC)]):
                    raise _foreign(self.path)  # not our file: do not truncate it
                break
            if whole == 0:
                self._check_header(line, header)
            else:
                self.stored += 1
            whole += len(line)
        reader.detach()
        if self.stored > len(self._image_ids):
            raise DatasetError(f"{self.path} has more than {len(self._image_ids)} images: {_CURE}")
        self._file.truncate(whole)
        self._file.seek(whole)
        if whole == 0:
            self._write(header)

    def _check_header(self, line: bytes, expected: dict[str, Any]) -> None:
        stored = _header(line, self.path)
        for name in {**expected["key"], **stored["key"]}:
            ours, theirs = expected["key"].get(name), stored["key"].get(name)
            if ours != theirs:
                raise DatasetError(
                    f"{self.path} has other detections: {name} is {shown(theirs)} there and {shown(ours)} now: {_CURE}"
                )

    def __iter__(self) -> Iterator[StoredImage]:
        """The images that were in the file when it was opened."""
        return _images(self.path, self._image_ids[: self.stored])

    def add(self, image_id: int, results: Sequence[Result]) -> None:
        """Append the next image's detections; on return, the operating system has them.

        Raises:
            OutputError: the disk is full or fails.
        """
        detections = [{key: value for key, value in result.items() if key != "image_id"} for result in results]
        self._write({"image_id": image_id, "detections": detections})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}. Free some space and continue with --resume"
            ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> DetectionCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_detection_cache(path: str | os.PathLike[str]) -> bool:
    """Whether a file was written by :class:`DetectionCache`, judging by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


def read_detections(path: str | os.PathLike[str]) -> Iterator[StoredImage]:
    """All complete lines of a file, from whatever model.

    Raises:
        DatasetError: the file is damaged.
    """
    return _images(Path(path), None)


def _images(path: Path, expected: Sequence[int] | None) -> Iterator[StoredImage]:
    with open(path, "rb") as file:
        _header(file.readline(), path)
        for number, line in enumerate(file):
            if not line.endswith(b"\n") or (expected is not None and number == len(expected)):
                return
            stored = _image(line, f"{path}, line {number + 2},")
            if expected is not None and stored.image_id != expected[number]:
                raise DatasetError(
                    f"{path}, line {number + 2}, has image {stored.image_id} instead of {expected[number]}: {_CURE}"
                )
            yield stored


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parse_json(line, str(path), DatasetError)
        ours = header["format"] == _FORMAT and isinstance(header["key"], dict)
    except (DatasetError, TypeError, KeyError):
        ours = False
    if not ours:
        raise _foreign(path)
    if header.get("version") != _VERSION:
        raise DatasetError(
            f"{path} has detections of format {shown(header.get('version'))}, this version reads {_VERSION}: {_CURE}"
        )
    return dict(header)


def _foreign(path: Path) -> DatasetError:
    return DatasetError(f"{path} was not written by eval --cache: choose another file")


def _image(line: bytes, where: str) -> StoredImage:
    record = parse_json(line, where, DatasetError)
    try:
        image_id = record["image_id"]
        results = [{"image_id": image_id, **detection} for detection in record["detections"]]
        # All masks of an image have the size of the picture.
        height, width = results[0]["segmentation"]["size"] if results else (0, 0)
        content = {
            "images": [{"id": image_id, "height": height, "width": width}],
            "categories": [{"id": result["category_id"]} for result in results],
        }
        ids = [image_id, *(category["id"] for category in content["categories"])]
        if not all(map(is_id, ids)):
            raise ValueError("an id that is no integer")
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where} is damaged ({error}): {_CURE}") from error
    check_results(results, content, where)
    return StoredImage(image_id, results)

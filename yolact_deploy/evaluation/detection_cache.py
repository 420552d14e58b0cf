"""Detections of many images on disk, so that an interrupted evaluation goes on where it stopped.

A file of JSON lines. The first says of which model, options and images the detections are; each further one has those
of one image, in the order of the images: ``{"image_id", "detections": [COCO results without image_id]}``. A line is
handed to the system in one piece. One that was torn all the same (a full disk, a power cut) is the last; it is dropped.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from yolact_deploy.datasets.coco_results import Result, check_results
from yolact_deploy.errors import DatasetError, InputError, OutputError

_FORMAT = "yolact-deploy detections"
_VERSION = 1
#: how each file begins
_MAGIC = b'{"format":"' + _FORMAT.encode() + b'"'
_CURE = "remove it, or name another file"


class StoredImage(NamedTuple):
    """What was found in one image."""

    image_id: int
    results: list[Result]  #: COCO results


class DetectionCache:
    """The detections of one model on some images; a context manager.

    Args:
        path: file to make, or to go on with
        key: what the detections depend on, as JSON-ready values: model file's hash, options, images
        image_ids: all images, in the order in which they are added
        resume: an existing file may be gone on with

    Raises:
        InputError: there is a file already and ``resume`` is False.
        DatasetError: the file is not of this key, or damaged.
        OutputError: it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], key: Mapping[str, Any], image_ids: Sequence[int], *, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self._image_ids = image_ids
        #: how many images are in the file
        self.stored = 0
        header = {"format": _FORMAT, "version": _VERSION, "key": json.loads(json.dumps(key))}
        if self.path.exists() and not resume:
            raise InputError(f"{self.path} exists: go on with it by --resume, {_CURE}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a line goes to the system in one piece. Reading and writing, wherever the end is.
            self._file = io.FileIO(self.path, "r+" if self.path.exists() else "x+")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}. Choose another place") from error
        try:
            self._open(header)
        except BaseException:
            self._file.close()
            raise

    def _open(self, header: dict[str, Any]) -> None:
        """Check the header, count the images, and cut off what comes after the last whole line."""
        reader = io.BufferedReader(self._file)
        whole = 0
        for line in reader:
            if not line.endswith(b"\n"):
                if whole == 0 and not _MAGIC.startswith(line[: len(_MAGIC)]):
                    raise _foreign(self.path)  # nothing of ours, so nothing to cut
                break
            if whole == 0:
                self._check_header(line, header)
            else:
                self.stored += 1
            whole += len(line)
        reader.detach()
        if self.stored > len(self._image_ids):
            raise DatasetError(f"{self.path} has more than the {len(self._image_ids)} images: {_CURE}")
        self._file.truncate(whole)
        self._file.seek(whole)
        if whole == 0:
            self._write(header)

    def _check_header(self, line: bytes, expected: dict[str, Any]) -> None:
        found = _header(line, self.path)
        for name in {**expected["key"], **found["key"]}:
            ours, theirs = expected["key"].get(name), found["key"].get(name)
            if ours != theirs:
                raise DatasetError(
                    f"{self.path} has other detections: {name} is {theirs!r} there and {ours!r} now: {_CURE}"
                )

    def __iter__(self) -> Iterator[StoredImage]:
        """What the file had when it was opened, image by image."""
        return _images(self.path, self._image_ids[: self.stored])

    def add(self, image_id: int, results: Sequence[Result]) -> None:
        """Append the next image's detections; they are with the system when this returns.

        Raises:
            OutputError: the disk is full, or fails.
        """
        found = [{key: value for key, value in result.items() if key != "image_id"} for result in results]
        self._write({"image_id": image_id, "detections": found})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = memoryview(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}. Free some space and go on with --resume"
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
    """Whether a file begins as those of this module do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


def read_detections(path: str | os.PathLike[str]) -> Iterator[StoredImage]:
    """All whole lines of a file, whatever model they are of.

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
        found = json.loads(line)
        ours = found["format"] == _FORMAT and isinstance(found["key"], dict)
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise _foreign(path)
    if found["version"] != _VERSION:
        raise DatasetError(
            f"{path} has detections of format {found['version']}, this version reads {_VERSION}: {_CURE}"
        )
    return dict(found)


def _foreign(path: Path) -> DatasetError:
    return DatasetError(f"{path} is no file of detections that eval --cache wrote: name another file")


def _image(line: bytes, where: str) -> StoredImage:
    try:
        record = json.loads(line)
        image_id, found = record["image_id"], record["detections"]
        results = [{"image_id": image_id, **result} for result in found]
        # Masks have the picture's size, which is the same for all of an image.
        height, width = results[0]["segmentation"]["size"] if results else (0, 0)
        content = {
            "images": [{"id": image_id, "height": height, "width": width}],
            "categories": [{"id": result["category_id"]} for result in results],
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{where} is damaged ({error}): {_CURE}") from error
    check_results(results, content, where)
    return StoredImage(image_id, results)

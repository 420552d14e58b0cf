"""Label Studio's JSON: a list of tasks, whose results are polygons in percent, and brush masks as run lengths.

Each polygon and each brush mask is an object, as the format groups nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.formats.mask_shapes import add_parts
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadPicture,
    ReadSet,
    check_size,
    ellipse,
    find_picture,
    from_shares,
    number,
    points,
    rectangle,
)
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import is_file, parse_json, shown

TITLE = "Label Studio JSON"
#: what Label Studio puts before the name of an uploaded file
_PREFIX = re.compile(r"[0-9a-f]{8}-")
_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")
_TRIED = 10


def recognizes(path: Path) -> bool:
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.json"))[:_TRIED]
    return [file for file in files if file.suffix.lower() == ".json" and _is_export(file)]


def _is_export(file: Path) -> bool:
    if not is_file(file):  # but a folder, or a pipe
        return False
    with file.open("rb") as stream:
        head = stream.read(1 << 20)
    return head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[") and all(
        key in head for key in (b'"data"', b'"annotations"', b'"result"')
    )


def read(path: Path, options: FormatOptions) -> ReadSet:
    result = ReadSet(TITLE, path)
    for file in _files(path):
        tasks = parse_json(result.data(file, "Label Studio file"), f"Label Studio file {file}", DatasetError)
        for place, task in enumerate(tasks):
            _read_task(task, f"{file}: task {place}", file, result, options)
    return result


def _read_task(task: Any, where: str, file: Path, result: ReadSet, options: FormatOptions) -> None:
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
        raise DatasetError(f"{where}: expected data and annotations, got {shown(task)}: export it as JSON again")
    given = [value for value in task["data"].values() if isinstance(value, str) and "." in value]
    if not given:
        raise DatasetError(f"{where}: data names no picture: {shown(task['data'])}")
    folders = [*filter(None, [options.images_dir]), file.parent, file.parent / "images"]
    named = task["data"].get("image")
    path = _picture(named if isinstance(named, str) and named else given[0], folders, where)
    picture = result.picture(path, path.parent, "train", file)
    annotations = [a for a in _dicts(task, "annotations", where) if not a.get("was_cancelled")]
    if len(annotations) > 1:
        result.notes["further annotation of a picture left out (the first is read)"] += len(annotations) - 1
    for number_, item in enumerate(_dicts(annotations[0], "result", where) if annotations else ()):
        if isinstance(item.get("value"), dict):
            _read_item(item, picture, f"{where}: result {number_}", result, options)


def _dicts(record: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The objects of a list in a task; a missing list is empty."""
    values = record.get(key)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DatasetError(f"{where}: {key}: expected a list of objects, got {shown(values)}: export it as JSON again")
    return values


def _picture(address: str, folders: list[Path], where: str) -> Path:
    """The picture of an address such as /data/upload/1/0a1b2c3d-name.jpg or /data/local-files/?d=folder/name.jpg."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise DatasetError(f"{where}: data: expected the address of a picture, got {shown(address)}: {error}") from None
    name = unquote((parse_qs(parts.query).get("d") or [parts.path])[0])
    try:
        return find_picture(name, folders, where)
    except DatasetError:
        last = PurePosixPath(name).name
        if not _PREFIX.match(last):
            raise
        return find_picture(_PREFIX.sub("", last, count=1), folders, where)


def _read_item(
    item: Mapping[str, Any], picture: ReadPicture, where: str, result: ReadSet, options: FormatOptions
) -> None:
    value = item["value"]
    kind = next((kind for kind in _KINDS if kind in value), None)
    if kind is None:
        result.notes[f"result of type {shown(item.get('type'))} left out, which is no object with a class"] += 1
        return
    labels = value[kind]
    if not isinstance(labels, list) or not labels or not isinstance(labels[0], str):
        raise DatasetError(f"{where}: {kind}: expected the names of classes, got {shown(labels)}: label it again")
    if len(labels) > 1:
        result.notes["further class of an object left out (the first is read)"] += len(labels) - 1
    if item.get("original_width") is not None:
        check_size(picture, item.get("original_height"), item["original_width"], where)
    if kind == "rectanglelabels" and not options.boxes:
        result.notes["box without an outline left out"] += 1
        return
    add_parts(result, picture, labels[0], [_part(kind, value, picture, where, result)])


def _part(
    kind: str, value: Mapping[str, Any], picture: ReadPicture, where: str, result: ReadSet
) -> list[float] | NDArray[np.bool_]:
    share = (picture.width / 100, picture.height / 100)
    if kind == "polygonlabels":
        return from_shares(points(value.get("points"), f"{where}: points"), picture, 100)
    if kind == "brushlabels":
        return brush_mask(value.get("rle"), picture.height, picture.width, where)
    result.notes[f"{'box' if kind == 'rectanglelabels' else 'ellipse'} taken as a mask of that shape"] += 1
    turn = number(value.get("rotation") or 0, f"{where}: rotation")
    x, y = (number(value.get(name), f"{where}: {name}") * share[i] for i, name in enumerate(("x", "y")))
    names = ("width", "height") if kind == "rectanglelabels" else ("radiusX", "radiusY")
    a, b = (number(value.get(name), f"{where}: {name}") * share[i] for i, name in enumerate(names))
    if kind == "ellipselabels":
        return ellipse(x, y, a, b, turn)
    corners = np.array(rectangle(0, 0, a, b)).reshape(-1, 2)  # turned around the first corner
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    ring: list[float] = (corners @ np.array([[cos, sin], [-sin, cos]]) + (x, y)).ravel().tolist()
    return ring


def brush_mask(rle: Any, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """The pixels of a brush mask, bool [H, W].

    The bytes are one stream of bits: the number of values (32 bits), the bits of a value less one (5), four lengths of
    run counters less one (4 each), and then runs: one bit says whether a single value repeats, two bits choose the
    length of the counter, which follows. The values are the RGBA bytes of the picture; the mask is alpha above 0.
    """
    if not isinstance(rle, list) or not all(isinstance(v, int) and 0 <= v < 256 for v in rle):
        raise DatasetError(f"{where}: rle: expected a list of bytes, got {shown(rle)}: export it as JSON again")
    bits = _Bits(np.unpackbits(np.array(rle, np.uint8)), where)
    count, word = bits.take(32), bits.take(5) + 1
    if count != 4 * height * width:
        raise DatasetError(
            f"{where}: rle: {count} values, expected {4 * height * width}, the RGBA of {width} x {height} pixels: give "
            "the picture that was labeled"
        )
    lengths = [bits.take(4) + 1 for _ in range(4)]
    values, done = np.zeros(count, np.bool_), 0
    while done < count:
        repeats = bits.take(1)
        stop = min(count, done + 1 + bits.take(lengths[bits.take(2)]))
        values[done:stop] = bits.take(word) > 0 if repeats else bits.words(stop - done, word) > 0
        done = stop
    return np.ascontiguousarray(values.reshape(height, width, 4)[..., 3])


class _Bits:
    """Numbers taken from a stream of bits, high bits first."""

    def __init__(self, bits: NDArray[np.uint8], where: str) -> None:
        self._bits, self._place, self._where = bits, 0, where

    def take(self, count: int) -> int:
        return int(self.words(1, count)[0])

    def words(self, count: int, bits: int) -> NDArray[np.int64]:
        stop = self._place + count * bits
        if stop > len(self._bits):
            raise DatasetError(f"{self._where}: rle: it ends early: export it as JSON again")
        part = self._bits[self._place : stop].reshape(count, bits).astype(np.int64)
        self._place = stop
        return np.asarray(part @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64)))

"""What a reader of another tool's format returns: pictures, objects, classes, and counts of what is left out."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.datasets.mask_check import is_too_long
from yolact_deploy.datasets.picture_size import picture_size
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import is_file, read_bytes, shown
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

#: COCO's ``segmentation``: polygon rings [x, y, x, y, ...] in pixels, or {"size": [H, W], "counts": text}
Segmentation = list[list[float]] | dict[str, Any]

_SIDE = 1 << 20


@dataclass(frozen=True)
class FormatOptions:
    """Choices where a format leaves one.

    Attributes:
        boxes: take boxes without an outline as rectangular masks; by default they are left out and counted
        class_name: class of objects in formats without classes
        images_dir: folder of the pictures; by default it is searched
    """

    boxes: bool = False
    class_name: str = "object"
    images_dir: Path | None = None


@dataclass(frozen=True)
class ReadObject:
    """One object: its class and mask, and other fields of its COCO annotation."""

    name: str
    mask: Segmentation
    iscrowd: bool = False
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadPicture:
    """One picture; ``name`` is its path from the folder of pictures, with slashes."""

    path: Path
    name: str
    height: int
    width: int
    objects: list[ReadObject] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


class ReadSet:
    """A whole dataset.

    Attributes:
        title: of the format
        path: as the user named it
        names: classes in order
        ids: category id of each class, if the format has them
        splits: pictures by the name of their split
        notes: what was left out or changed, and how often
        inputs: files and folders that were read
    """

    def __init__(self, title: str, path: Path, names: Iterable[str] = ()) -> None:
        self.title, self.path = title, path
        self.names: list[str] = list(names)
        self._known: set[str] = set()
        self.ids: list[int] | None = None
        self.categories: list[dict[str, Any]] = []
        self.splits: dict[str, list[ReadPicture]] = {}
        self.notes: Counter[str] = Counter()
        self.inputs: set[Path] = set()

    def add_class(self, name: str) -> str:
        """The name, which becomes a class if it is none yet."""
        if len(self._known) != len(self.names):  # readers set the names as well
            self._known = set(self.names)
        if name not in self._known:
            self._known.add(name)
            self.names.append(name)
        return name

    @property
    def pictures(self) -> Iterator[ReadPicture]:
        return (picture for pictures in self.splits.values() for picture in pictures)

    @property
    def objects(self) -> int:
        return sum(len(picture.objects) for picture in self.pictures)

    def describe(self) -> str:
        """One line: the format, counts, and what was left out or changed."""
        crowds = sum(o.iscrowd for picture in self.pictures for o in picture.objects)
        text = f"{self.title}, {sum(1 for _ in self.pictures)} pictures, {self.objects} objects"
        text += f" ({crowds} crowds)" if crowds else ""
        return f"{text}, {len(self.names)} classes" + "".join(f"; {line}" for line in self.note_lines())

    def note_lines(self) -> list[str]:
        """The notes, each with its count."""
        return [f"{count} x {note}" for note, count in self.notes.items()]

    def text(self, path: Path, what: str) -> str:
        """A file of text, noted as read; raises :class:`DatasetError`."""
        try:
            return self.data(path, what).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"cannot read {what} {path}: it is not text in UTF-8 ({error}): save it as UTF-8"
            ) from error

    def data(self, path: Path, what: str) -> bytes:
        self.inputs |= {path, path.parent}
        return read_bytes(path, what, DatasetError)

    def picture(self, path: Path, root: Path, split: str, source: Path | str) -> ReadPicture:
        """Add a picture to a split.

        Args:
            root: folder that its name is relative to
            source: the file that names it, for errors
        """
        size = picture_size(path)
        if size is None:
            raise DatasetError(f"{source}: cannot read the picture {path}: replace the file, or remove its entry")
        self.inputs.add(path.parent)
        name = Path(os.path.relpath(path, root)).as_posix()
        picture = ReadPicture(path, name, *size)
        self.splits.setdefault(split, []).append(picture)
        return picture

    def add_rings(
        self, picture: ReadPicture, name: str, rings: Sequence[Sequence[float]], iscrowd: bool = False
    ) -> None:
        """Add an object of polygon rings; parts of fewer than three points are counted and left out."""
        self.check_outlines(picture, name, rings)
        kept = [list(ring) for ring in rings if len(ring) >= 6]
        if len(kept) < len(rings):
            self.notes["outline of fewer than three points left out"] += len(rings) - len(kept)
        if kept:
            picture.objects.append(ReadObject(self.add_class(name), kept, iscrowd))

    def check_outlines(self, picture: ReadPicture, name: str, rings: Sequence[Sequence[float]]) -> None:
        """Raise :class:`DatasetError` if outlines are too long to be drawn."""
        outlines = [np.array(ring, np.float64).reshape(-1, 2) for ring in rings if ring]
        if is_too_long(outlines, picture.height, picture.width):
            raise DatasetError(
                f"{self.path}: an object of class {shown(name)} in {picture.name} has an outline far longer than "
                f"{picture.width} x {picture.height} pixels allow: correct it"
            )


def numbers(values: Iterable[Any], where: str) -> list[float]:
    """Finite numbers of pairs x, y; raises :class:`DatasetError`.

    Args:
        where: file and field, for errors
    """
    result = [_number(value, where) for value in values]
    if len(result) % 2:
        raise DatasetError(f"{where}: expected pairs of x and y, got {len(result)} numbers: correct the outline")
    return result


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or abs(number) > _SIDE:
        raise DatasetError(f"{where}: expected numbers of pixels, got {shown(value)}: correct the outline")
    return number


def number(value: Any, where: str) -> float:
    """One finite number; raises :class:`DatasetError`."""
    return _number(value, where)


def points(values: Any, where: str) -> list[float]:
    """[[x, y], ...] as [x, y, ...]; raises :class:`DatasetError`."""
    if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        raise DatasetError(f"{where}: expected points [x, y], got {shown(values)}: correct the outline")
    return numbers((value for pair in values for value in pair), where)


def from_shares(values: Sequence[float], picture: ReadPicture, whole: float = 1.0) -> list[float]:
    """Pixels of shares x, y, ... of width and height, to a thousandth.

    COCO's rule rounds to fifths of a pixel, where the digits that a share lacks would decide about half ones.

    Args:
        whole: what the full width is, 1 or 100
    """
    sides = picture.width / whole, picture.height / whole
    return [round(value * sides[place % 2], 3) for place, value in enumerate(values)]


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0.0) -> list[float]:
    """A polygon whose outline is within a fiftieth of a pixel of the ellipse, up to 720 corners."""
    corners = min(720, max(24, math.ceil(math.pi / math.acos(1 - min(0.5, 0.02 / max(rx, ry, 0.1))))))
    turn, ring = math.radians(degrees), []
    for step in range(corners):
        angle = 2 * math.pi * step / corners
        a, b = rx * math.cos(angle), ry * math.sin(angle)
        ring += [x + a * math.cos(turn) - b * math.sin(turn), y + a * math.sin(turn) + b * math.cos(turn)]
    return ring


def is_picture_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and the folders in it, sorted."""
    return sorted(path for path in folder.rglob("*") if is_picture_name(path) and path.is_file())


def split_name(name: str) -> str:
    """``train`` or ``val`` where the name says so, else the name itself."""
    low = name.lower()
    return next((split for split in ("train", "val") if split in low), name)


def check_size(picture: ReadPicture, height: Any, width: Any, where: str) -> None:
    """Raise :class:`DatasetError` if a file gives a picture another size than it has."""
    try:
        stated = int(height), int(width)
    except (TypeError, ValueError, OverflowError):
        raise DatasetError(f"{where}: expected height and width, got {shown(height)} and {shown(width)}") from None
    if stated != (picture.height, picture.width):
        raise DatasetError(
            f"{where}: {picture.path.name} has {picture.width} x {picture.height} pixels, not {stated[1]} x "
            f"{stated[0]}: give the pictures that were annotated"
        )


def find_picture(name: str, folders: Iterable[Path], source: Path | str) -> Path:
    """The picture of a name that a file of another computer gives: its whole path, or its last part, in the folders.

    Raises:
        DatasetError: it is in none of them.
    """
    slashed = name.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".", "..") and not part.endswith(":")]
    searched = list(dict.fromkeys(folders))
    for start in range(len(parts)):
        for folder in searched:
            path = folder.joinpath(*parts[start:])
            if is_file(path):
                return path
    where = ", ".join(str(folder) for folder in searched)
    raise DatasetError(f"{source}: the picture {shown(name)} is not in {where}: name its folder with --images-dir")

"""What a user names to detect in, sorted into pictures, videos and cameras, and checked before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from yolact_deploy.errors import InputError
from yolact_deploy.streams.video import is_camera, probe_video
from yolact_deploy.vocabulary import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@dataclass
class Sources:
    """Pictures and videos, in the order they were named; an int is a camera's number."""

    pictures: list[Path] = field(default_factory=list)
    videos: list[Path | int] = field(default_factory=list)

    def check_formats(self, formats: Sequence[str]) -> None:
        """Raises :class:`InputError` for a video that is wanted as COCO results."""
        if self.videos and "coco" in formats:
            raise InputError(
                f"coco results are for pictures, and {self.videos[0]} is a video: "
                "use --format json, which writes a line a frame"
            )


def find_sources(names: Sequence[str], *, recursive: bool = False) -> Sources:
    """Sort out what the names mean; folders give their pictures in alphabetic order.

    Raises:
        InputError: a name that is nothing, a folder without pictures, or an only video that cannot be read.
    """
    found = Sources()
    for name in names:
        path = Path(name)
        if is_camera(name):
            found.videos.append(int(name))
        elif path.is_dir():
            found.pictures += _folder(path, recursive)
        elif not path.exists():
            raise InputError(f"no such picture, folder or video: {name}")
        elif path.suffix.lower() in VIDEO_SUFFIXES or not _is_picture(path):
            found.videos.append(path)
        else:
            found.pictures.append(path)
    if not found.pictures and len(found.videos) == 1 and isinstance(found.videos[0], Path):
        probe_video(found.videos[0])  # among several, one that is damaged is reported and the others go on
    return found


def _folder(folder: Path, recursive: bool) -> list[Path]:
    try:
        entries = list(folder.rglob("*") if recursive else folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror or error}. Check its permissions") from error
    pictures = sorted(path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not pictures:
        hint = "" if recursive else "; --recursive looks into its folders, too"
        raise InputError(f"no pictures in folder {folder} (known are {', '.join(IMAGE_SUFFIXES)}){hint}")
    return pictures


def _is_picture(path: Path) -> bool:
    """By name; a file whose name does not tell is looked at."""
    return path.suffix.lower() in IMAGE_SUFFIXES or bool(cv2.haveImageReader(os.fspath(path)))


class UniqueNames:
    """Gives each picture a name of its own for outputs: its stem, with a number where that is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, stem: str) -> str:
        name = next(name for name in self._candidates(stem) if name.lower() not in self._taken)
        self._taken.add(name.lower())  # some file systems do not tell case apart
        return name

    @staticmethod
    def _candidates(stem: str) -> Iterator[str]:
        yield stem
        number = 2
        while True:
            yield f"{stem}-{number}"
            number += 1


def image_ids(pictures: Sequence[Path]) -> list[int]:
    """COCO image ids: the number that a picture's stem is, otherwise the smallest numbers from 1 that are free.

    >>> image_ids([Path("000000000139.jpg"), Path("street.jpg"), Path("1.jpg"), Path("night.jpg")])
    [139, 2, 1, 3]
    """
    ids: dict[int, int] = {}
    taken: set[int] = set()
    for index, path in enumerate(pictures):
        # Twice the same number, as in a/1.jpg and b/1.jpg: the second gets another.
        if path.stem.isdecimal() and int(path.stem) not in taken:
            ids[index] = int(path.stem)
            taken.add(ids[index])
    free = 1
    for index in range(len(pictures)):
        if index not in ids:
            while free in taken:
                free += 1
            ids[index] = free
            taken.add(free)
    return [ids[index] for index in range(len(pictures))]

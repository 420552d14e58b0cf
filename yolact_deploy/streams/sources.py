"""The inputs of a prediction: pictures, videos and cameras, checked before a model is loaded."""

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
    """Pictures and videos in the order given; an int is the number of a camera."""

    pictures: list[Path] = field(default_factory=list)
    videos: list[Path | int] = field(default_factory=list)

    def check_formats(self, formats: Sequence[str]) -> None:
        """Raise :class:`InputError` if COCO results are requested for a video."""
        if self.videos and "coco" in formats:
            raise InputError(
                f"--format coco requires pictures, and {self.videos[0]} is a video: use --format json, which "
                "writes one line per frame"
            )


def find_sources(names: Sequence[str], *, recursive: bool = False) -> Sources:
    """Sort names into pictures, videos and cameras; a folder stands for its pictures in alphabetical order.

    Raises:
        InputError: no such file, a folder without pictures, or a single video that cannot be read.
    """
    sources = Sources()
    for name in names:
        path = Path(name)
        if is_camera(name):
            sources.videos.append(int(name))
        elif path.is_dir():
            sources.pictures += _folder(path, recursive)
        elif not path.exists():
            raise InputError(f"no such picture, folder or video: {name}")
        elif path.suffix.lower() in VIDEO_SUFFIXES or not _is_picture(path):
            sources.videos.append(path)
        else:
            sources.pictures.append(path)
    if not sources.pictures and len(sources.videos) == 1 and isinstance(sources.videos[0], Path):
        probe_video(sources.videos[0])  # among several sources, a damaged one is reported and skipped later
    return sources


def _folder(folder: Path, recursive: bool) -> list[Path]:
    try:
        entries = list(folder.rglob("*") if recursive else folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror or error}. Check its permissions") from error
    pictures = sorted(path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not pictures:
        hint = "" if recursive else "; --recursive also searches its subfolders"
        raise InputError(f"no pictures in folder {folder} ({', '.join(IMAGE_SUFFIXES)}){hint}")
    return pictures


def _is_picture(path: Path) -> bool:
    """By suffix; files with other suffixes are opened."""
    return path.suffix.lower() in IMAGE_SUFFIXES or bool(cv2.haveImageReader(os.fspath(path)))


class UniqueNames:
    """Gives each output a unique name: the stem of its source, with a number if it is taken."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, stem: str) -> str:
        name = next(name for name in self._candidates(stem) if name.lower() not in self._taken)
        self._taken.add(name.lower())  # some file systems ignore case
        return name

    @staticmethod
    def _candidates(stem: str) -> Iterator[str]:
        yield stem
        number = 2
        while True:
            yield f"{stem}-{number}"
            number += 1


def image_ids(pictures: Sequence[Path]) -> list[int]:
    """COCO image ids: the stem of a picture if it is a number, otherwise the smallest free number from 1.

    >>> image_ids([Path("000000000139.jpg"), Path("street.jpg"), Path("1.jpg"), Path("night.jpg")])
    [139, 2, 1, 3]
    """
    ids: dict[int, int] = {}
    taken: set[int] = set()
    for index, path in enumerate(pictures):
        # If a number repeats, as in a/1.jpg and b/1.jpg, the second picture gets another one.
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

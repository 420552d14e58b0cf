"""The inputs of a prediction: pictures, videos and cameras, checked before a model is loaded."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2

from yolact_deploy.datasets.annotations import read_picture_ids
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import foreign_picture, read_image
from yolact_deploy.streams.marks import is_marked
from yolact_deploy.streams.video import is_camera, probe_video
from yolact_deploy.vocabulary import IMAGE_SUFFIXES, VIDEO_SUFFIXES


@dataclass(frozen=True)
class Picture:
    """A picture file, the folder of its outputs below the output folder, and its id in annotations, if known."""

    path: Path
    folder: Path = Path()
    image_id: int | None = None


@dataclass
class Sources:
    """Pictures and videos in the order given; an int is the number of a camera."""

    pictures: list[Picture] = field(default_factory=list)
    videos: list[Path | int] = field(default_factory=list)
    #: what the folders have besides, by the reason for which it is left out
    left_out: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    #: links to folders that were followed
    followed: list[Path] = field(default_factory=list)

    def check_formats(self, formats: Sequence[str]) -> None:
        """Raise :class:`InputError` if COCO results are requested for a video."""
        if self.videos and "coco" in formats:
            raise InputError(
                f"--format coco requires pictures, and {self.videos[0]} is a video: use --format json, which "
                "writes one line per frame"
            )

    def take_ids(self, annotations: str | os.PathLike[str]) -> None:
        """Give each picture the id of its name in a COCO file, and leave out those that the file does not list.

        Raises:
            DatasetError: not a COCO file, or two pictures of one name.
            InputError: it lists none of the pictures.
        """
        ids = read_picture_ids(annotations).of(os.fspath(picture.path) for picture in self.pictures)
        if not ids:
            raise InputError(f"{annotations} lists none of the {len(self.pictures)} pictures: give their annotations")
        numbers = [ids.get(os.fspath(picture.path)) for picture in self.pictures]
        rest = [picture.path for picture, number in zip(self.pictures, numbers, strict=True) if number is None]
        if rest:
            self.left_out[f"pictures that {Path(annotations).name} does not list"] += rest
        numbered = zip(self.pictures, numbers, strict=True)
        self.pictures = [replace(picture, image_id=number) for picture, number in numbered if number is not None]

    def describe_rest(self) -> list[str]:
        """One line per reason for which something was left out, and one about links that were followed."""
        lines = [f"left out {len(paths)} {reason}: {_some(paths)}" for reason, paths in self.left_out.items()]
        if self.followed:
            lines.append(f"followed {len(self.followed)} links to folders: {_some(self.followed)}")
        return lines


def find_sources(names: Sequence[str], *, recursive: bool = False) -> Sources:
    """Sort names into pictures, videos and cameras; a folder stands for its pictures in alphabetical order.

    Every picture that OpenCV can read counts, whatever its suffix. Hidden files and those of other kinds are left out.

    Args:
        recursive: also take pictures of folders in folders, through links as well, each folder once

    Raises:
        InputError: no such file, a folder without pictures, or a single source that cannot be read.
    """
    sources = Sources()
    for name in names:
        path = Path(name)
        if is_camera(name):
            sources.videos.append(int(name))
        elif path.is_dir():
            _add_folder(sources, path, recursive)
        elif not path.exists():
            raise InputError(f"no such picture, folder or video: {name}")
        elif path.suffix.lower() not in VIDEO_SUFFIXES and (_is_picture(path) or foreign_picture(path, _head(path))):
            sources.pictures.append(Picture(path))
        else:
            sources.videos.append(path)
    if len(names) == 1:  # among several sources, a damaged one is reported and skipped later
        _check_alone(sources)
    return sources


def _check_alone(sources: Sources) -> None:
    for picture in sources.pictures:
        if len(sources.pictures) == 1 and not cv2.haveImageReader(os.fspath(picture.path)):
            read_image(picture.path)
    for video in sources.videos:
        if not isinstance(video, Path):
            continue
        try:
            probe_video(video)
        except InputError as error:
            if video.suffix.lower() in VIDEO_SUFFIXES:
                raise
            raise InputError(f"{video} is neither a picture nor a video that OpenCV can read") from error


def _add_folder(sources: Sources, folder: Path, recursive: bool) -> None:
    pictures: list[Picture] = []
    searched: set[tuple[int, int]] = set()
    # What links name comes last, so that a folder is taken under its own name.
    waiting, linked = [folder], deque[Path]()
    while waiting or linked:
        current = waiting.pop() if waiting else linked.popleft()
        try:
            status = current.stat()
            entries = sorted(current.iterdir())
        except OSError as error:
            if current == folder:
                raise InputError(
                    f"cannot read folder {folder}: {error.strerror or error}. Check its permissions"
                ) from error
            sources.left_out["folders that cannot be read"].append(current)
            continue
        if (status.st_dev, status.st_ino) in searched:
            sources.left_out["links to folders that are searched anyway"].append(current)
            continue
        searched.add((status.st_dev, status.st_ino))
        if current.is_symlink() and current != folder:
            sources.followed.append(current)
        for path in entries:
            if (reason := _reason_against(path, recursive)) is not None:
                sources.left_out[reason].append(path)
            elif path.is_dir():
                (linked if path.is_symlink() else waiting).append(path)
            else:
                pictures.append(Picture(path, current.relative_to(folder)))
    if not pictures:
        hint = "" if recursive else "; --recursive also searches its subfolders"
        rest = "".join(f"; {line}" for line in sources.describe_rest())
        raise InputError(f"no pictures in folder {folder} ({', '.join(IMAGE_SUFFIXES)} ...){hint}{rest}")
    sources.pictures += sorted(pictures, key=lambda picture: picture.path)


def _reason_against(path: Path, recursive: bool) -> str | None:
    """Why something in a folder is neither a picture to run nor a folder to search; None if it is."""
    if path.name.startswith("."):
        return "hidden files and folders"
    if path.is_dir():
        return None if recursive else "folders (--recursive searches them)"
    if not path.is_file():
        return "dead links" if path.is_symlink() else "files of special kinds"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos (name them to run them)"
    is_picture = _is_picture(path)
    if (not is_picture or path.stem.endswith("_overlay")) and is_marked(path):
        return "files of earlier runs"
    return None if is_picture else "files that OpenCV cannot read as pictures"


def _is_picture(path: Path) -> bool:
    """By suffix; files with other suffixes are opened."""
    return path.suffix.lower() in IMAGE_SUFFIXES or bool(cv2.haveImageReader(os.fspath(path)))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""


def _some(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + (" ..." if len(paths) > 3 else "")


class UniqueNames:
    """Gives each output a unique name: the stem of its source, with a number if it is taken.

    Args:
        reserved: names of files that are no outputs of a source
    """

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken = {Path(name).stem for name in reserved}

    def __call__(self, stem: str | Path) -> str:
        name = next(name for name in self._candidates(str(stem)) if name.lower() not in self._taken)
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

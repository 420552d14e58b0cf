"""The inputs of a prediction: pictures, videos and other streams, checked before a model is loaded."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2

from yolact_deploy.datasets.annotations import categories_of, picture_ids, read_coco
from yolact_deploy.datasets.class_names import AnnotatedClasses
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import foreign_picture, is_picture, read_image
from yolact_deploy.streams.marks import is_marked
from yolact_deploy.streams.readers.kinds import KINDS, is_stream_name, kind_of
from yolact_deploy.streams.timed_frames import without_password
from yolact_deploy.streams.video import probe_video
from yolact_deploy.vocabulary import CLASS_MATCHES, IMAGE_SUFFIXES, TRACK_FORMATS, VIDEO_SUFFIXES

#: text files with one source a line
LIST_SUFFIXES = (".txt", ".streams")
_MOST_LISTED = 100_000


@dataclass(frozen=True)
class Picture:
    """A picture file, the folder of its outputs below the output folder, and its id in annotations, if known."""

    path: Path
    folder: Path = Path()
    image_id: int | None = None


@dataclass(frozen=True)
class NamedStream:
    """A video or another stream by its name, and the folder of its outputs below the output folder.

    Attributes:
        together: the list that names it, whose streams run side by side; None for others
    """

    name: str
    folder: Path = Path()
    together: str | None = None

    @property
    def is_file(self) -> bool:
        return kind_of(self.name) == "video file"

    @property
    def live(self) -> bool:
        """Whether it plays at its own pace, as far as its name shows."""
        return KINDS[kind_of(self.name)].live

    @property
    def stem(self) -> str:
        """For the names of outputs."""
        kind = kind_of(self.name)
        if kind == "video file":
            return Path(self.name).stem
        if kind == "camera":
            return f"camera{self.name.removeprefix('/dev/video')}"
        text = "stdin" if self.name == "-" else self.name
        return re.sub(r"[^A-Za-z0-9.]+", "_", without_password(text)).strip("_.")[:80]

    def __str__(self) -> str:
        return without_password(self.name)


@dataclass
class Sources:
    """Pictures and streams in the order given."""

    pictures: list[Picture] = field(default_factory=list)
    streams: list[NamedStream] = field(default_factory=list)
    #: what the folders have besides, by the reason for which it is left out
    left_out: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    #: those of the annotations that gave the ids of pictures
    classes: AnnotatedClasses | None = None
    #: links to folders that were followed
    followed: list[Path] = field(default_factory=list)

    def check_formats(self, formats: Sequence[str]) -> None:
        """Raise :class:`InputError` if COCO results are requested for a video, or tracks for pictures."""
        tracks = [name for name in formats if name in TRACK_FORMATS]
        if self.pictures and tracks:
            raise InputError(
                f"--format {tracks[0]} is for videos, and {self.pictures[0].path} is a picture: run the videos alone"
            )
        if self.streams and "coco" in formats:
            raise InputError(
                f"--format coco requires pictures, and {self.streams[0]} is a video: use --format json, which "
                "writes one line per frame, or --track --format ytvis, YouTube-VIS results"
            )

    def groups(self) -> list[list[NamedStream]]:
        """The streams that run side by side: live ones, and those of one list. Each other one is a group by itself."""
        groups: dict[object, list[NamedStream]] = defaultdict(list)
        for index, stream in enumerate(self.streams):
            groups[stream.together or ("live" if stream.live else index)].append(stream)
        return list(groups.values())

    def take_ids(self, annotations: str | os.PathLike[str], match_classes: str = CLASS_MATCHES[0]) -> None:
        """Give each picture the id of its name in a COCO file, and leave out those that the file does not list.

        Args:
            match_classes: how the file's classes are found in a model, one of
                :data:`~yolact_deploy.vocabulary.CLASS_MATCHES`

        Raises:
            DatasetError: not a COCO file, or two pictures of one name.
            InputError: it lists none of the pictures.
        """
        content = read_coco(annotations)
        categories_of(content, annotations)  # checks them
        self.classes = AnnotatedClasses.of(content, annotations, match_classes)
        ids = picture_ids(content, annotations).of(os.fspath(picture.path) for picture in self.pictures)
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
    """Sort names into pictures and streams; a folder stands for its pictures and videos in alphabetical order.

    Every picture that OpenCV can read counts, whatever its suffix. Hidden files and those of other kinds are left out.
    A pattern such as ``clips/*.mp4`` stands for what matches it, and a text file for the sources that it names, one a
    line; ``#`` starts a comment.

    Args:
        recursive: also take what is in folders in folders, through links as well, each folder once

    Raises:
        InputError: no such file, a folder without pictures and videos, or a single source that cannot be read.
    """
    sources = Sources()
    for name in names:
        _add(sources, name, recursive)
    if len(sources.pictures) + len(sources.streams) == 1 and not any(map(os.path.isdir, names)):
        _check_alone(sources)  # among several sources, a damaged one is reported and skipped later
    return sources


def _add(sources: Sources, name: str, recursive: bool, together: str | None = None) -> None:
    path = Path(name)
    if is_stream_name(name):
        sources.streams.append(NamedStream(name, together=together))
    elif path.is_dir():
        _add_folder(sources, path, recursive)
    elif not path.exists():
        _add_matches(sources, name, recursive)
    elif together is None and path.suffix.lower() in LIST_SUFFIXES:
        try:
            for listed in _read_list(path):
                _add(sources, listed, recursive, together=name)
        except InputError as error:
            raise InputError(f"{path} lists sources, one a line: {error}") from error
    elif path.suffix.lower() not in VIDEO_SUFFIXES and (is_picture(path) or foreign_picture(path, _head(path))):
        sources.pictures.append(Picture(path))
    else:
        sources.streams.append(NamedStream(name, together=together))


def _add_matches(sources: Sources, pattern: str, recursive: bool) -> None:
    """Add what a pattern with ``*``, ``?`` or ``[...]`` matches; ``**`` stands for any folders."""
    # Path.glob takes no absolute patterns.
    matches = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207
    if not matches:
        what = "nothing matches the pattern" if glob.has_magic(pattern) else "no such picture, folder or video:"
        raise InputError(f"{what} {pattern}")
    for match in matches:
        _add(sources, match, recursive)


def _read_list(path: Path) -> list[str]:
    """The sources in a text file; relative names count from its folder."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names or len(names) > _MOST_LISTED:
        raise InputError(f"expected 1 to {_MOST_LISTED} sources, got {len(names)}")
    if "-" in names:
        raise InputError("standard input, -, cannot be in a list")
    return [name if is_stream_name(name) or Path(name).is_absolute() else str(path.parent / name) for name in names]


def _check_alone(sources: Sources) -> None:
    for picture in sources.pictures:
        if not cv2.haveImageReader(os.fspath(picture.path)):
            read_image(picture.path)
    for stream in sources.streams:
        if not stream.is_file:
            continue
        try:
            probe_video(stream.name)
        except InputError as error:
            if Path(stream.name).suffix.lower() in VIDEO_SUFFIXES:
                raise
            raise InputError(f"{stream} is neither a picture nor a video that can be read") from error


def _add_folder(sources: Sources, folder: Path, recursive: bool) -> None:
    pictures: list[Picture] = []
    videos: list[NamedStream] = []
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
            elif path.suffix.lower() in VIDEO_SUFFIXES:
                videos.append(NamedStream(str(path), current.relative_to(folder)))
            else:
                pictures.append(Picture(path, current.relative_to(folder)))
    if not pictures and not videos:
        hint = "" if recursive else "; --recursive also searches its subfolders"
        rest = "".join(f"; {line}" for line in sources.describe_rest())
        raise InputError(f"no pictures or videos in folder {folder} ({', '.join(IMAGE_SUFFIXES)} ...){hint}{rest}")
    sources.pictures += sorted(pictures, key=lambda picture: picture.path)
    sources.streams += sorted(videos, key=lambda video: video.name)


def _reason_against(path: Path, recursive: bool) -> str | None:
    """Why something in a folder is neither a picture to run nor a folder to search; None if it is."""
    if path.name.startswith("."):
        return "hidden files and folders"
    if path.is_dir():
        return None if recursive else "folders (--recursive searches them)"
    if not path.is_file():
        return "dead links" if path.is_symlink() else "files of special kinds"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "files of earlier runs" if path.stem.endswith("_overlay") and is_marked(path) else None
    picture = is_picture(path)
    if (not picture or path.stem.endswith("_overlay")) and is_marked(path):
        return "files of earlier runs"
    return None if picture else "files that OpenCV cannot read as pictures"


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

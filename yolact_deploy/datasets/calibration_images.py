"""The pictures of a calibration: selected from a folder or dataset, and checked before the long work begins.

Pictures of a single color say nothing about the range of other pictures, and copies add nothing. Both are left out,
and so are files that cannot be read. A few of them in a large set do not stop the calibration. Pictures to judge by are
kept apart, since ranges fit the pictures they come from.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from yolact_deploy.datasets.annotations import read_coco
from yolact_deploy.datasets.image_sets import CocoImages, pictures_in, plain_images
from yolact_deploy.datasets.resolve import SplitFiles, picture_path, resolve_dataset
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import is_picture, read_image
from yolact_deploy.untrusted import is_file
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

#: with fewer pictures than this, other pictures exceed the ranges
FEW = 32
#: share of the files that may be unusable
UNUSABLE_SHARE = 0.1
#: share of a folder that is held out if the folder serves for both
_HELD_OUT_SHARE = 0.2
#: where pictures are in a folder without annotations; those of training first: accuracy is measured on the others
_FOLDERS = (".", "train2017", "images/train2017", "images/train", "train", "images", "val2017", "images/val2017")

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class UsableImages:
    """Pictures to calibrate on.

    Attributes:
        paths: the usable ones, in order
        sha256: a digest of the bytes of all pictures, in order
        notes: what the user should know about them, one sentence each
    """

    paths: tuple[Path, ...]
    sha256: str
    notes: tuple[str, ...] = ()


def calibration_images(source: str | os.PathLike[str], count: int | None = None) -> list[Path]:
    """Pictures of a folder or dataset, evenly spread over their sorted names; of a dataset, those of training first.

    Args:
        source: a folder of pictures, or a dataset (see `resolve`)
        count: how many, at most as many as there are; None for all

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    path = Path(source)
    if not path.exists():
        raise InputError(f"--calibration: expected a folder with pictures, there is none: {path}")
    if path.is_file() and is_picture(path):
        raise InputError(f"--calibration: expected a folder with pictures, it is a file: {path}")
    if count is not None and count < 1:
        raise InputError(f"--images: expected 1 or more, got {count}")
    splits = [split for split in resolve_dataset(path).splits if split.annotations.is_file()]
    training = [picture for split in splits if split.name == "train" for picture in _pictures_of(split)]
    others = (_pictures_of(split) for split in splits if split.name != "train")
    unlisted = map(pictures_in, map(path.joinpath, _FOLDERS))
    if pictures := next(filter(None, (training, *others, *unlisted)), None):
        return spread(pictures, count or len(pictures))
    raise InputError(
        f"--calibration: no pictures ({', '.join(IMAGE_SUFFIXES)}) in {path}, nor in {', '.join(_FOLDERS[1:])} "
        "there: give a folder that has some"
    )


def usable_images(paths: Sequence[Path]) -> UsableImages:
    """Read every picture once, and leave out the unusable ones.

    Raises:
        InputError: none is usable, or more than :data:`UNUSABLE_SHARE` are not.
    """
    digest, seen = hashlib.sha256(), set()
    usable: list[Path] = []
    unusable: dict[str, list[str]] = {"cannot be read": [], "have a single color": []}
    copies = 0
    for path in paths:
        try:
            plain = _is_plain(path)
            own = hashlib.sha256(path.read_bytes()).digest()
        except (InputError, OSError):
            unusable["cannot be read"].append(path.name)
            continue
        if plain:
            unusable["have a single color"].append(path.name)
        elif own in seen:
            copies += 1
        else:
            seen.add(own)
            digest.update(own)
            usable.append(path)
    reasons = [f"{len(names)} {why} (first: {names[0]})" for why, names in unusable.items() if names]
    if not usable or sum(map(len, unusable.values())) > UNUSABLE_SHARE * len(paths):
        raise InputError(
            f"of {len(paths)} calibration pictures, {' and '.join(reasons) or 'none exists'}: ranges from the "
            "rest would not fit the network at work. Give pictures like those it will see"
        )
    return UsableImages(tuple(usable), digest.hexdigest(), _notes(reasons, copies, len(usable)))


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """``count`` of the items, evenly spread over the list; all if there are not more.

    >>> spread("abcdefgh", 3)
    ['a', 'c', 'f']
    """
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _notes(reasons: Sequence[str], copies: int, usable: int) -> tuple[str, ...]:
    notes = [f"left out of the calibration: {reason}" for reason in reasons]
    if copies:
        notes.append(f"left out of the calibration: {copies} copies of other pictures")
    if usable < FEW:
        notes.append(
            f"only {usable} pictures for the calibration: larger values of other pictures will be clipped. "
            f"Give at least {FEW}, better some hundred"
        )
    return tuple(notes)


def _pictures_of(split: SplitFiles) -> list[Path]:
    """The pictures of a training split, sorted by name; of another, all those in the same folder."""
    for folder in split.own:  # saves reading the annotations, which take seconds and gigabytes for COCO
        if pictures := pictures_in(folder):
            return pictures
    records = read_coco(split.annotations)["images"]
    folder = split.locate(records).images
    names = [record.get("file_name") for record in records if isinstance(record, dict)]
    paths = {path for name in names if (path := picture_path(folder, name)) is not None}
    listed = sorted(filter(is_file, paths))
    if split.name != "train" and (pictures := pictures_in(folder)):
        return pictures
    if listed and len(listed) < len(paths):
        first = min(paths.difference(listed)).name
        _log.warning(
            "%d of the %d images of %s are missing in %s (first: %s): left out of the calibration",
            len(paths) - len(listed), len(paths), split.annotations, folder, first,
        )  # fmt: skip
    return listed


def _is_plain(path: Path) -> bool:
    """Whether all pixels are the same, apart from JPEG artifacts."""
    small = cv2.resize(read_image(path), (64, 64), interpolation=cv2.INTER_AREA)
    return float(np.ptp(small.reshape(-1, 3).astype(np.float32), axis=0).max()) <= 2


# -- pictures to judge by ----------------------------------------------------------------------------------------------


def calibration_apart(source: str | os.PathLike[str], count: int | None, judged: CocoImages) -> tuple[list[Path], str]:
    """Pictures of ``source`` that are not in ``judged``, evenly spread, and a note if there are too few of them.

    Args:
        source: folder of pictures or dataset
        count: how many, at most; None for all

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    every = calibration_images(source)
    taken = {path.resolve() for path in judged.paths}
    left = [path for path in every if path.resolve() not in taken]
    note = ""
    if len(left) < min(FEW, len(every)):
        note = (
            f"only {len(left)} calibration pictures are not among those that the result is judged by. All of them set "
            "the ranges, so the figures are better than on other pictures: give more, or other ones"
        )
        left = every
    return spread(left, len(left) if count is None else count), note


def judged_of_folder(source: str | os.PathLike[str], count: int) -> CocoImages:
    """Up to ``count`` pictures of a calibration folder, held out to judge by: at most a fifth of all, evenly spread.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    every = calibration_images(source)
    return plain_images(spread(every, max(1, min(count, int(_HELD_OUT_SHARE * len(every))))))

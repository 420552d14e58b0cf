"""The pictures of a calibration: chosen from a folder, and looked at before the long work begins.

Pictures of one colour teach a range nothing but that colour, and copies of one picture teach it nothing new; so both
are left out, and so are files that cannot be read. A few of them in a large set are no reason to stop.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

#: fewer pictures than this give ranges that other pictures pass
FEW = 32
#: share of the files that may be of no use
UNUSABLE_SHARE = 0.1
#: where the pictures of a COCO folder lie. Those of training come first: accuracy is measured on the others
_FOLDERS = (".", "train2017", "images/train2017", "images/train", "train", "images", "val2017", "images/val2017")
#: those in which pictures of training may lie beside others
_SHARED = (".", "images")


@dataclass(frozen=True)
class UsableImages:
    """Pictures to calibrate on.

    Attributes:
        paths: those of use, in their order
        sha256: the same for the same pictures in the same order, told by their bytes
        notes: what the user should know about them, a sentence each
    """

    paths: tuple[Path, ...]
    sha256: str
    notes: tuple[str, ...] = ()


def calibration_images(source: str | os.PathLike[str], count: int | None = None) -> list[Path]:
    """Pictures of a folder, or of a folder with a COCO set in it, evenly spread over their names in order.

    Args:
        count: how many, at most as many as there are; None for all

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    folder = Path(source)
    if not folder.is_dir():
        hint = "it is a file" if folder.exists() else "there is none"
        raise InputError(f"--calibration: expected a folder with pictures, {hint}: {folder}")
    if count is not None and count < 1:
        raise InputError(f"--images: expected 1 or more, got {count}")
    for name in _FOLDERS:
        found = _pictures(folder / name)
        if name in _SHARED:
            found = _of_training(folder, found)
        if found:
            wanted = min(count or len(found), len(found))
            return [found[i * len(found) // wanted] for i in range(wanted)]
    raise InputError(
        f"--calibration: no pictures ({', '.join(IMAGE_SUFFIXES)}) in {folder}, nor in {', '.join(_FOLDERS[1:])} "
        "there: give a folder that has some"
    )


def usable_images(paths: Sequence[Path]) -> UsableImages:
    """Read every picture once, and leave out those that are of no use.

    Raises:
        InputError: none is of use, or more than :data:`UNUSABLE_SHARE` are not.
    """
    digest, seen = hashlib.sha256(), set()
    usable: list[Path] = []
    unusable: dict[str, list[str]] = {"cannot be read": [], "have one colour only": []}
    copies = 0
    for path in paths:
        try:
            plain = _is_plain(path)
            own = hashlib.sha256(path.read_bytes()).digest()
        except (InputError, OSError):
            unusable["cannot be read"].append(path.name)
            continue
        if plain:
            unusable["have one colour only"].append(path.name)
        elif own in seen:
            copies += 1
        else:
            seen.add(own)
            digest.update(own)
            usable.append(path)
    reasons = [f"{len(names)} {why} (first: {names[0]})" for why, names in unusable.items() if names]
    wrong = sum(map(len, unusable.values()))
    if not usable or wrong > UNUSABLE_SHARE * len(paths):
        raise InputError(
            f"of {len(paths)} pictures for the calibration {' and '.join(reasons) or 'none is there'}: ranges from the "
            "rest would not be those of the network at work. Give pictures like those it will see"
        )
    notes = [f"left out of the calibration: {reason}" for reason in reasons]
    if copies:
        notes.append(f"left out of the calibration: {copies} copies of other pictures")
    if len(usable) < FEW:
        notes.append(
            f"only {len(usable)} pictures for the calibration: larger values of others will be clipped. "
            f"Give {FEW} at least, better some hundred"
        )
    return UsableImages(tuple(usable), digest.hexdigest(), tuple(notes))


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    except OSError as error:
        raise InputError(f"cannot read folder {folder}: {error.strerror or error}. Check its permissions") from error


def _of_training(folder: Path, found: list[Path]) -> list[Path]:
    """Those that the annotations of training name; all of them where there are no such annotations."""
    files = sorted((folder / "annotations").glob("instances_train*.json")) if found else []
    if not files:
        return found
    names = {Path(image["file_name"]).name for file in files for image in read_annotations(file)["images"]}
    return [path for path in found if path.name in names]


def _is_plain(path: Path) -> bool:
    """Whether all pixels are the same but for what a JPEG makes of them."""
    small = cv2.resize(read_image(path), (64, 64), interpolation=cv2.INTER_AREA)
    return float(np.ptp(small.reshape(-1, 3).astype(np.float32), axis=0).max()) <= 2

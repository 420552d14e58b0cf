"""Folders of mask pictures: ``images`` and ``masks``, or ``SPLIT/images`` and ``SPLIT/masks``.

Masks are, for a picture NAME, with or without a folder CLASS between:

- ``masks/CLASS/NAME.png``: each value but 0 is an object, in gray or in color
- ``masks/CLASS/NAME-NUMBER.png`` or ``NAME_NUMBER.png``, or any ``masks/CLASS/NAME/*.png``: a picture an object
- ``NAME/images/NAME.png`` with ``NAME/masks/*.png``, as in the Data Science Bowl of 2018
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.formats.mask_decoding import decode_mask_of, object_values
from yolact_deploy.datasets.formats.mask_shapes import mask_rle, pixels
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadObject,
    ReadPicture,
    ReadSet,
    pictures_below,
    split_name,
)
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import shown

TITLE = "mask pictures"
_IMAGES, _MASKS = ("images", "image", "imgs", "img"), ("masks", "mask", "instances")
_NUMBERED = re.compile(r"(.+)[-_]\d+")
_UNSAFE = re.compile(r"[^\w. -]+")
_TRIED = 3


def recognizes(path: Path) -> bool:
    return path.is_dir() and bool(_places(path))


def _places(path: Path) -> list[tuple[str, Path, Path]]:
    """(split, folder of pictures, folder of masks) of a dataset; one for each picture of the Data Science Bowl."""
    found = [("train", *pair)] if (pair := _pair(path)) else []
    if found:
        return found
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    if not any(_pair(folder) or _pair_below(folder) for folder in folders[:_TRIED]):
        return []
    for folder in folders:
        if pair := _pair(folder):
            found.append((_split(folder.name), *pair))
        else:
            below = sorted(inner for inner in folder.iterdir() if inner.is_dir())
            found += [(_split(folder.name), *pair) for inner in below if (pair := _pair(inner))]
    return found


def _split(name: str) -> str:
    known = split_name(name)
    return known if known in ("train", "val") or name.lower() == "test" else "train"


def _pair(folder: Path) -> tuple[Path, Path] | None:
    images = next((folder / name for name in _IMAGES if (folder / name).is_dir()), None)
    masks = next((folder / name for name in _MASKS if (folder / name).is_dir()), None)
    return (images, masks) if images and masks else None


def _pair_below(folder: Path) -> bool:
    return any(_pair(inner) for inner in sorted(p for p in folder.iterdir() if p.is_dir())[:_TRIED])


def read(path: Path, options: FormatOptions) -> ReadSet:
    result = ReadSet(TITLE, path)
    for split, images, masks in _places(path):
        listed = pictures_below(images)
        pictures = {picture.stem: picture for picture in listed}
        if len(pictures) < len(listed):
            raise DatasetError(f"{images}: two pictures have the same name but for folder or suffix: rename one")
        of_picture: dict[str, list[tuple[Path, str, bool]]] = {stem: [] for stem in pictures}
        alone = len(pictures) == 1
        for file in pictures_below(masks):
            name, stem, is_whole = _owner(file, masks, pictures, alone)
            if stem is None:
                raise DatasetError(
                    f"{file}: there is no picture of this name in {images}: name masks like pictures, or with -NUMBER "
                    "for one an object"
                )
            of_picture[stem].append((file, name or options.class_name, is_whole))
        for stem, files in of_picture.items():
            picture = result.picture(pictures[stem], images if len(pictures) > 1 else path, split, images)
            for file, name, is_whole in files:
                for mask in _masks(file, picture, is_whole, result):
                    picture.objects.append(ReadObject(result.add_class(name), mask_rle(mask)))
    return result


def _owner(file: Path, masks: Path, pictures: Mapping[str, Path], alone: bool) -> tuple[str | None, str | None, bool]:
    """Class and stem of the picture of a mask, and whether the mask may hold several objects."""
    *folders, last = file.relative_to(masks).parts
    stem = Path(last).stem
    if folders and folders[-1] in pictures:
        return (folders[0] if len(folders) > 1 else None), folders[-1], False
    if stem in pictures:
        return (folders[0] if folders else None), stem, True
    match = _NUMBERED.fullmatch(stem)
    if match and match[1] in pictures:
        return (folders[0] if folders else None), match[1], False
    return (folders[0] if folders else None), (next(iter(pictures)) if alone else None), False


def _masks(file: Path, picture: ReadPicture, is_whole: bool, result: ReadSet) -> Iterator[NDArray[np.bool_]]:
    """The objects of a mask picture."""
    image = decode_mask_of(result.data(file, "mask picture"), str(file), picture)
    if file.suffix.lower() in (".jpg", ".jpeg"):
        raise DatasetError(f"{file}: JPEG changes the values of masks: give PNG")
    values = image.astype(np.int64)
    if image.ndim == 3:
        bits = 8 * image.itemsize
        blue, green, red = values[..., :3].transpose(2, 0, 1)
        values = (red << 2 * bits) | (green << bits) | blue
    if not values.any():
        result.notes["mask picture without an object"] += 1
        return
    if not is_whole:
        yield values > 0
        return
    ids = object_values(values, str(file))
    if ids in ([255], [0xFFFFFF]):
        result.notes["mask picture of a single value taken as one object (touching ones need values of their own)"] += 1
    for value in ids:
        yield values == value


def write(dataset: ReadSet, folder: Path, placed: Mapping[tuple[str, Path], str]) -> None:
    """Write a PNG an object, ``SPLIT/masks/CLASS/NAME/NUMBER.png``; pictures are in ``SPLIT/images``."""
    for split, pictures in dataset.splits.items():
        for picture in pictures:
            stem = Path(placed[split, picture.path]).stem
            for index, o in enumerate(picture.objects, 1):
                if o.iscrowd:
                    dataset.notes["crowd left out, which mask pictures do not have"] += 1
                    continue
                name = _UNSAFE.sub("_", o.name).strip(".") or "_"
                if name != o.name:
                    dataset.notes[f"class {shown(o.name)} written as {shown(name)}, for a folder"] += 1
                mask = pixels(o.mask, picture.height, picture.width)
                data = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255))[1].tobytes()
                write_bytes(folder / split / "masks" / name / stem / f"{index}.png", data)

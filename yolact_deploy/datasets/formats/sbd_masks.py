"""SBD (Semantic Boundaries Dataset): pictures in ``img``, objects in ``inst/*.mat``, lists of splits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.datasets.formats.mask_shapes import mask_rle
from yolact_deploy.datasets.formats.pascal_voc import CLASSES, stems_of
from yolact_deploy.datasets.formats.read_set import FormatOptions, ReadObject, ReadSet, find_picture
from yolact_deploy.errors import DatasetError, import_optional

TITLE = "SBD"
_SPLITS = ("train", "val")
_MOST_OBJECTS = 10_000
#: of a file, which packs at most a thousand times as many values; those of SBD have some 10 kB
_MOST_BYTES = 1_000_000


def recognizes(path: Path) -> bool:
    return path.is_dir() and _root(path) is not None


def _root(path: Path) -> Path | None:
    places = (path, path / "dataset", path / "benchmark_RELEASE" / "dataset")
    return next((p for p in places if (p / "inst").is_dir() and any((p / "inst").glob("*.mat"))), None)


def read(path: Path, options: FormatOptions) -> ReadSet:
    root, result = _root(path), ReadSet(TITLE, path, CLASSES)
    assert root is not None
    lists = {split: root / f"{split}.txt" for split in _SPLITS if (root / f"{split}.txt").is_file()}
    stems = {split: stems_of(file, result) for split, file in lists.items()}
    for split, names in (stems or {"train": [file.stem for file in sorted((root / "inst").glob("*.mat"))]}).items():
        for stem in names:
            file = root / "inst" / f"{stem}.mat"
            folders = [*filter(None, [options.images_dir]), root / "img", root / "JPEGImages"]
            image = find_picture(f"{stem}.jpg", folders, file)
            picture = result.picture(image, image.parent, split, file)
            segmentation, categories = _objects(file, result)
            if segmentation.shape != (picture.height, picture.width):
                raise DatasetError(f"{file}: GTinst.Segmentation is {segmentation.shape[1]} x {segmentation.shape[0]}, "
                                   f"the picture {picture.width} x {picture.height}: replace one of them")  # fmt: skip
            if len(categories) > _MOST_OBJECTS:
                raise DatasetError(f"{file}: GTinst.Categories: {len(categories)} objects, more than {_MOST_OBJECTS}: "
                                   "replace the file")  # fmt: skip
            for number, category in enumerate(categories, 1):
                mask = segmentation == number
                if not mask.any():
                    result.notes["object without pixels left out"] += 1
                elif not 1 <= category <= len(CLASSES):
                    raise DatasetError(
                        f"{file}: GTinst.Categories: expected 1 to {len(CLASSES)}, got {category}: correct it"
                    )
                else:
                    picture.objects.append(ReadObject(CLASSES[category - 1], mask_rle(mask)))
    return result


def _objects(file: Path, result: ReadSet) -> tuple[np.ndarray[Any, Any], list[int]]:
    """The numbers of objects [H, W], and the category of each from 1 on."""
    matlab = import_optional("scipy.io", extra="sbd", purpose="reading SBD's .mat files")
    result.inputs |= {file, file.parent}
    if file.stat().st_size > _MOST_BYTES:
        raise DatasetError(f"{file} has more than {_MOST_BYTES} bytes, which no file of SBD has: replace it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are damaged; the check below finds them
            truth = matlab.loadmat(str(file), squeeze_me=True, struct_as_record=False)["GTinst"]
        return np.atleast_2d(truth.Segmentation), [int(value) for value in np.atleast_1d(truth.Categories)]
    except Exception as error:  # of many kinds, for a damaged file
        raise DatasetError(f"{file}: expected GTinst with Segmentation and Categories ({error}): replace it") from error

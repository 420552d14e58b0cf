"""A COCO file scanned for training, and the pictures it names, checked against its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.dataset_file import categories_of, read_coco
from yolact_deploy.datasets.scan import ImageRecord, Scan, scan
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.preprocess import read_image


class FileScan:
    """A :class:`~yolact_deploy.datasets.scan.Scan` of a file, with the classes it was read for."""

    def __init__(self, classes: dict[int, str], found: Scan) -> None:
        self.classes, self.scan, self.findings = classes, found, found.findings


def scan_file(annotations: Path, folder: Path, classes: Mapping[int, str] | None = None) -> FileScan:
    """Read and look through a COCO file; raises :class:`DatasetError` where it is none at all."""
    content = read_coco(annotations)
    own = categories_of(content, annotations)
    known = dict(own if classes is None else classes)
    renamed = [f"{n} is {own[n]!r} there and {name!r} here" for n, name in known.items() if own.get(n, name) != name]
    if renamed and set(known.values()) & set(own.values()):
        raise DatasetError(
            f"{annotations}: category {'; '.join(renamed[:3])}: are the ids of all splits the same? Correct the file, "
            "or the names of the dataset"
        )
    label_of = {number: label for label, number in enumerate(known)}
    return FileScan(known, scan(content, folder, label_of))


def read_checked(folder: Path, record: ImageRecord) -> NDArray[np.uint8]:
    """A picture, uint8 BGR [H, W, 3]; raises :class:`DatasetError` where it is not as its record says."""
    try:
        image = read_image(folder / record.file_name)
    except InputError as error:
        raise DatasetError(f"{error}; 'yolact-deploy data check --deep' finds all of its kind") from error
    if image.shape[:2] != (record.height, record.width):
        raise DatasetError(
            f"{folder / record.file_name} has {image.shape[1]} x {image.shape[0]} pixels, its annotations say "
            f"{record.width} x {record.height}: correct them, or turn the picture upright before annotating"
        )
    return image

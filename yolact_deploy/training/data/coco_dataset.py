"""`CocoDataset`: the images and targets of a COCO-style set, and the objects behind them for who augments.

Legend: H x W image, n objects, K keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.datasets.file_scan import read_checked, scan_file
from yolact_deploy.datasets.instance_table import Objects
from yolact_deploy.datasets.scan import ImageRecord, Scan
from yolact_deploy.training.data.augment import Target, make_target
from yolact_deploy.training.data.geometry import View


class CocoDataset:
    """Images and targets of a COCO instances file.

    ``dataset[i]`` is ``(image, target)``: the picture uint8 BGR [H, W, 3], and what
    :func:`~yolact_deploy.training.data.augment.make_target` returns, in pixels of the picture, with ``image_id``.
    Labels are 0-based and follow ``class_names``; crowds come last and are marked in ``iscrowd``.

    Args:
        annotations: the file
        images: folder of the pictures
        classes: name of each category id, in the order of the labels; by default those of the file in order of the ids
        keep_empty: with images that have no object but crowds, as background; the original leaves them out

    Raises:
        DatasetError: the file or its records are wrong; the message lists what, how often, and the cures.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        classes: Mapping[int, str] | None = None,
        keep_empty: bool = True,
    ) -> None:
        self.annotations, self.folder = Path(annotations), Path(images)
        found = scan_file(self.annotations, self.folder, classes)
        found.findings.raise_errors(self.annotations)
        self.class_names: tuple[str, ...] = tuple(found.classes.values())
        self.category_ids: tuple[int, ...] = tuple(found.classes)
        self._images: list[ImageRecord] = found.scan.images
        self._table = found.scan.table
        self._rows = _rows(found.scan, keep_empty)

    @classmethod
    def of_split(cls, spec: DatasetSpec, split: str, *, keep_empty: bool = True) -> CocoDataset:
        """A split, "train" or "val", of a described set."""
        part = spec.split(split)
        classes = dict(zip(spec.category_ids, spec.names, strict=True))
        return cls(part.annotations, part.images, classes=classes, keep_empty=keep_empty)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], Target]:
        objects = self.objects(index)
        view = View.whole(objects.height, objects.width)
        return self.image(index), {**make_target(objects, view), "image_id": self.record(index).image_id}

    @property
    def nbytes(self) -> int:
        """Memory of the annotations."""
        return self._table.nbytes

    def record(self, index: int) -> ImageRecord:
        """Id, file name and size of an image; raises IndexError beyond the end."""
        return self._images[int(self._rows[index])]

    def image(self, index: int) -> NDArray[np.uint8]:
        """The picture, uint8 BGR [H, W, 3].

        Raises:
            DatasetError: it cannot be read, or has another size than its annotations say.
        """
        record = self.record(index)
        return read_checked(self.folder, record)

    def objects(self, index: int) -> Objects:
        """What is annotated in an image, not drawn yet."""
        record = self.record(index)
        return self._table.objects(int(self._rows[index]), record.height, record.width)


def _rows(found: Scan, keep_empty: bool) -> NDArray[np.int64]:
    """Which images to give, in the order of their ids."""
    order = np.argsort([record.image_id for record in found.images], kind="stable")
    if keep_empty:
        return order
    first = found.table.first.numpy()
    regular = np.concatenate([[0], np.cumsum(~found.table.iscrowd.numpy())])[first]
    return np.asarray(order[np.diff(regular)[order] > 0])

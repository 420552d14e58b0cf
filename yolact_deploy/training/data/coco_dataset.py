"""`CocoDataset`: the images and targets of a COCO-style dataset, and the objects behind them for augmentation.

Legend: H x W image, n objects, K keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from yolact_deploy.datasets.annotations import ImageRecord
from yolact_deploy.datasets.dataset_file import DatasetSpec
from yolact_deploy.datasets.instance_table import Objects, ObjectTable
from yolact_deploy.datasets.scan import Scan, scan_file
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.training.data.augment import Target, make_target
from yolact_deploy.training.data.geometry import View


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """Images and targets of a COCO instances file.

    ``dataset[i]`` is ``(image, target)``: the picture as a tensor uint8 RGB [3, H, W], and the return value of
    :func:`~yolact_deploy.training.data.augment.make_target`, in pixels of the picture, with ``image_id``. Both have
    the size of the picture; `training_loader` augments and resizes them.
    Labels are 0-based and follow ``class_names``; crowds come last and are marked in ``iscrowd``.

    Args:
        annotations: the file
        images: folder of the pictures
        classes: name of each category id, in the order of the labels; by default those of the file in order of the ids
        keep_empty: keep images that have no object except crowds, as background; the original leaves them out
        lenient: leave out records that are not sound, and log how many

    Raises:
        DatasetError: the file or its records have errors; the message lists them with counts and cures.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str],
        *,
        classes: Mapping[int, str] | None = None,
        keep_empty: bool = True,
        lenient: bool = False,
    ) -> None:
        self.annotations, self.folder = Path(annotations), Path(images)
        scan = scan_file(self.annotations, self.folder, classes)
        scan.findings.settle(self.annotations, lenient=lenient)
        self.class_names: tuple[str, ...] = tuple(scan.classes.values())
        self.category_ids: tuple[int, ...] = tuple(scan.classes)
        self._images: list[ImageRecord] = scan.images
        # Tensors: however the workers of a DataLoader are started, they share them instead of copying them.
        self._arrays = {name: torch.from_numpy(array) for name, array in scan.table.arrays().items()}
        self._keypoint_mirror = scan.table.keypoint_mirror
        self._rows = _rows(scan, keep_empty)

    @classmethod
    def of_split(cls, spec: DatasetSpec, split: str, *, keep_empty: bool = True) -> CocoDataset:
        """The split "train" or "val" of a dataset."""
        part = spec.split(split)
        return cls(part.annotations, part.images, classes=spec.classes, keep_empty=keep_empty, lenient=spec.lenient)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        objects = self.objects(index)
        view = View.whole(objects.height, objects.width)
        rgb = np.ascontiguousarray(self.image(index)[:, :, ::-1].transpose(2, 0, 1))
        return torch.from_numpy(rgb), {**make_target(objects, view), "image_id": self.record(index).image_id}

    @property
    def nbytes(self) -> int:
        """Memory of the annotations."""
        return self._table().nbytes

    def record(self, index: int) -> ImageRecord:
        """Id, file name and size of an image; raises IndexError beyond the end."""
        return self._images[int(self._rows[index])]

    def image(self, index: int) -> NDArray[np.uint8]:
        """The picture, uint8 BGR [H, W, 3].

        Raises:
            DatasetError: the picture cannot be read, or its annotations state another size.
        """
        record = self.record(index)
        try:
            image = read_image(self.folder / record.file_name)
        except InputError as error:
            raise DatasetError(f"{error}; 'yolact-deploy data check --deep' reports all such pictures") from error
        if image.shape[:2] != (record.height, record.width):
            raise DatasetError(
                f"{self.folder / record.file_name} has {image.shape[1]} x {image.shape[0]} pixels, its annotations say "
                f"{record.width} x {record.height}: correct them, or turn the picture upright before annotating"
            )
        return image

    def objects(self, index: int) -> Objects:
        """The annotated objects of an image, not yet drawn."""
        record = self.record(index)
        return self._table().objects(int(self._rows[index]), record.height, record.width)

    def labels(self) -> Iterator[NDArray[np.int64]]:
        """Labels of the objects of each image, 0-based, without crowds."""
        table = self._table()
        for row in self._rows:
            part = slice(table.first[row], table.first[row + 1])
            yield table.labels[part][~table.iscrowd[part]].astype(np.int64)

    def _table(self) -> ObjectTable:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in self._arrays.items()}
        return ObjectTable(**arrays, keypoint_mirror=self._keypoint_mirror)


def _rows(scan: Scan, keep_empty: bool) -> NDArray[np.int64]:
    """Which images to give, in the order of their ids."""
    order = np.argsort([record.image_id for record in scan.images], kind="stable")
    if keep_empty:
        return order
    regular = np.concatenate([[0], np.cumsum(~scan.table.iscrowd)])[scan.table.first]
    return np.asarray(order[np.diff(regular)[order] > 0])

"""The objects of a batch as tensors, from a :class:`~yolact_deploy.training.data.batch.Batch` or a list of targets.

Legend: N images, n objects of one image, T objects of the batch, G the most objects of one image, H x W the image.

A target is a mapping, one for each image, as the datasets of this package give it. All of it describes the image as it
enters the network, after augmentation and resizing:

- ``boxes`` float [n, 4], xyxy in pixels of that image
- ``labels`` integers [n], 0-based; not read for crowds
- ``masks`` uint8 or bool [n, H, W], zero and one
- ``iscrowd`` [n], true for crowds, or one number 0 or 1 or bool for all objects; if it is missing, there are none
- ``width`` and ``height``, integers: the W and H of the masks, in which the boxes are measured

An image without objects has tensors with n = 0. ``area`` may be a number or have one value per object; the loss does
not use it. Other keys (``image_id``, ``keypoints``) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from yolact_deploy.errors import InputError

if TYPE_CHECKING:
    from yolact_deploy.training.data.batch import Batch

Target = Mapping[str, Any]
#: boxes float32 [n, 4] normalized, labels int64 [n] and crowd bool [n]
_Part = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a batch, image after image, and a last row T that stands for "no object".

    That last row has the whole image as its box, label 0, an empty mask, and counts as a crowd.
    """

    #: float32 [T + 1, 4] xyxy, normalized
    boxes: Tensor
    #: int64 [T + 1], 0-based; 0 for crowds
    labels: Tensor
    #: bool [T + 1]
    crowd: Tensor
    #: image of each row, int64 [T + 1]; 0 for the last
    image: Tensor
    #: rows of each image, int64 [N, G] with G at least 1, padded with T
    rows: Tensor
    #: objects of each image, crowds included
    counts: tuple[int, ...]
    #: uint8 or bool [n, H, W], for groups of objects in their order
    masks: tuple[Tensor, ...]

    @classmethod
    def of(cls, targets: Sequence[Target], num_classes: int, device: torch.device) -> GroundTruth:
        """Check the targets of a batch and join them on ``device``.

        Targets that are still on the CPU are copied there; nothing waits for the device.

        Raises:
            InputError: keys or shapes that do not fit, or labels outside the classes (on the CPU alone, since reading
                them from a device would wait for it).
        """
        for number, target in enumerate(targets):
            _check(target, number, num_classes)
        counts = tuple(len(target["boxes"]) for target in targets)
        masks = tuple(_moved(target["masks"], device) for target in targets)
        return cls._of_parts([_one_image(target, device) for target in targets], counts, masks, device)

    @classmethod
    def of_batch(cls, batch: Batch, num_classes: int) -> GroundTruth:
        """The objects of a batch, on its device: the same as :meth:`of` its targets.

        Raises:
            InputError: labels outside the classes, if the batch is on the CPU.
        """
        _check_labels(batch.labels, batch.iscrowd, num_classes, "batch")
        height, width = batch.images.shape[1:3]
        part = _normalized(batch.boxes, width, height), batch.labels.masked_fill(batch.iscrowd, 0), batch.iscrowd
        return cls._of_parts([part], batch.counts, (batch.masks,), batch.boxes.device)

    @classmethod
    def _of_parts(
        cls, parts: list[_Part], counts: tuple[int, ...], masks: tuple[Tensor, ...], device: torch.device
    ) -> GroundTruth:
        """Join the parts and add the row that stands for "no object"."""
        nothing = (
            _moved(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.ones(1, dtype=torch.bool, device=device),
        )
        boxes, labels, crowd = (torch.cat(values) for values in zip(*parts, nothing, strict=True))
        image, rows = (_moved(index, device) for index in _indices(counts))
        return cls(boxes, labels, crowd, image, rows, counts, masks)

    @property
    def size(self) -> int:
        """T, the objects of the batch."""
        return sum(self.counts)

    def masks_at(self, *sizes: tuple[int, int]) -> list[Tensor]:
        """The masks at other sizes (height, width): for each size bool [T + 1, height, width].

        Resized bilinearly without antialiasing and thresholded at one half, as in the original.
        """
        resized: list[list[Tensor]] = [[] for _ in sizes]
        for masks in (part for group in self.masks if len(group) for part in torch.split(group, 16)):
            full = masks.to(torch.float32)[None]  # few at a time, since as float32 they are large
            for size, parts in zip(sizes, resized, strict=True):
                parts.append(interpolate(full, size, mode="bilinear", align_corners=False)[0] > 0.5)
        none = [torch.zeros((1, *size), dtype=torch.bool, device=self.boxes.device) for size in sizes]
        return [torch.cat([*parts, last]) for parts, last in zip(resized, none, strict=True)]


def _one_image(target: Target, device: torch.device) -> _Part:
    boxes = _moved(target["boxes"], device).to(torch.float32)
    labels = _moved(target["labels"], device).to(torch.int64)
    crowd = _moved(_crowd(target), device).to(torch.bool)
    return _normalized(boxes, target["width"], target["height"]), labels.masked_fill(crowd, 0), crowd


def _normalized(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes [n, 4] in pixels as shares of the image."""
    side = _moved(torch.tensor([float(width), float(height)] * 2), boxes.device)
    # Adding 0 turns -0 into 0, on which the order of floats by their bits in the matching relies.
    return boxes / side + 0.0


def _moved(values: Any, device: torch.device) -> Tensor:
    """``values`` as a tensor on ``device``; the host does not wait for the copy."""
    return torch.as_tensor(values).to(device, non_blocking=device.type != "cpu")


def _crowd(target: Target) -> Tensor:
    count = len(target["boxes"])
    crowd = torch.as_tensor(False if target.get("iscrowd") is None else target["iscrowd"])
    return crowd.expand(count) if crowd.ndim == 0 else crowd


def _indices(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``image`` and ``rows`` of :class:`GroundTruth`, on the CPU, where the counts are known."""
    total, most = sum(counts), max(counts, default=0)
    per_image = torch.tensor(counts, dtype=torch.int64)
    image = torch.arange(len(counts)).repeat_interleave(per_image, output_size=total)
    place = torch.arange(max(most, 1))
    first = per_image.cumsum(0) - per_image
    rows = torch.where(place < per_image[:, None], first[:, None] + place, total)
    return pad(image, (0, 1)), rows


# -- checks ---------------------------------------------------------------------------------------------------------


def _check(target: Target, number: int, num_classes: int) -> None:
    if not isinstance(target, Mapping):
        raise InputError(
            f"target {number}: expected a dictionary with boxes, labels and masks, got {type(target).__name__}: give "
            "one for each image"
        )
    missing = [key for key in ("boxes", "labels", "masks", "width", "height") if key not in target]
    if missing:
        raise InputError(f"target {number} has no {', '.join(missing)}: give the targets of a dataset of this package")
    for key in ("boxes", "labels", "masks", "iscrowd", "area"):
        _check_type(target.get(key), key, number, may_be_single=key in ("iscrowd", "area"))
    shapes = {key: tuple(target[key].shape) for key in ("boxes", "labels", "masks")}
    count = shapes["boxes"][0] if shapes["boxes"] else 0
    size = (_side(target, "height", number), _side(target, "width", number))
    wanted = {"boxes": (count, 4), "labels": (count,), "masks": (count, *size)}
    for key in ("iscrowd", "area"):
        shape = tuple(torch.as_tensor(target[key]).shape) if target.get(key) is not None else ()
        if shape:
            shapes[key], wanted[key] = shape, (count,)
    for key, shape in shapes.items():
        if shape != wanted[key]:
            raise InputError(
                f"target {number}: expected {key} {list(wanted[key])}, got {list(shape)}: boxes, labels, masks and "
                f"iscrowd have one row per object, and masks the height {size[0]} and width {size[1]} of the target, "
                "in whose pixels the boxes are"
            )
    _check_labels(torch.as_tensor(target["labels"]), _crowd(target), num_classes, f"target {number}")


def _check_type(value: Any, key: str, number: int, *, may_be_single: bool) -> None:
    """Raise :class:`InputError` for what is neither a tensor nor an array nor, where allowed, a number."""
    single = may_be_single and (value is None or isinstance(value, (bool, int, float, list, tuple)))
    if not single and not isinstance(value, (Tensor, np.ndarray)):
        also = ", or a number" if may_be_single else ""
        raise InputError(
            f"target {number}: expected {key} to be a tensor{also}, got {type(value).__name__}: convert it with "
            "torch.as_tensor"
        )


def _side(target: Target, key: str, number: int) -> int:
    try:
        return int(target[key])
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(target[key]).__name__
        raise InputError(f"target {number}: expected {key} to be a whole number, got {kind}") from error


def _check_labels(labels: Tensor, crowd: Tensor, num_classes: int, source: str) -> None:
    if labels.device.type != "cpu" or len(labels) == 0:  # reading them from a device would wait for it
        return
    wrong = ((labels < 0) | (labels >= num_classes)) & ~crowd.to("cpu", torch.bool)
    if wrong.any():
        raise InputError(
            f"{source}: expected labels from 0 to {num_classes - 1}, got {labels[wrong].tolist()[:5]}: "
            "labels are 0-based and without the background; map the categories of the dataset to them"
        )

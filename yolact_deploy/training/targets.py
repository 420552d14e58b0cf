"""What a loss is told about the images: the targets of a dataset, checked once, as tensors of the whole batch.

Legend: N images, n objects of one image, T objects of the batch, G the most objects of one image, H x W the image.

A target is a mapping, one for each image, as the datasets of this package give it. All of it describes the image as it
enters the network, after augmentation and resizing:

- ``boxes`` float [n, 4], xyxy in pixels of that image
- ``labels`` whole numbers [n], 0-based; what a crowd has there is not read
- ``masks`` uint8 or bool [n, H, W], zero and one
- ``iscrowd`` [n], true for crowds; none where it is left out
- ``width`` and ``height``, whole numbers: the W and H of the masks, in which the boxes are measured

An image without objects has tensors with n = 0. Other keys (``area``, ``image_id``, ``keypoints``) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from yolact_deploy.errors import InputError

Target = Mapping[str, Any]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a batch, image after image, and a last row T that stands for "no object".

    That last row has the whole image as its box, label 0, an empty mask, and counts as a crowd.
    """

    #: float32 [T + 1, 4] xyxy, normalised
    boxes: Tensor
    #: int64 [T + 1], 0-based; 0 for crowds
    labels: Tensor
    #: bool [T + 1]
    crowd: Tensor
    #: which image a row belongs to, int64 [T + 1]; 0 for the last
    image: Tensor
    #: the rows of each image, int64 [N, G] with G at least 1, filled up with T
    rows: Tensor
    #: objects of each image, crowds included
    counts: tuple[int, ...]
    #: per image uint8 or bool [n, H, W]
    masks: tuple[Tensor, ...]

    @classmethod
    def of(cls, targets: Sequence[Target], num_classes: int, device: torch.device) -> GroundTruth:
        """Check the targets of a batch and put them together on ``device``.

        Targets that are still on the CPU are copied there; nothing waits for the device.

        Raises:
            InputError: keys or shapes that do not fit; labels outside the classes, where they are still on the CPU.
        """
        for number, target in enumerate(targets):
            _check(target, number, num_classes)
        counts = tuple(len(target["boxes"]) for target in targets)
        parts = [_one_image(target, device) for target in targets]
        nothing = (
            _moved(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.ones(1, dtype=torch.bool, device=device),
        )
        boxes, labels, crowd = (torch.cat(values) for values in zip(*parts, nothing, strict=True))
        image, rows = (_moved(index, device) for index in _layout(counts))
        masks = tuple(_moved(target["masks"], device) for target in targets)
        return cls(boxes, labels, crowd, image, rows, counts, masks)

    @property
    def size(self) -> int:
        """T, the objects of the batch."""
        return sum(self.counts)

    def masks_at(self, *sizes: tuple[int, int]) -> list[Tensor]:
        """The masks at other sizes (height, width): for each size bool [T + 1, height, width].

        Resized bilinearly, without antialiasing, and true above one half, as the original does.
        """
        found: list[list[Tensor]] = [[] for _ in sizes]
        for masks in (part for image in self.masks if len(image) for part in torch.split(image, 16)):
            full = masks.to(torch.float32)[None]  # few at a time, since as float32 they are large
            for size, parts in zip(sizes, found, strict=True):
                parts.append(interpolate(full, size, mode="bilinear", align_corners=False)[0] > 0.5)
        none = [torch.zeros((1, *size), dtype=torch.bool, device=self.boxes.device) for size in sizes]
        return [torch.cat([*parts, last]) for parts, last in zip(found, none, strict=True)]


def _one_image(target: Target, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes float32 [n, 4] normalised, labels int64 [n] and crowd bool [n] of one target."""
    boxes = _moved(target["boxes"], device).to(torch.float32)
    labels = _moved(target["labels"], device).to(torch.int64)
    crowd = _moved(_crowd(target), device).to(torch.bool)
    width, height = float(target["width"]), float(target["height"])
    side = _moved(torch.tensor([width, height, width, height]), device)
    # Adding 0 turns -0 into 0, on which the order of floats by their bits in the matching relies.
    return boxes / side + 0.0, labels.masked_fill(crowd, 0), crowd


def _moved(values: Any, device: torch.device) -> Tensor:
    """``values`` as a tensor on ``device``; the host does not wait for a copy from the CPU to it."""
    return torch.as_tensor(values).to(device, non_blocking=device.type != "cpu")


def _crowd(target: Target) -> Tensor:
    if target.get("iscrowd") is None:
        return torch.zeros(len(target["boxes"]), dtype=torch.bool)
    return torch.as_tensor(target["iscrowd"])


def _layout(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``image`` and ``rows`` of :class:`GroundTruth`, on the CPU: they follow from the counts, which the host knows."""
    total, most = sum(counts), max(counts, default=0)
    per_image = torch.tensor(counts, dtype=torch.int64)
    image = torch.arange(len(counts)).repeat_interleave(per_image, output_size=total)
    place = torch.arange(max(most, 1))
    first = per_image.cumsum(0) - per_image
    rows = torch.where(place < per_image[:, None], first[:, None] + place, total)
    return pad(image, (0, 1)), rows


# -- checks ---------------------------------------------------------------------------------------------------------


def _check(target: Target, number: int, num_classes: int) -> None:
    missing = [key for key in ("boxes", "labels", "masks", "width", "height") if key not in target]
    if missing:
        raise InputError(f"target {number} has no {', '.join(missing)}: give what a dataset of this package gives")
    shapes = {key: tuple(target[key].shape) for key in ("boxes", "labels", "masks")}
    count = shapes["boxes"][0] if shapes["boxes"] else 0
    size = (int(target["height"]), int(target["width"]))
    wanted = {"boxes": (count, 4), "labels": (count,), "masks": (count, *size)}
    if target.get("iscrowd") is not None:
        shapes["iscrowd"], wanted["iscrowd"] = tuple(target["iscrowd"].shape), (count,)
    for key, shape in shapes.items():
        if shape != wanted[key]:
            raise InputError(
                f"target {number}: expected {key} {list(wanted[key])}, got {list(shape)}: boxes, labels, masks and "
                f"iscrowd have one row an object, and masks the height {size[0]} and width {size[1]} of the target, "
                "in whose pixels the boxes are"
            )
    _check_labels(target, number, num_classes)


def _check_labels(target: Target, number: int, num_classes: int) -> None:
    labels = torch.as_tensor(target["labels"])
    if labels.device.type != "cpu" or len(labels) == 0:  # to look at them on a device would wait for it
        return
    crowd = _crowd(target).to("cpu", torch.bool)
    wrong = ((labels < 0) | (labels >= num_classes)) & ~crowd
    if wrong.any():
        raise InputError(
            f"target {number}: expected labels from 0 to {num_classes - 1}, got {labels[wrong].tolist()[:5]}: "
            "labels are 0-based and without the background; map the categories of the dataset to them"
        )

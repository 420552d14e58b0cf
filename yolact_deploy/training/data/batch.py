"""Joins samples into a batch, and turns it into the trunk's input on the device.

Images stay pixel values in BGR [N, S, S, 3], a quarter of the bytes of floats. Masks travel as bits, an eighth of their
bytes, and become bytes when the loss needs them. Values of the objects of all images are one tensor, since each tensor
that leaves a worker costs a file descriptor.

Legend: N images, S side, T objects of the batch, n of one image, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolact_deploy.config import YolactConfig
from yolact_deploy.training.data.augment import Target


@dataclass(frozen=True)
class Batch:
    """Images and their annotated objects, image after image."""

    images: Tensor  #: uint8 (or float32) [N, S, S, 3], BGR pixel values
    counts: tuple[int, ...]  #: objects of each image
    boxes: Tensor  #: float32 [T, 4] xyxy in pixels
    labels: Tensor  #: int64 [T], 0-based
    mask_bits: Tensor  #: uint8 [T, S, ceil(S / 8)], most significant bit first
    area: Tensor  #: float32 [T], in pixels
    iscrowd: Tensor  #: bool [T]
    image_ids: tuple[int, ...]
    keypoints: Tensor | None = None  #: float32 [T, K, 3]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.counts)

    @property
    def masks(self) -> Tensor:
        """Masks uint8 [T, S, S], zero and one, on the batch's device; unpacked at each access."""
        width = self.images.shape[2]
        if self.mask_bits.device.type == "cpu":
            return torch.from_numpy(np.unpackbits(self.mask_bits.numpy(), axis=-1, count=width))
        return unpack_masks(self.mask_bits, width)

    @property
    def targets(self) -> list[Target]:
        """One target per image, on the batch's device; masks are unpacked at each access."""
        height, width = self.images.shape[1:3]
        parts = {name: torch.split(value, list(self.counts)) for name, value in self._objects().items()}
        return [
            {**{name: part[i] for name, part in parts.items()}, "image_id": number, "width": width, "height": height}
            for i, number in enumerate(self.image_ids)
        ]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``; the host does not wait for copies from pinned memory."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in pinned memory (the DataLoader calls it)."""
        return self._map(Tensor.pin_memory)

    def _objects(self) -> dict[str, Tensor]:
        names = ("boxes", "labels", "masks", "area", "iscrowd", "keypoints")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def _map(self, function: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if isinstance(value, Tensor)})


def collate(samples: Sequence[tuple[Any, Target]]) -> Batch:
    """Join images [S, S, 3] of one size, each with its target."""
    targets = [target for _, target in samples]
    joined = {name: torch.cat([t[name] for t in targets]) for name in ("boxes", "labels", "area", "iscrowd")}
    bits = [torch.from_numpy(np.packbits(target["masks"].numpy(), axis=-1)) for target in targets]
    keypoints = torch.cat([t["keypoints"] for t in targets]) if all("keypoints" in t for t in targets) else None
    return Batch(
        images=torch.stack([torch.from_numpy(image) for image, _ in samples]),
        counts=tuple(len(target["boxes"]) for target in targets),
        image_ids=tuple(int(target.get("image_id", -1)) for target in targets),
        mask_bits=torch.cat(bits),
        keypoints=keypoints,
        **joined,
    )


def unpack_masks(bits: Tensor, width: int) -> Tensor:
    """Masks uint8 [T, S, width], zero and one, from bits uint8 [T, S, ceil(width / 8)], on their device."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).flatten(-2)[..., :width].contiguous()


class Normalizer(nn.Module):
    """Turns BGR pixel values into the trunk's input, on the device of the images."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: YolactConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("std", torch.tensor(config.pixel_std), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """From uint8 or float [N, S, S, 3] BGR in 0..255 to float32 RGB [N, 3, S, S], channels-last in memory."""
        scaled = (images.to(torch.float32) - self.mean) / self.std
        return scaled.flip(-1).permute(0, 3, 1, 2)

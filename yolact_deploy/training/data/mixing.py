"""Augmentation after a picture has its final size: quarter turns, vertical flips, and objects pasted from another one.

Both work on an image and its target, so masks, boxes and keypoints change together.

Legend: H x W image, n objects, K keypoints.

Source: Simple Copy-Paste (arXiv:2012.07177).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Target = dict[str, Any]
Pixels = NDArray[Any]

#: an object of which less than this share stays visible under pasted ones is dropped
_LEAST_VISIBLE = 0.1


def turned(image: Pixels, target: Target, quarters: int, flipped: bool) -> tuple[Pixels, Target]:
    """An image [H, W, 3] and its target, flipped top to bottom and turned counterclockwise by quarters.

    Keypoints keep their meaning: left and right change only in a mirror.
    """
    masks = target["masks"]
    boxes, points = target["boxes"], target.get("keypoints")
    corners = boxes.reshape(-1, 2, 2)
    if flipped:
        image, masks = image[::-1], masks.flip(1)
        height = image.shape[0]
        corners, points = _flip(corners, height), None if points is None else _flip(points, height)
    for _ in range(quarters % 4):
        width = image.shape[1]
        image, masks = np.rot90(image), torch.rot90(masks, 1, (1, 2))
        corners, points = _turn(corners, width), None if points is None else _turn(points, width)
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    height, width = image.shape[:2]
    changed = {"boxes": boxes, "masks": masks.contiguous(), "width": width, "height": height}
    return np.ascontiguousarray(image), {**target, **changed, **({} if points is None else {"keypoints": points})}


def _flip(points: Tensor, height: int) -> Tensor:
    """Points [n, k, 2 or 3] upside down; keypoints that are not annotated stay zero."""
    result = points.clone()
    result[..., 1] = height - result[..., 1]
    return _only_annotated(result, points)


def _turn(points: Tensor, width: int) -> Tensor:
    """Points [n, k, 2 or 3] a quarter counterclockwise: (x, y) becomes (y, W - x)."""
    result = points.clone()
    result[..., 0], result[..., 1] = points[..., 1], width - points[..., 0]
    return _only_annotated(result, points)


def _only_annotated(result: Tensor, points: Tensor) -> Tensor:
    if points.shape[-1] == 3:
        result[points[..., 2] == 0] = 0
    return result


def copy_paste(
    image: Pixels, target: Target, other: Pixels, objects: Target, rng: np.random.Generator
) -> tuple[Pixels, Target]:
    """An image and its target with some objects of another image of the same size on top.

    Each object of ``other`` that is not a crowd is taken with probability 1/2. What is covered leaves the masks below,
    whose boxes shrink to what remains; an object of which less than a tenth remains is dropped.
    """
    chosen = (~objects["iscrowd"]) & torch.from_numpy(rng.random(len(objects["boxes"])) < 0.5)
    if not chosen.any():
        return image, target
    pasted = objects["masks"][chosen] > 0
    cover = pasted.any(dim=0)
    image = np.where(cover.numpy()[..., None], other, image)
    below = target["masks"] * ~cover
    kept = below.flatten(1).sum(dim=1) >= _LEAST_VISIBLE * target["masks"].flatten(1).sum(dim=1).clamp(min=1)
    merged = {
        "boxes": torch.cat([_shrunk(target["boxes"], below, target["masks"])[kept], objects["boxes"][chosen]]),
        "masks": torch.cat([below[kept], objects["masks"][chosen]]),
    }
    for key in ("labels", "area", "iscrowd", "keypoints"):
        if key in target and key in objects:
            merged[key] = torch.cat([target[key][kept], objects[key][chosen]])
    crowds_last = merged["iscrowd"].to(torch.int64).argsort(stable=True)
    return np.ascontiguousarray(image), {**target, **{key: value[crowds_last] for key, value in merged.items()}}


def _shrunk(boxes: Tensor, masks: Tensor, before: Tensor) -> Tensor:
    """Boxes [n, 4], those of masks that lost pixels around what remains of them."""
    result = boxes.clone()
    for place, (mask, whole) in enumerate(zip(masks, before, strict=True)):
        if torch.equal(mask, whole) or not mask.any():
            continue
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        around = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).to(boxes.dtype)
        result[place, :2] = torch.maximum(boxes[place, :2], around[:2])
        result[place, 2:] = torch.minimum(boxes[place, 2:], around[2:])
    return result

"""Random small ground truths and outputs for the tests of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lossinputs import ellipse_masks

SIZE = 48  # of the images, in pixels
CLASSES = 4
KINDS = 5  # prototypes
SIDE = 24  # of the prototypes


def make_image(rng: np.random.Generator, objects: int, crowds: int = 0, grid: int = SIZE) -> dict[str, Any]:
    """An image for `plain_loss` with normalized boxes on a grid (a coarse one creates ties)."""
    count = objects + crowds
    start = rng.integers(0, grid - 1, (count, 2))
    end = start + 1 + (rng.random((count, 2)) * (grid - start - 1)).astype(int)
    boxes = np.concatenate([start, end], axis=1).astype(np.float32) / np.float32(grid)
    crowd = np.zeros(count, bool)
    crowd[rng.permutation(count)[:crowds]] = True
    labels = np.where(crowd, -1, rng.integers(0, CLASSES, count))
    masks = ellipse_masks(boxes, SIZE).reshape(count, SIZE, SIZE)
    return {"boxes": boxes, "labels": labels, "crowd": crowd, "masks": torch.from_numpy(masks)}


def target(image: dict[str, Any]) -> dict[str, Any]:
    """The image as a target of a dataset; division by 2**k or SIZE does not change the boxes."""
    return {
        "boxes": torch.from_numpy(image["boxes"] * np.float32(SIZE)),
        "labels": torch.from_numpy(image["labels"]),
        "iscrowd": torch.from_numpy(image["crowd"]),
        "masks": image["masks"],
        "width": SIZE,
        "height": SIZE,
    }


def make_priors(rng: np.random.Generator, count: int, grid: int = 2 * SIZE) -> torch.Tensor:
    """Priors [count, 4] on a grid, some of them equal."""
    center = rng.integers(1, grid, (count, 2))
    size = rng.integers(grid // 12, grid // 2, (count, 2))
    priors = np.concatenate([center, size], axis=1).astype(np.float32) / np.float32(grid)
    priors[rng.integers(0, count, count // 4)] = priors[rng.integers(0, count, count // 4)]
    return torch.from_numpy(priors)


def make_outputs(rng: np.random.Generator, images: int, priors: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs of a network, float64 with gradients (priors without)."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    outputs = {
        "boxes": normal(images, len(priors), 4),
        "scores": normal(images, len(priors), CLASSES + 1) * 2,
        "masks": normal(images, len(priors), KINDS).tanh(),
        "proto_masks": normal(images, SIDE, SIDE, KINDS).relu(),
        "semantic_masks": normal(images, CLASSES, 12, 12),
    }
    return {key: value.requires_grad_() for key, value in outputs.items()} | {"prior_boxes": priors}


def single(outputs: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A copy of the outputs in another precision, with its own gradients."""
    return {
        key: value if key == "prior_boxes" else value.detach().to(dtype).requires_grad_()
        for key, value in outputs.items()
    }

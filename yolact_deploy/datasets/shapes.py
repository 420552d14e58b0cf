"""`shapes`: a generated instance segmentation dataset, a real test bed that needs no download.

Textured shapes of eight kinds and many sizes overlap on cluttered backgrounds. Color and texture are independent of
the kind: only the outline identifies it. As in COCO, hidden parts do not belong to a mask, and swarms of many small
shapes are annotated as crowds. Image ``i`` of a seed is the same on every machine: NumPy computes the outlines from a
separate generator (PCG64); OpenCV draws the lines of the backgrounds and the blur.

Legend: H x W image, n objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.errors import DatasetError, OutputError
from yolact_deploy.mask_forms import MaskCrops

KINDS = ("disc", "square", "triangle", "star", "ring", "cross", "crescent", "bone")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Image = NDArray[np.uint8]

_LEAST_PIXELS = 24
_LEAST_VISIBLE = 0.25  # share of a shape that must be visible for it to count
_CROWD_CHANCE = 0.08
_MOST_OBJECTS = 9
#: first image of each split: no image is in two, and held-out images do not depend on the size of the training set
_FIRST = {"train": 0, "val": 1_000_000}


@dataclass(frozen=True)
class Shape:
    """The visible part of one object of an image."""

    label: int  #: index into :data:`KINDS`
    mask: Bools  #: [H, W]
    iscrowd: bool


@dataclass(frozen=True)
class ShapesImage:
    """One generated image."""

    image: Image  #: uint8 BGR [H, W, 3]
    shapes: tuple[Shape, ...]


# -- outlines: which points of the square [-1, 1]^2 are inside -------------------------------------------------------


def _polygon(corners: Floats) -> Callable[[Floats, Floats], Bools]:
    """Even-odd test against a polygon [k, 2]."""

    def inside(x: Floats, y: Floats) -> Bools:
        odd = np.zeros(x.shape, np.bool_)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if ay == by:
                continue
            crosses = (ay > y) != (by > y)
            odd ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        return odd

    return inside


def _round(points: int, inner: float = 1.0) -> Floats:
    """Corners around the unit circle, every second one at ``inner``."""
    angle = np.arange(points) * (2 * math.pi / points) - math.pi / 2
    radius = np.where(np.arange(points) % 2, inner, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_SQUARE = _polygon(np.array([[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]]))
_TRIANGLE = _polygon(_round(3))
_STAR = _polygon(_round(10, 0.42))
_CROSS = _polygon(
    np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    )
    / 3
)


def _disc(x: Floats, y: Floats) -> Bools:
    return x * x + y * y <= 1.0


OUTLINES: tuple[Callable[[Floats, Floats], Bools], ...] = (
    _disc,
    _SQUARE,
    _TRIANGLE,
    _STAR,
    lambda x, y: _disc(x, y) & ~_disc(x / 0.55, y / 0.55),
    _CROSS,
    lambda x, y: _disc(x, y) & ~_disc((x - 0.45) / 0.85, y / 0.85),
    lambda x, y: (np.abs(y) <= 0.2) & (np.abs(x) <= 0.7) | _disc((np.abs(x) - 0.62) / 0.38, (np.abs(y) - 0.26) / 0.38),
)


# -- textures ---------------------------------------------------------------------------------------------------------


def _texture(rng: np.random.Generator, height: int, width: int) -> Floats:
    """A patch [height, width, 3] of pixel values: plain, stripes, checks, a ramp or noise in two random colors."""
    first: Floats
    second: Floats
    first, second = rng.uniform(20, 235, (2, 3))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 14)
    along = (x * math.cos(angle) + y * math.sin(angle)) / period
    across = (y * math.cos(angle) - x * math.sin(angle)) / period
    kind = int(rng.integers(5))
    if kind == 0:
        share = np.zeros((height, width))
    elif kind == 1:
        share = (np.floor(along) % 2).astype(np.float64)
    elif kind == 2:
        share = ((np.floor(along) + np.floor(across)) % 2).astype(np.float64)
    elif kind == 3:
        share = (along - along.min()) / max(float(np.ptp(along)), 1e-9)
    else:
        share = _noise(rng, height, width, 3)
    second = first + (second - first) * (0.6 if kind else 0.0)
    return first + (second - first) * share[..., None]


def _noise(rng: np.random.Generator, height: int, width: int, scale: int) -> Floats:
    """Smooth noise in 0..1 with blobs of about ``scale`` pixels."""
    coarse = rng.random((height // scale + 2, width // scale + 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.float64)


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Blobs of color in three sizes, with lines that belong to no object."""
    base = np.zeros((height, width, 3))
    for scale, weight in ((64, 0.5), (24, 0.3), (6, 0.2)):
        for channel in range(3):
            base[..., channel] += weight * _noise(rng, height, width, scale)
    low, high = np.sort(rng.uniform(0, 255, (2, 3)), axis=0)
    canvas: Floats = low + (high - low) * base
    for _ in range(int(rng.integers(4, 14))):
        start, end = (rng.uniform(-0.1, 1.1, (2, 2)) * (width, height)).astype(int).tolist()
        cv2.line(canvas, start, end, rng.uniform(0, 255, 3).tolist(), int(rng.integers(1, 4)))
    return canvas


# -- an image ---------------------------------------------------------------------------------------------------------


def _stamp(rng: np.random.Generator, canvas: Floats, label: int, center: Floats, radius: float) -> Bools:
    """Paint one shape, rotated and stretched at random; returns its whole mask [H, W]."""
    height, width = canvas.shape[:2]
    angle, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.35, 0.35))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    dx, dy = (x + 0.5 - center[0]) / radius, (y + 0.5 - center[1]) / radius
    near = np.maximum(np.abs(dx), np.abs(dy)) < 1.6
    mask = np.zeros((height, width), np.bool_)
    turned_x = (dx[near] * math.cos(angle) + dy[near] * math.sin(angle)) * stretch
    turned_y = (dy[near] * math.cos(angle) - dx[near] * math.sin(angle)) / stretch
    mask[near] = OUTLINES[label](turned_x, turned_y)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        patch = _texture(rng, int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
        canvas[window] = np.where(mask[window][..., None], patch, canvas[window])
    return mask


def render(index: int, *, seed: int = 0, height: int = 240, width: int = 320) -> ShapesImage:
    """Image ``index`` of a seed.

    Args:
        height, width: in pixels, 64 to 8192
    """
    if min(height, width) < 64 or max(height, width) > 8192:
        raise DatasetError(
            f"shapes: expected images of at least 64 x 64 and at most 8192 x 8192 pixels, got {width} x {height}"
        )
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    canvas = _background(rng, height, width)
    side = min(height, width)
    painted: list[tuple[int, Bools, bool]] = []
    # From large to small, so that the small ones stay visible.
    radii = np.sort(
        side * np.exp(rng.uniform(math.log(0.045), math.log(0.36), int(rng.integers(1, _MOST_OBJECTS + 1))))
    )
    for radius in radii[::-1]:
        label = int(rng.integers(len(KINDS)))
        center = rng.uniform(-0.02, 1.02, 2) * (width, height)
        painted.append((label, _stamp(rng, canvas, label, center, float(radius)), False))
    if rng.random() < _CROWD_CHANCE:
        painted.append(_crowd(rng, canvas, side))
    image = cv2.GaussianBlur(canvas, (3, 3), 0.6) + rng.normal(0, rng.uniform(1, 8), canvas.shape)
    return ShapesImage(image.clip(0, 255).astype(np.uint8), tuple(_visible(painted)))


def _crowd(rng: np.random.Generator, canvas: Floats, side: int) -> tuple[int, Bools, bool]:
    """A swarm of small shapes of one kind, as one mask."""
    height, width = canvas.shape[:2]
    label = int(rng.integers(len(KINDS)))
    center = rng.uniform(0.2, 0.8, 2) * (width, height)
    mask = np.zeros((height, width), np.bool_)
    for _ in range(int(rng.integers(12, 25))):
        at = center + rng.normal(0, 0.11 * side, 2)
        mask |= _stamp(rng, canvas, label, at, 0.035 * side)
    return label, mask, True


def _visible(painted: list[tuple[int, Bools, bool]]) -> Iterator[Shape]:
    """The visible part of each shape; those with too little of it are no objects."""
    for i, (label, whole, iscrowd) in enumerate(painted):
        seen = whole.copy()
        for _, other, _ in painted[i + 1 :]:
            seen &= ~other
        pixels = int(seen.sum())
        if pixels >= _LEAST_PIXELS and pixels >= _LEAST_VISIBLE * int(whole.sum()):
            yield Shape(label, seen, iscrowd)


# -- a dataset on disk ------------------------------------------------------------------------------------------------


def write_shapes(
    folder: Path, counts: dict[str, int], *, seed: int = 0, height: int = 240, width: int = 320
) -> Iterator[str]:
    """Write ``images/*.png``, ``annotations/instances_<split>.json`` and ``shapes.yaml``; yields the image names.

    Args:
        counts: images of the splits "train" and "val"; splits without images are left out

    Raises:
        DatasetError: more images of a split than exist.
        OutputError: the folder cannot be written.
    """
    counts = {split: count for split, count in counts.items() if count}
    if counts.get("train", 0) > _FIRST["val"]:
        raise DatasetError(f"shapes: expected at most {_FIRST['val']} training images, got {counts['train']}")
    images = folder / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {images}: {error.strerror}. Choose another folder") from error
    for split, count in counts.items():
        content: dict[str, Any] = {
            "info": {"description": f"yolact-deploy shapes, seed {seed}", "version": "1"},
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(KINDS)],
            "images": [],
            "annotations": [],
        }
        for index in range(_FIRST[split], _FIRST[split] + count):
            name = f"{split}_{index:06d}.png"
            made = render(index, seed=seed, height=height, width=width)
            ok, data = cv2.imencode(".png", made.image)
            assert ok
            write_bytes(images / name, data.tobytes())
            _describe(content, index, name, made)
            yield name
        write_json(folder / "annotations" / f"instances_{split}.json", content)
    write_bytes(folder / "shapes.yaml", _yaml(counts).encode())


def _describe(content: dict[str, Any], index: int, name: str, made: ShapesImage) -> None:
    """Add an image and its annotations in COCO format."""
    height, width = made.image.shape[:2]
    content["images"].append({"id": index, "file_name": name, "height": height, "width": width})
    for shape in made.shapes:
        rows, columns = np.flatnonzero(shape.mask.any(axis=1)), np.flatnonzero(shape.mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        crops = MaskCrops(height, width, np.zeros((1, 2), np.int64), (shape.mask,))
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": index,
                "category_id": shape.label + 1,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "area": int(shape.mask.sum()),
                "iscrowd": int(shape.iscrowd),
                "segmentation": crops.rle()[0],
            }
        )


def _yaml(counts: dict[str, int]) -> str:
    splits = "".join(
        f"{split}:\n  annotations: annotations/instances_{split}.json\n  images: images\n" for split in counts
    )
    return f"# generated by: yolact-deploy data shapes\nnames: [{', '.join(KINDS)}]\n{splits}"

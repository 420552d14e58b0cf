"""Videos of generated shapes that move, hide behind each other and leave, with the id of each in every frame.

Written as YouTube-VIS stores videos: a folder of pictures each, and one JSON file with a mask a frame, or null where an
object is hidden. Shapes look as those of :mod:`yolact_deploy.datasets.shapes`.

Legend: H x W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.datasets import shapes
from yolact_deploy.errors import DatasetError

#: keeps the numbers of videos apart from those of pictures
_STREAM = 7_000_000


@dataclass(frozen=True)
class MovingShape:
    """The visible part of one object in one frame."""

    number: int  #: the same in all frames, from 1
    label: int  #: index into :data:`~yolact_deploy.datasets.shapes.KINDS`
    mask: NDArray[np.bool_]  #: [H, W]


@dataclass(frozen=True)
class ShapesFrame:
    """One frame of a generated video."""

    image: NDArray[np.uint8]  #: BGR [H, W, 3]
    shapes: tuple[MovingShape, ...]


def render_video(
    index: int, *, frames: int = 40, seed: int = 0, height: int = 240, width: int = 320
) -> Iterator[ShapesFrame]:
    """The frames of video ``index`` of a seed: three to six shapes on straight ways that bounce off the borders.

    Args:
        height, width: in pixels, 64 to 8192
    """
    if min(height, width) < 64 or max(height, width) > 8192:
        raise DatasetError(
            f"shapes: expected videos of at least 64 x 64 and at most 8192 x 8192 pixels, got {width} x {height}"
        )
    rng = np.random.Generator(np.random.PCG64([seed, _STREAM, index]))
    background = shapes._background(rng, height, width)
    count, side, size = int(rng.integers(3, 7)), min(height, width), np.array([width, height])
    labels = rng.integers(len(shapes.KINDS), size=count).tolist()
    radii = side * rng.uniform(0.1, 0.22, count)
    places = rng.uniform(0.15, 0.85, (count, 2)) * size
    speeds = side * 0.012 * rng.normal(0, 1, (count, 2))
    for frame in range(frames):
        canvas = background.copy()
        painted = []
        for number, label in enumerate(labels):
            # The same draws in each frame: angle, stretch and texture of an object stay.
            look = np.random.Generator(np.random.PCG64([seed, _STREAM, index, number]))
            painted.append((label, shapes._stamp(look, canvas, label, places[number], float(radii[number])), False))
        noise = np.random.Generator(np.random.PCG64([seed, _STREAM, index, count, frame])).normal(0, 3, canvas.shape)
        image = (cv2.GaussianBlur(canvas, (3, 3), 0.6) + noise).clip(0, 255).astype(np.uint8)
        yield ShapesFrame(image, tuple(_visible(painted)))
        places += speeds
        speeds[(places < 0.08 * size) & (speeds < 0) | (places > 0.92 * size) & (speeds > 0)] *= -1


def _visible(painted: list[tuple[int, NDArray[np.bool_], bool]]) -> Iterator[MovingShape]:
    """What is seen of each shape; one that is mostly hidden is not there."""
    for number, (label, whole, _) in enumerate(painted):
        seen = whole.copy()
        for _, other, _ in painted[number + 1 :]:
            seen &= ~other
        if seen.sum() >= max(24, 0.25 * whole.sum()):
            yield MovingShape(number + 1, label, seen)


def write_shape_videos(
    folder: Path, count: int, *, frames: int = 40, seed: int = 0, height: int = 240, width: int = 320
) -> Iterator[str]:
    """Write ``JPEGImages/VIDEO/FRAME.jpg`` and ``instances.json``; yields the names of the videos."""
    content: dict[str, Any] = {
        "info": {"description": f"yolact-deploy shape videos, seed {seed}", "version": "1"},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(shapes.KINDS)],
        "videos": [],
        "annotations": [],
    }
    for index in range(count):
        name = f"video_{index:04d}"
        files: list[str] = []
        seen: dict[int, tuple[int, dict[int, NDArray[np.bool_]]]] = {}
        for number, made in enumerate(render_video(index, frames=frames, seed=seed, height=height, width=width)):
            files.append(f"{name}/{number:05d}.jpg")
            ok, data = cv2.imencode(".jpg", made.image, [int(cv2.IMWRITE_JPEG_QUALITY), 95])
            assert ok
            write_bytes(folder / "JPEGImages" / files[-1], data.tobytes())
            for shape in made.shapes:
                seen.setdefault(shape.number, (shape.label, {}))[1][number] = shape.mask
        content["videos"].append(
            {"id": index + 1, "file_names": files, "height": height, "width": width, "length": frames}
        )
        for label, masks in seen.values():
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "video_id": index + 1, "category_id": label + 1, "iscrowd": 0,
                 "height": height, "width": width, "length": frames, **_tracks(masks, frames)}
            )  # fmt: skip
        yield name
    write_json(folder / "instances.json", content)


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs down the columns of a mask, zeros first: COCO's uncompressed form."""
    line = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(line[1:] != line[:-1])
    runs: list[int] = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return runs


def _tracks(masks: dict[int, NDArray[np.bool_]], frames: int) -> dict[str, list[Any]]:
    """Uncompressed run lengths, areas and boxes of each frame, null where the object is hidden."""
    result: dict[str, list[Any]] = {"segmentations": [], "areas": [], "bboxes": []}
    for frame in range(frames):
        mask = masks.get(frame)
        if mask is None:
            for values in result.values():
                values.append(None)
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        result["segmentations"].append({"size": list(mask.shape), "counts": _runs(mask)})
        result["areas"].append(int(mask.sum()))
        result["bboxes"].append([x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y])
    return result

"""LabelMe: a JSON file a picture. Shapes with the same label and ``group_id`` are the parts of one object.

LabelMe has no crowds; a shape with the flag ``iscrowd`` is one, which is also how they are written.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.formats.mask_decoding import decode_mask
from yolact_deploy.datasets.formats.mask_shapes import Bools, add_parts, picture_crops
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadPicture,
    ReadSet,
    check_size,
    ellipse,
    find_picture,
    points,
    rectangle,
    split_name,
)
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import is_file, parse_json, shown

TITLE = "LabelMe JSON"
VERSION = "5.5.0"
_TRIED = 20
_CROWD = "iscrowd"
_LABELS = "labels.txt"


def recognizes(path: Path) -> bool:
    """Whether one of the first JSON files of a folder has LabelMe's fields."""
    if path.is_file():
        return path.suffix.lower() == ".json" and _is_labelme(path)
    files = (file for pattern in ("*.json", "*/*.json") for file in sorted(path.glob(pattern))[:_TRIED])
    return any(_is_labelme(file) for file in files)


def _is_labelme(file: Path) -> bool:
    if not is_file(file):  # but a folder, or a pipe
        return False
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
        end = stream.read() if len(start) == 1 << 16 and file.stat().st_size < 1 << 27 else b""
    return all(key in start or key in end for key in (b'"shapes"', b'"imagePath"'))


def read(path: Path, options: FormatOptions) -> ReadSet:
    result = ReadSet(TITLE, path, _label_list(path))
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.json") if _is_labelme(file))
    root = path.parent if path.is_file() else path
    for file in files:
        content = parse_json(result.data(file, "LabelMe file"), f"LabelMe file {file}", DatasetError)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise DatasetError(f"{file}: expected LabelMe's shapes: remove the file, or annotate it again")
        folders = [file.parent, *filter(None, [options.images_dir]), file.parent / "images", root, root / "images"]
        image = find_picture(str(content.get("imagePath")), folders, file)
        inner = file.parent.relative_to(root)
        split = split_name(inner.parts[0]) if inner.parts else "train"
        picture = result.picture(image, root if image.is_relative_to(root) else image.parent, split, file)
        if content.get("imageHeight") is not None:
            check_size(picture, content["imageHeight"], content.get("imageWidth"), str(file))
        _read_shapes(content["shapes"], picture, file, result)
    return result


def _label_list(path: Path) -> list[str]:
    """The classes of ``labels.txt``, which LabelMe's own tools take; none without it."""
    file = (path.parent if path.is_file() else path) / _LABELS
    if not file.is_file():
        return []
    lines = file.read_text("utf-8", "replace").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("_")))


def _read_shapes(shapes: list[Any], picture: ReadPicture, file: Path, result: ReadSet) -> None:
    groups: dict[Any, list[tuple[Any, bool]]] = {}
    for number, shape in enumerate(shapes):
        where = f"{file}: shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise DatasetError(f"{where}: expected a label and points, got {shown(shape)}: correct it")
        part = _part(shape, picture, where, result)
        if part is not None:
            group = shape.get("group_id")
            given = shape.get("flags")
            flags = given if isinstance(given, dict) else {}
            key = (shape["label"], number if group is None else f"group {group}")
            groups.setdefault(key, []).append((part, bool(flags.get(_CROWD))))
    for (label, _), parts in groups.items():
        add_parts(result, picture, label, [part for part, _ in parts], any(crowd for _, crowd in parts))


def _part(shape: Mapping[str, Any], picture: ReadPicture, where: str, result: ReadSet) -> list[float] | Bools | None:
    """A ring or pixels; None for a shape without an area."""
    kind = shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        result.notes[f"shape of type {shown(kind)} left out, which has no area"] += 1
        return None
    values = points(shape.get("points"), f"{where}: points")
    if kind == "polygon":
        return values
    if len(values) == 8 and kind == "rectangle":  # turned ones have four corners
        return values
    if len(values) != 4:
        raise DatasetError(f"{where}: points: expected two for a {kind}, got {len(values) // 2}: correct it")
    if kind == "mask":
        return _mask(shape, values, picture, where)
    result.notes[f"{kind} taken as a mask of that shape"] += 1
    x0, y0, x1, y1 = values
    if kind == "rectangle":
        return rectangle(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    radius = math.hypot(x1 - x0, y1 - y0)
    return ellipse(x0, y0, radius, radius)


def _mask(shape: Mapping[str, Any], corners: list[float], picture: ReadPicture, where: str) -> Bools:
    """The pixels of a shape of type mask: a PNG in base64, at the first of two points."""
    try:
        crop = decode_mask(base64.b64decode(shape.get("mask", ""), validate=True), f"{where}: mask")
    except (TypeError, ValueError, binascii.Error) as error:
        raise DatasetError(f"{where}: mask: expected a PNG in base64: annotate it again") from error
    if crop.ndim == 3:
        crop = np.asarray(crop[..., :3].max(axis=2))
    x, y = round(corners[0]), round(corners[1])
    full = np.zeros((picture.height, picture.width), np.bool_)
    if x < 0 or y < 0 or y + crop.shape[0] > picture.height or x + crop.shape[1] > picture.width:
        raise DatasetError(f"{where}: mask: {crop.shape[1]} x {crop.shape[0]} pixels at {x}, {y} leave the picture of "
                           f"{picture.width} x {picture.height}: annotate it again")  # fmt: skip
    full[y : y + crop.shape[0], x : x + crop.shape[1]] = crop > 0
    return full


# -- writing ----------------------------------------------------------------------------------------------------------


def mask_shape(label: str, crop: NDArray[np.bool_], x: int, y: int, group: int | None = None) -> dict[str, Any]:
    """A shape of type mask.

    Args:
        crop: bool [h, w], the pixels where the mask has some
        x: column of the first pixel
        y: row of the first pixel
    """
    height, width = crop.shape
    data = cv2.imencode(".png", crop.view(np.uint8))[1].tobytes()
    corners = [[x, y], [x + width - 1, y + height - 1]]
    return {**_shape(label, "mask", corners, group), "mask": base64.b64encode(data).decode("ascii")}


def _shape(label: str, kind: str, corners: list[list[Any]], group: int | None) -> dict[str, Any]:
    return {"label": label, "points": corners, "group_id": group, "description": "", "shape_type": kind, "flags": {}}


def labelme_content(shapes: list[dict[str, Any]], picture: str, height: int, width: int) -> dict[str, Any]:
    """The content of a file; ``picture`` is a path from its folder."""
    return {
        "version": VERSION, "flags": {}, "shapes": shapes, "imagePath": picture, "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def write(dataset: ReadSet, folder: Path, placed: Mapping[tuple[str, Path], str]) -> None:
    """Write a file beside each picture: polygons with a group for parts, masks where there are holes."""
    for split, pictures in dataset.splits.items():
        for picture in pictures:
            place = Path(placed[split, picture.path])
            shapes = list(_shapes(picture, dataset))
            content = labelme_content(shapes, place.name, picture.height, picture.width)
            write_bytes(folder / place.with_suffix(".json"), json.dumps(content).encode())
    write_bytes(folder / _LABELS, "".join(f"{name}\n" for name in dataset.names).encode())


def _shapes(picture: ReadPicture, dataset: ReadSet) -> Iterator[dict[str, Any]]:
    coded = ReadPicture(picture.path, "", picture.height, picture.width,
                        [o for o in picture.objects if isinstance(o.mask, dict)])  # fmt: skip
    crops = picture_crops(coded)
    masks = iter(zip(crops.crops, crops.offsets.tolist(), strict=True))
    for number, o in enumerate(picture.objects, 1):
        if isinstance(o.mask, dict):
            crop, (x, y) = next(masks)
            shapes = [mask_shape(o.name, crop, x, y)] if crop.size else []
        else:
            group = number if len(o.mask) > 1 else None
            rings = [np.array(ring).reshape(-1, 2).tolist() for ring in o.mask]
            shapes = [_shape(o.name, "polygon", ring, group) for ring in rings]
        if o.iscrowd:
            dataset.notes["crowd written with the flag iscrowd, which other tools do not know"] += 1
        for shape in shapes:
            yield {**shape, "flags": {_CROWD: True}} if o.iscrowd else shape

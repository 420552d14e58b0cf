"""CVAT for images 1.1: one XML file. Shapes of a picture with the same label and ``group_id`` are one object.

The format has no crowds; a shape with the attribute ``is_crowd`` is one, which is also how they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.formats.mask_shapes import Bools, add_parts, picture_crops
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadPicture,
    ReadSet,
    check_size,
    ellipse,
    find_picture,
    number,
    numbers,
    rectangle,
    split_name,
)
from yolact_deploy.datasets.formats.xml_text import read_xml, starts_with
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import shown

TITLE = "CVAT XML"
_CROWD = "is_crowd"
Element = ElementTree.Element


def recognizes(path: Path) -> bool:
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        files = [path] if path.suffix.lower() == ".xml" else []
    else:
        files = sorted([*path.glob("*.xml"), *path.glob("annotations/*.xml")])
        files = files if len(files) < 100 else []  # a file a picture is another format
    return [file for file in files if starts_with(file, b"<annotations>")]


def read(path: Path, options: FormatOptions) -> ReadSet:
    result = ReadSet(TITLE, path)
    for file in _files(path):
        root = read_xml(file, result)
        for label in root.iterfind("./meta//labels/label/name"):
            result.add_class(label.text or "")
        folders = [
            *filter(None, [options.images_dir]),
            file.parent,
            file.parent / "images",
            file.parent.parent / "images",
        ]
        for image in root.iterfind("image"):
            _read_image(image, file, folders, result, options)
        if root.find("track") is not None:
            raise DatasetError(f"{file} is CVAT for video, which has tracks: export it as 'CVAT for images 1.1'")
    return result


def _read_image(image: Element, file: Path, folders: list[Path], result: ReadSet, options: FormatOptions) -> None:
    name = image.get("name", "")
    subset = image.get("subset") or (file.stem if file.stem != "annotations" else "train")
    more = [folder / sub for folder in folders for sub in (subset, f"images/{subset}")]
    path = find_picture(name, [*folders, *more], file)
    roots = [folder for folder in (*more, *folders) if path == folder / name]
    picture = result.picture(path, roots[0] if roots else path.parent, split_name(subset), file)
    check_size(picture, image.get("height"), image.get("width"), f"{file}: image {shown(name)}")
    groups: dict[tuple[str, str], list[tuple[Any, bool]]] = {}
    boxes: dict[tuple[str, str], list[tuple[Any, bool]]] = {}
    for place, shape in enumerate(image):
        part = _part(shape, picture, f"{file}: image {shown(name)}: {shape.tag} {place}", result)
        if part is not None:
            group = shape.get("group_id") or "0"
            key = (shape.get("label", ""), f"alone {place}" if group == "0" else group)
            (boxes if shape.tag == "box" else groups).setdefault(key, []).append((part, _is_crowd(shape)))
    alone = {key: parts for key, parts in boxes.items() if key not in groups}  # the others are around outlines
    if alone:
        how = "taken as a rectangular mask" if options.boxes else "without an outline left out"
        result.notes[f"box {how}"] += sum(map(len, alone.values()))
    groups |= alone if options.boxes else {}
    for (label, _), parts in groups.items():
        add_parts(result, picture, label, [part for part, _ in parts], any(crowd for _, crowd in parts))


def _is_crowd(shape: Element) -> bool:
    values = [a.text or "" for a in shape.iterfind("attribute") if a.get("name") in (_CROWD, "iscrowd")]
    return any(value.strip().lower() in ("true", "1", "yes") for value in values)


def _part(shape: Element, picture: ReadPicture, where: str, result: ReadSet) -> list[float] | Bools | None:
    """A ring or pixels; None for what is left out."""
    if shape.tag == "tag":
        result.notes["tag left out, which has no place in a picture"] += 1
        return None
    read_shape = _SHAPES.get(shape.tag)
    if read_shape is None:
        result.notes[f"{shown(shape.tag)} left out, which has no area"] += 1
        return None
    if not shape.get("label"):
        raise DatasetError(f"{where}: no label: correct the file, or export it again")
    if shape.tag == "ellipse":
        result.notes["ellipse taken as a mask of that shape"] += 1
    return read_shape(shape, picture, where)


def _polygon(shape: Element, picture: ReadPicture, where: str) -> list[float]:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";") if pair]
    if not all(len(pair) == 2 for pair in pairs):
        raise DatasetError(f"{where}: points: expected x,y;x,y;..., got {shown(shape.get('points'))}: correct it")
    return numbers((value for pair in pairs for value in pair), f"{where}: points")


def _values(shape: Element, names: str, where: str) -> list[float]:
    return [number(shape.get(name), f"{where}: {name}") for name in names.split()]


def _box(shape: Element, picture: ReadPicture, where: str) -> list[float]:
    return rectangle(*_values(shape, "xtl ytl xbr ybr", where))


def _ellipse(shape: Element, picture: ReadPicture, where: str) -> list[float]:
    turned = number(shape.get("rotation") or "0", f"{where}: rotation")
    x, y, rx, ry = _values(shape, "cx cy rx ry", where)
    return ellipse(x, y, rx, ry, turned)


def _mask(shape: Element, picture: ReadPicture, where: str) -> Bools:
    """Run lengths along the rows of a window, the first of pixels outside."""
    left, top, width, height = (round(value) for value in _values(shape, "left top width height", where))
    if min(left, top, width, height) < 0 or left + width > picture.width or top + height > picture.height:
        raise DatasetError(f"{where}: the mask leaves the picture of {picture.width} x {picture.height}: correct it")
    words = (shape.get("rle") or "").replace(",", " ").split()
    runs = np.array([int(word) if word.isdecimal() and len(word) < 12 else -1 for word in words], np.int64)
    if (runs < 0).any() or runs.sum() != width * height:
        raise DatasetError(f"{where}: rle: the runs do not fill {width} x {height} pixels: export it again")
    mask = np.zeros((picture.height, picture.width), np.bool_)
    inside = (np.arange(len(runs)) & 1).astype(np.bool_)
    mask[top : top + height, left : left + width] = np.repeat(inside, runs).reshape(height, width)
    return mask


_SHAPES: dict[str, Callable[[Element, ReadPicture, str], list[float] | Bools]] = {
    "polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask,
}  # fmt: skip


# -- writing ----------------------------------------------------------------------------------------------------------


def write(dataset: ReadSet, folder: Path, placed: Mapping[tuple[str, Path], str]) -> None:
    """Write ``SPLIT.xml``; pictures are in ``images/SPLIT``, and the name of each is from ``images``.

    CVAT takes a file of any name. Datumaro takes the subset from the name, and reads no other subset from it.
    """
    for split, pictures in dataset.splits.items():
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        labels = ElementTree.SubElement(task, "labels")
        for name in dataset.names:
            ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
        for identity, picture in enumerate(pictures):
            name = "/".join(Path(placed[split, picture.path]).parts[1:])
            attributes = {"id": str(identity), "name": name, "subset": split, "width": str(picture.width),
                          "height": str(picture.height)}  # fmt: skip
            _write_objects(ElementTree.SubElement(root, "image", attributes), picture, dataset)
        ElementTree.indent(root, " ")
        text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
        write_bytes(folder / f"{split}.xml", text)


def _write_objects(image: Element, picture: ReadPicture, dataset: ReadSet) -> None:
    for group, o in enumerate(picture.objects, 1):
        common = {"label": o.name, "source": "manual", "occluded": "0", "z_order": str(group)}
        shapes = []
        if isinstance(o.mask, dict):
            coded = ReadPicture(picture.path, "", picture.height, picture.width, [o])
            crops = picture_crops(coded)
            (x, y), crop = crops.offsets[0].tolist(), crops.crops[0]
            window = {"left": str(x), "top": str(y), "width": str(crop.shape[1]), "height": str(crop.shape[0])}
            shapes = [ElementTree.SubElement(image, "mask", {**common, "rle": _row_runs(crop), **window})]
        else:
            for ring in o.mask:
                text = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.array(ring).reshape(-1, 2).tolist())
                own = {**common, "points": text, **({"group_id": str(group)} if len(o.mask) > 1 else {})}
                shapes.append(ElementTree.SubElement(image, "polygon", own))
        for shape in shapes if o.iscrowd else ():
            ElementTree.SubElement(shape, "attribute", {"name": _CROWD}).text = "true"
        if o.iscrowd:
            dataset.notes["crowd written with the attribute is_crowd, which other tools may ignore"] += 1


def _row_runs(crop: Bools) -> str:
    flat = np.concatenate([[False], crop.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return ", ".join(map(str, np.diff(np.concatenate([[0], edges, [crop.size]])).tolist()))

"""Pascal VOC: pictures in ``JPEGImages``, masks in ``SegmentationObject`` and ``SegmentationClass``, lists of splits.

Each color of a picture in ``SegmentationObject`` is an object; black is background and (224, 224, 192) is void. Its
class is the color of ``SegmentationClass`` at most of its pixels. Without mask pictures, outlines are read from the
``<polygon>`` of XML files, as Roboflow and others write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.formats.mask_decoding import decode_mask_of, object_values
from yolact_deploy.datasets.formats.mask_shapes import mask_rle
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadObject,
    ReadPicture,
    ReadSet,
    find_picture,
    is_picture_name,
    number,
    rectangle,
    split_name,
)
from yolact_deploy.datasets.formats.xml_text import read_xml, starts_with
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import shown

TITLE = "Pascal VOC"
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = (224, 224, 192)
_XML = ("Annotations", "annotations", "", "train", "valid", "val", "test")
_LONGEST_NAME = 200
_COLOR = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*")
Color = tuple[int, int, int]


def recognizes(path: Path) -> bool:
    if not path.is_dir():
        return False
    root = _root(path)
    return (root / "SegmentationObject").is_dir() or bool(_xml_files(root, first=True))


def _root(path: Path) -> Path:
    """The folder itself, or the one of the newest year below ``VOCdevkit``."""
    years = sorted([*path.glob("VOC20*"), *path.glob("VOCdevkit/VOC20*")])
    return years[-1] if years and not (path / "JPEGImages").is_dir() else path


def _xml_files(root: Path, *, first: bool = False) -> list[Path]:
    found: list[Path] = []
    for name in _XML:
        files = sorted((root / name).glob("*.xml")) if name else sorted(root.glob("*.xml"))
        if files and starts_with(files[0], b"<annotation"):
            found += [file for file in (files[:1] if first else files) if starts_with(file, b"<annotation")
                      and not starts_with(file, b"<annotations>")]  # fmt: skip
    return found


def read(path: Path, options: FormatOptions) -> ReadSet:
    root, result = _root(path), ReadSet(TITLE, path)
    if (root / "SegmentationObject").is_dir():
        _read_masks(root, result, options)
    else:
        _read_polygons(root, result, options)
    return result


# -- masks ------------------------------------------------------------------------------------------------------------


def voc_color(index: int) -> Color:
    """RGB of an index in VOC's color map: its bits, three at a time, from the highest bit of each channel down.

    >>> voc_color(1), voc_color(15)
    ((128, 0, 0), (192, 128, 128))
    """
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= ((index >> (3 * place + channel)) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def _read_masks(root: Path, result: ReadSet, options: FormatOptions) -> None:
    names = _class_colors(root, result)
    result.names = [name for name in names.values() if name not in ("background", "ignored", "void")]
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    splits = {file.stem: stems_of(file, result) for file in lists}
    if {"train", "val"} <= set(splits):
        splits = {name: splits[name] for name in splits if name != "trainval"}
    masks = root / "SegmentationObject"
    splits = splits or {"train": [file.stem for file in sorted(masks.glob("*.png"))]}
    folders = [*filter(None, [options.images_dir]), root / "JPEGImages", root / "images", root]
    for split, stems in splits.items():
        for stem in stems:
            if not (masks / f"{stem}.png").is_file():
                result.notes["picture without SegmentationObject left out"] += 1
                continue
            picture = _picture(stem, folders, split_name(split), root, result)
            _read_objects(picture, masks / f"{stem}.png", root, names, result)


def stems_of(file: Path, result: ReadSet) -> list[str]:
    """The names of pictures in a list; raises :class:`DatasetError` for one that leads out of their folder."""
    stems = result.text(file, "list of pictures").split()
    for stem in stems:
        if Path(stem).name != stem or "\\" in stem or len(stem) > _LONGEST_NAME:
            raise DatasetError(f"{file}: expected names of pictures without folder and suffix, got {shown(stem)}: "
                               "correct the list")  # fmt: skip
    return stems


def _picture(stem: str, folders: Iterable[Path], split: str, root: Path, result: ReadSet) -> ReadPicture:
    for folder in folders:
        for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG"):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return result.picture(path, folder, split, root)
    raise DatasetError(f"{root}: there is no picture called {shown(stem)} in JPEGImages: complete the folder")


def _class_colors(root: Path, result: ReadSet) -> dict[Color, str]:
    """Class names by color, of ``labelmap.txt`` if there is one, else VOC's twenty."""
    file = root / "labelmap.txt"
    if not file.is_file():
        return {voc_color(index): name for index, name in enumerate(CLASSES, 1)}
    names: dict[Color, str] = {}
    for line in result.text(file, "label map").splitlines():
        fields = line.split(":")
        color = fields[1] if len(fields) > 1 else "?"
        if line.startswith("#") or not line.strip():
            continue
        if not color.strip():  # VOC's own color map, in the order of the lines
            names[voc_color(len(names))] = fields[0]
            continue
        match = _COLOR.fullmatch(color)
        if match is None:
            raise DatasetError(f"{file}: expected name:r,g,b:parts:actions, got {shown(line)}: correct the line")
        names[int(match[1]), int(match[2]), int(match[3])] = fields[0]
    return names


def _colors(path: Path, picture: ReadPicture, result: ReadSet) -> NDArray[np.int64]:
    """The colors of a mask picture as numbers 0xRRGGBB, [H, W]; indexes of gray pictures become VOC's colors."""
    image = decode_mask_of(result.data(path, "mask picture"), str(path), picture)
    if image.ndim == 2:
        palette = np.array([voc_color(index) for index in range(256)], np.int64)
        red, green, blue = palette[np.minimum(image, 255)].transpose(2, 0, 1)
    else:
        blue, green, red = image[..., :3].astype(np.int64).transpose(2, 0, 1)
    return np.asarray((red << 16) | (green << 8) | blue)


def _code(color: Color) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def _read_objects(picture: ReadPicture, file: Path, root: Path, names: dict[Color, str], result: ReadSet) -> None:
    objects = _colors(file, picture, result)
    colors = object_values(objects, str(file))
    class_file = root / "SegmentationClass" / file.name
    classes = _colors(class_file, picture, result)
    name_of = {_code(color): name for color, name in names.items()}
    for color in colors:
        if color == _code(VOID):
            continue
        mask = objects == color
        values, counts = np.unique(classes[mask], return_counts=True)
        label = name_of.get(int(values[counts.argmax()]))
        if label is None:
            raise DatasetError(
                f"{class_file}: the color {values[counts.argmax()]:06x} at an object is of no class: give its name in "
                "labelmap.txt (name:r,g,b::)"
            )
        if label == "background" or int(values[counts.argmax()]) == _code(VOID):
            result.notes["object without a class in SegmentationClass left out"] += 1
            continue
        picture.objects.append(ReadObject(result.add_class(label), mask_rle(mask)))


# -- XML --------------------------------------------------------------------------------------------------------------


def _read_polygons(root: Path, result: ReadSet, options: FormatOptions) -> None:
    boxes = 0
    for file in _xml_files(root):
        tree = read_xml(file, result)
        name = tree.findtext("filename") or file.with_suffix(".jpg").name
        inside = file.parent
        beside = [inside, inside.parent / "JPEGImages", inside.parent / "images", inside.parent]
        path = find_picture(name, [*filter(None, [options.images_dir]), *beside], file)
        split = split_name(inside.name) if inside.name.lower() != "annotations" else "train"
        picture = result.picture(path, path.parent, "val" if split == "valid" else split, file)
        for place, item in enumerate(tree.iterfind("object")):
            boxes += _read_object(item, picture, f"{file}: object {place}", result, options)
    if boxes and not result.objects:
        raise DatasetError(
            f"{root}: the {boxes} objects are boxes without masks: give SegmentationObject and SegmentationClass, or "
            "take the boxes as masks with data convert --boxes"
        )
    if not any(is_picture_name(picture.path) for picture in result.pictures):
        raise DatasetError(f"{root}: no pictures: give the folder that holds Annotations and JPEGImages")


def _read_object(
    item: ElementTree.Element, picture: ReadPicture, where: str, result: ReadSet, options: FormatOptions
) -> int:
    """Add an object; 1 if it is a box that was left out."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{where}: no name: correct the file")
    rings = [_ring(polygon, where) for polygon in item.iterfind("polygon")]
    if rings:
        result.add_rings(picture, name, rings)
        return 0
    result.add_class(name)
    if not options.boxes:
        result.notes["box without an outline left out"] += 1
        return 1
    sides = [number(item.findtext(f"bndbox/{side}"), f"{where}: {side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    result.notes["box taken as a rectangular mask"] += 1
    result.add_rings(picture, name, [rectangle(sides[0] - 1, sides[1] - 1, sides[2], sides[3])])  # pixels from 1 on
    return 0


def _ring(polygon: ElementTree.Element, where: str) -> list[float]:
    """The corners x1, y1, x2, y2, ... of a polygon; whole numbers are VOC's, which count pixels from 1."""
    values = {child.tag: child.text for child in polygon}
    count = len(values) // 2
    names = [f"{axis}{place}" for place in range(1, count + 1) for axis in "xy"]
    if len(values) % 2 or set(names) != set(values):
        raise DatasetError(f"{where}: polygon: expected x1, y1, x2, y2, ..., got {shown(list(values))}: correct it")
    corners = [number(values[name], f"{where}: polygon: {name}") for name in names]
    middle = 0.5 if all(value.is_integer() for value in corners) else 0.0  # of a pixel
    return [value - middle for value in corners]

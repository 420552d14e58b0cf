"""YOLO segmentation text: ``data.yaml``, and beside each picture's ``images`` folder one of ``labels``.

A line is an object: class, then the outline as x y pairs in shares of width and height. The format has no crowds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.formats.mask_shapes import one_outline
from yolact_deploy.datasets.formats.read_set import (
    FormatOptions,
    ReadObject,
    ReadPicture,
    ReadSet,
    from_shares,
    is_picture_name,
    numbers,
    pictures_below,
    rectangle,
)
from yolact_deploy.datasets.formats.yaml_text import parse_yaml
from yolact_deploy.errors import DatasetError, import_optional
from yolact_deploy.untrusted import exists, is_file, shown

TITLE = "YOLO text"
_SPLITS = ("train", "val", "valid", "test")
_MOST_BYTES = 1_000_000
_BEYOND = 1.01  # outlines may leave the picture a little


#: where pictures are if the file names no splits
_ALONE = "images"


def recognizes(path: Path) -> bool:
    return _description(path) is not None


def is_description(content: Any) -> bool:
    """Whether a YAML file describes a dataset in this format: paths of pictures, not mappings."""
    given = [content[name] for name in _SPLITS if content.get(name)] if isinstance(content, dict) else []
    return bool(given) and "names" in content and all(isinstance(value, (str, list)) for value in given)


def _description(path: Path) -> Path | None:
    files = [path] if path.is_file() else sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else []
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml"):
            content = _yaml(file)
            if is_description(content) or _names_folders(content, file):
                return file
    return None


def _names_folders(content: Any, file: Path) -> bool:
    """Whether a file has names but no splits, and the folders ``images`` and ``labels`` are beside it."""
    if not isinstance(content, dict) or "names" not in content or any(isinstance(v, dict) for k, v in content.items()
                                                                      if k != "names"):  # fmt: skip
        return False
    return (file.parent / "labels").is_dir() and (file.parent / _ALONE).is_dir()


def _yaml(file: Path) -> Any:
    """The content of a small YAML file; None if it is none."""
    if not is_file(file) or file.stat().st_size > _MOST_BYTES:
        return None
    try:
        return parse_yaml(file.read_text("utf-8", "replace"), file)
    except DatasetError:
        return None


def read(path: Path, options: FormatOptions) -> ReadSet:
    file = _description(path)
    assert file is not None
    result = ReadSet(TITLE, path)
    content = parse_yaml(result.text(file, "dataset file"), file)
    result.names = _names(content, file)
    if not is_description(content):
        content["train"] = _ALONE
    for key in _SPLITS:
        if not content.get(key):
            continue
        pictures = list(_pictures(content, key, file, result))
        if not pictures:
            raise DatasetError(f"{file}: {key}: no pictures in {shown(content[key])}: correct the path")
        for picture in pictures:
            _read_picture(picture, "val" if key == "valid" else key, file, result, options)
    return _checked(result, file)


def _checked(result: ReadSet, file: Path) -> ReadSet:
    boxes = result.notes["box without an outline left out"]
    result.notes = +result.notes
    if not result.objects and boxes:
        raise DatasetError(
            f"{file}: the labels are {boxes} boxes (class x y width height) and no outlines: export them as "
            "segmentation, or take the boxes as masks with data convert --boxes"
        )
    return result


def _names(content: Mapping[str, Any], file: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DatasetError(f"{file}: names: expected the classes 0 to {len(names) - 1}, got {shown(list(names))}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{file}: names: expected a list of classes, got {shown(names)}")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DatasetError(f"{file}: nc is {shown(count)}, but there are {len(names)} names: correct one of them")
    if not all(isinstance(name, (str, int, float)) for name in names):
        raise DatasetError(f"{file}: names: expected the names of classes, got {shown(names)}: correct them")
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise DatasetError(f"{file}: names: two classes have the same name in {shown(texts)}: rename one")
    return texts


def _pictures(content: Mapping[str, Any], key: str, file: Path, result: ReadSet) -> Iterator[Path]:
    root = content.get("path") or "."
    if not isinstance(root, str):
        raise DatasetError(f"{file}: path: expected a folder, got {shown(root)}: correct it")
    values = content[key] if isinstance(content[key], list) else [content[key]]
    for value in values:
        if not isinstance(value, str):
            raise DatasetError(f"{file}: {key}: expected paths, got {shown(value)}: correct it")
        place = _place(file, root, value, key)
        result.inputs.add(place)
        if place.is_dir():
            yield from pictures_below(place)
            continue
        for line in filter(None, map(str.strip, result.text(place, "list of pictures").splitlines())):
            listed = next((p for p in (place.parent / line, file.parent / root / line, Path(line)) if is_file(p)), None)
            if listed is None:
                raise DatasetError(f"{place}: there is no picture {shown(line)}: correct the list")
            yield listed


def _place(file: Path, root: str, value: str, key: str) -> Path:
    """Where a split is; many tools write paths from a folder that is not the file's."""
    shorter = value[3:] if value.startswith("../") else value
    tried = [base / end for base in (file.parent / root, file.parent, Path(root)) for end in (value, shorter)]
    for path in tried:
        if exists(path):
            return Path(os.path.normpath(path))
    raise DatasetError(f"{file}: {key}: no such folder or list of pictures: {shown(value)}, searched from "
                       f"{file.parent}: correct path or {key}")  # fmt: skip


def _labels(picture: Path) -> Path:
    parts = list(picture.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            return Path(*parts).with_suffix(".txt")
    beside = picture.parent / "labels" / picture.name
    return (beside if beside.parent.is_dir() else picture).with_suffix(".txt")


def _read_picture(path: Path, split: str, file: Path, result: ReadSet, options: FormatOptions) -> None:
    if not is_picture_name(path):
        return
    picture = result.picture(path, path.parent, split, file)
    labels = _labels(path)
    result.inputs.add(labels.parent)
    if not labels.is_file():
        return
    for number, line in enumerate(result.text(labels, "labels").splitlines(), 1):
        if line.strip():
            _read_line(line.split(), picture, f"{labels} line {number}", result, options)


def _read_line(words: list[str], picture: ReadPicture, where: str, result: ReadSet, options: FormatOptions) -> None:
    if not words[0].isdecimal() or len(words[0]) > 6 or int(words[0]) >= len(result.names):
        raise DatasetError(
            f"{where}: class {shown(words[0])}: expected 0 to {len(result.names) - 1}, the names in data.yaml"
        )
    name, values = result.names[int(words[0])], numbers(words[1:], where)
    if max(map(abs, values), default=0) > _BEYOND:
        raise DatasetError(f"{where}: {max(map(abs, values)):g}: expected shares of width and height, 0 to 1: divide "
                           "pixels by the picture's size")  # fmt: skip
    if len(values) == 4:  # center, width and height: detection labels
        x, y, w, h = (v * (picture.height if i % 2 else picture.width) for i, v in enumerate(values))
        if options.boxes:
            result.notes["box taken as a rectangular mask"] += 1
            result.add_rings(picture, name, [rectangle(x - w / 2, y - h / 2, x + w / 2, y + h / 2)])
        else:
            result.notes["box without an outline left out"] += 1
        return
    scaled = from_shares(values, picture)
    result.add_rings(picture, name, [scaled])


def write(dataset: ReadSet, folder: Path, placed: Mapping[tuple[str, Path], str]) -> None:
    """Write labels and ``data.yaml``.

    Args:
        placed: where each picture of a split is, from the folder: ``images/SPLIT/...``
    """
    label_of = {name: label for label, name in enumerate(dataset.names)}
    for split, pictures in dataset.splits.items():
        for picture in pictures:
            lines = [
                f"{label_of[o.name]} {outline}\n" for o in picture.objects if (outline := _line(o, picture, dataset))
            ]
            place = Path("labels", *Path(placed[split, picture.path]).parts[1:]).with_suffix(".txt")
            write_bytes(folder / place, "".join(lines).encode())
    yaml = import_optional("yaml", extra="train", purpose="writing a dataset file")
    content = {**{split: f"images/{split}" for split in dataset.splits}, "names": dict(enumerate(dataset.names))}
    write_bytes(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def _line(o: ReadObject, picture: ReadPicture, dataset: ReadSet) -> str:
    """The outline of an object; empty if the format cannot have it."""
    if o.iscrowd:
        dataset.notes["crowd left out, which YOLO text does not have"] += 1
        return ""
    outline = one_outline(o.mask, picture.height, picture.width) / (picture.width, picture.height)
    if len(outline) < 3:
        dataset.notes["object without pixels left out"] += 1
        return ""
    if isinstance(o.mask, list) and len(o.mask) > 1:
        dataset.notes["object of several parts written as one outline"] += 1
    # COCO's rule rounds halves of fifths of a pixel up, which are frequent in its files. A share that is less by the
    # smallest part would round down, and small objects would lose pixels. So the next larger last digit is written.
    shares = (np.floor(outline.clip(0, 1) * 1e8) + 1) / 1e8
    return " ".join(f"{value:.8f}" for value in shares.clip(0, 1).ravel())

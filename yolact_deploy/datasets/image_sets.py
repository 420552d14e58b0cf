"""The images of a benchmark: a COCO set, found and checked, or a folder of plain pictures.

Everything that can be wrong with a set is told before a model runs; pycocotools only sees checked data.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.annotations import CURE, read_annotations
from yolact_deploy.errors import DatasetError
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

_IMAGE_FOLDERS = ("images", "val2017", "train2017", "images/val2017", "images/train2017", ".")


@dataclass(frozen=True)
class CocoImage:
    """One picture; ``image_id`` is its COCO id, or its place in the list where there are no annotations."""

    image_id: int
    path: Path


@dataclass(frozen=True)
class CocoImages:
    """Pictures in a fixed order (by image id), with or without ground truth.

    Attributes:
        images: the chosen pictures, all of which exist
        annotations: the COCO file, None for plain pictures
        content: its checked content
        available: how many pictures with files there are to choose from
    """

    images: tuple[CocoImage, ...]
    annotations: Path | None = None
    content: Mapping[str, Any] | None = None
    available: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> list[Path]:
        return [image.path for image in self.images]

    @property
    def image_ids(self) -> list[int]:
        return [image.image_id for image in self.images]

    def describe(self) -> str:
        """One line: how many of how many pictures, of which file."""
        source = self.annotations.name if self.annotations else "pictures without annotations"
        some = f"the first {len(self)} of {self.available}" if len(self) < self.available else f"{len(self)}"
        return f"{some} images ({source})"

    def to_json(self) -> dict[str, Any]:
        return {
            "annotations": self.annotations.name if self.annotations else None,
            "images": len(self),
            "available": self.available,
            "image_ids": self.image_ids if self.annotations else None,
        }

    def check_classes(self, config: YolactConfig) -> None:
        """Raises :class:`DatasetError` where the annotations use a category that the model does not have."""
        if self.content is None:
            return
        used = {annotation["category_id"] for annotation in self.content["annotations"]}
        unknown = sorted(used - set(config.category_ids))
        if unknown:
            raise DatasetError(
                f"{self.annotations}: annotations use category ids {_some(unknown)} that {config.name} "
                f"({config.num_classes} classes) does not know: {CURE} of the classes the model was trained on"
            )
        names = dict(zip(config.category_ids, config.class_names, strict=True))
        other = [
            f"{c['id']} is {c['name']!r} there and {names[c['id']]!r} in the model"
            for c in self.content["categories"]
            if names.get(c["id"], c["name"]) != c["name"] and not names[c["id"]].startswith("class ")
        ]
        if other:
            _log.warning("%s: category %s; are these the model's classes?", self.annotations, _some(other))


def open_images(
    *,
    coco: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> CocoImages:
    """The images that the options ``--coco``, ``--annotations``, ``--images-dir`` and ``--images`` name.

    Args:
        coco: folder with ``instances_*.json`` (or ``annotations/instances_*.json``) and pictures, or a folder of
            pictures alone
        annotations: COCO file; together with ``images_dir``, or with ``coco`` to choose among several files
        images_dir: folder of the pictures; alone, they are taken without annotations
        limit: only the first so many pictures that exist, by image id

    Raises:
        DatasetError: nothing usable; the message says what is wrong and the cure.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"--images: expected 1 or more, got {limit}")
    root = None if coco is None else _folder(coco, "--coco")
    pictures = None if images_dir is None else _folder(images_dir, "--images-dir")
    file = Path(annotations) if annotations is not None else (find_annotations(root) if root else None)
    if file is None:
        folder = pictures or root
        if folder is None:
            raise DatasetError("no images named: give --coco DIR, or --annotations FILE with --images-dir DIR")
        return plain_images([folder], limit)
    content = read_annotations(file)
    folders = [pictures] if pictures else [(root or file.parent) / name for name in _IMAGE_FOLDERS]
    return _with_files(file, content, folders, limit)


def plain_images(sources: Iterable[str | os.PathLike[str]], limit: int | None = None) -> CocoImages:
    """Pictures without annotations: files as given, and those directly in folders, sorted by name."""
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = sorted(p for p in source.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DatasetError(f"{source} has no pictures ({', '.join(IMAGE_SUFFIXES)}): give a folder that has")
            paths += found
        elif source.is_file():
            paths.append(source)
        else:
            raise DatasetError(f"no such picture or folder: {source}")
    if not paths:
        raise DatasetError("no pictures named: give a folder or files")
    return CocoImages(tuple(CocoImage(i, p) for i, p in enumerate(paths[:limit])), available=len(paths))


def find_annotations(folder: Path) -> Path | None:
    """The instances file of a COCO folder; None where the folder only has pictures.

    The only one, or else the only one with "val" in its name.

    Raises:
        DatasetError: several that could be meant.
    """
    found = sorted(path for place in (folder / "annotations", folder) for path in place.glob("instances_*.json"))
    if len(found) <= 1:
        return found[0] if found else None
    val = [path for path in found if "val" in path.name]
    if len(val) == 1:
        _log.info("%s has %d annotation files, %s is taken", folder, len(found), val[0].name)
        return val[0]
    raise DatasetError(
        f"{folder} has several annotation files ({', '.join(p.name for p in found)}): choose one with --annotations"
    )


def _with_files(path: Path, content: dict[str, Any], folders: Sequence[Path], limit: int | None) -> CocoImages:
    records = sorted(content["images"], key=lambda image: image["id"])
    best: list[CocoImage] = []
    for folder in folders:
        if folder.is_dir():
            found = [
                CocoImage(r["id"], folder / r["file_name"]) for r in records if (folder / r["file_name"]).is_file()
            ]
            best = max(best, found, key=len)
        if len(best) == len(records):
            break
    if not best:
        first, where = records[0]["file_name"], ", ".join(map(str, folders))
        raise DatasetError(f"none of the {len(records)} images of {path} (the first is {first}) is in {where}: "
                           "name their folder with --images-dir")  # fmt: skip
    missing = len(records) - len(best)
    if missing and limit is None:
        have = {image.image_id for image in best}
        first = next(record["file_name"] for record in records if record["id"] not in have)
        raise DatasetError(
            f"{missing} of the {len(records)} images of {path} are missing in {best[0].path.parent} (first: {first}): "
            f"complete the folder, or take those that are there with --images {len(best)}"
        )
    if limit is not None and limit > len(best):
        _log.warning("--images %d: only %d images with files", limit, len(best))
    return CocoImages(tuple(best[:limit]), path, content, len(best))


def fingerprint(images: CocoImages) -> str:
    """The same for the same pictures in the same order, told by id, file name and size: whether runs can be paired."""
    digest = hashlib.sha256()
    for image in images.images:
        digest.update(f"{image.image_id}\t{image.path.name}\t{image.path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _folder(path: str | os.PathLike[str], option: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        hint = "it is a file" if folder.exists() else "there is none"
        raise DatasetError(f"{option}: expected a folder, {hint}: {folder}")
    return folder


def _some(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")

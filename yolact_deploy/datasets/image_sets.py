"""The images of an evaluation or benchmark: those of a dataset, checked, or a folder of plain pictures.

Problems of a dataset are reported before a model runs; pycocotools only sees checked data.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.annotations import check_records, of_right_size, read_annotations, read_coco
from yolact_deploy.datasets.class_names import AnnotatedClasses
from yolact_deploy.datasets.dataset_file import classes_of
from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.resolve import DatasetFiles, SplitFiles, annotations_file, resolve_dataset
from yolact_deploy.errors import DatasetError
from yolact_deploy.preprocess import is_picture
from yolact_deploy.untrusted import is_file, shown
from yolact_deploy.vocabulary import CLASS_MATCHES, IMAGE_SUFFIXES

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoImage:
    """One picture; ``image_id`` is its COCO id, or its position in the list if there are no annotations."""

    image_id: int
    path: Path


@dataclass(frozen=True)
class CocoImages:
    """Pictures in a fixed order (by image id), with or without ground truth.

    Attributes:
        images: the selected pictures, all of which exist
        annotations: the COCO file, None for plain pictures
        content: its checked content
        available: how many pictures with files there are to select from
        chosen: the pictures were named, and are not simply the first ones
        match_classes: how the classes of a model are found, one of :data:`~yolact_deploy.vocabulary.CLASS_MATCHES`
    """

    images: tuple[CocoImage, ...]
    annotations: Path | None = None
    content: Mapping[str, Any] | None = None
    available: int = 0
    chosen: bool = False
    match_classes: str = CLASS_MATCHES[0]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> list[Path]:
        return [image.path for image in self.images]

    @property
    def image_ids(self) -> list[int]:
        return [image.image_id for image in self.images]

    @property
    def has_objects(self) -> bool:
        """Whether the selected pictures have objects to detect, which crowds are not."""
        annotations, ids = (self.content or {}).get("annotations", ()), set(self.image_ids)
        return any(record["image_id"] in ids and not record["iscrowd"] for record in annotations)

    def describe(self) -> str:
        """One line: how many of how many pictures, of which file."""
        source = self.annotations.name if self.annotations else "pictures without annotations"
        first = "" if self.chosen else "the first "
        some = f"{first}{len(self)} of {self.available}" if len(self) < self.available else f"{len(self)}"
        return f"{some} images ({source})"

    def to_json(self) -> dict[str, Any]:
        return {
            "annotations": self.annotations.name if self.annotations else None,
            "images": len(self),
            "available": self.available,
            "image_ids": self.image_ids if self.annotations else None,
        }

    def select(self, image_ids: Collection[int] | None) -> CocoImages:
        """Only these images, or all for None; raises :class:`DatasetError` if there is none of an id."""
        if image_ids is None:
            return self
        if unknown := sorted(set(image_ids) - set(self.image_ids)):
            raise DatasetError(f"{self.annotations} has no image {shown(unknown[0])}: score only images of that file")
        chosen = tuple(image for image in self.images if image.image_id in set(image_ids))
        return replace(self, images=chosen, chosen=True)

    def of_classes(self, category_ids: Collection[int]) -> CocoImages:
        """The same images with the annotations of these categories alone."""
        return replace(self, content=of_categories(self.content or {}, category_ids))

    def require_objects(self) -> None:
        """Raise :class:`DatasetError` if there is nothing to score."""
        if self.content is not None and not self.has_objects:
            count = len(self.content["annotations"])
            raise DatasetError(
                f"{self.annotations}: none of the {len(self)} images has an object to score (of {count} annotations, "
                f"{sum(record['iscrowd'] for record in self.content['annotations'])} are crowds): annotate objects"
            )

    def category_ids(self, config: YolactConfig, model: str | None = None) -> tuple[int, ...]:
        """The category id that each class of a model has here; without annotations its own.

        Args:
            config: of the model
            model: what errors call the model

        Raises:
            DatasetError: the annotated classes are not the model's; see `class_names`.
        """
        if self.content is None:
            return tuple(config.category_ids)
        classes = AnnotatedClasses.of(self.content, self.annotations or "", self.match_classes)
        return classes.category_ids(config, model)


def of_categories(content: Mapping[str, Any], category_ids: Collection[int]) -> dict[str, Any]:
    """The content of a COCO file with these categories alone."""
    return {
        **content,
        "annotations": [a for a in content.get("annotations", []) if a["category_id"] in category_ids],
        "categories": [c for c in content.get("categories", []) if c["id"] in category_ids],
    }


def open_images(
    *,
    coco: str | os.PathLike[str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    images_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    lenient: bool = False,
    match_classes: str = CLASS_MATCHES[0],
) -> CocoImages:
    """The images that the options ``--data``, ``--annotations``, ``--images-dir`` and ``--limit`` name.

    Args:
        coco: a dataset (see `resolve`), of which the split "val" or the only one is taken, or a folder of pictures
        annotations: COCO file; with ``images_dir`` or ``coco``, or in the dataset's folder beside its pictures
        images_dir: folder of the pictures; alone, they are taken without annotations
        limit: only the first so many pictures that exist, by image id
        lenient: leave out records that are not sound and missing pictures, and log how many
        match_classes: see :class:`CocoImages`

    Raises:
        DatasetError: nothing usable; the message states the problem and the cure.
    """
    if limit is not None and limit < 1:
        raise DatasetError(f"--limit: expected 1 or more, got {limit}")
    dataset, files = _split_files(coco, annotations, images_dir)
    if files is None and coco is None and images_dir is None:
        raise DatasetError("no images named: give --data DIR, or --annotations FILE with --images-dir DIR")
    if files is None:
        return plain_images(SplitFiles("", Path()).with_pictures(images_dir).folders or [dataset.path], limit)
    files = files.with_pictures(images_dir)
    content = read_coco(files.annotations)
    folder = files.locate(content["images"]).images
    content = check_records(content, files.annotations, folder, lenient=lenient)
    images = _with_files(files, content, folder, limit, lenient)
    return replace(images, content=_of_dataset(dataset, files, content), match_classes=match_classes)


def open_truth(
    *, coco: str | os.PathLike[str] | None, annotations: str | os.PathLike[str] | None, lenient: bool = False
) -> CocoImages:
    """The annotations that :func:`open_images` would take, checked, with all their images but without pictures.

    Raises:
        DatasetError: nothing usable; the message states the problem and the cure.
    """
    dataset, files = _split_files(coco, annotations)
    if files is None:
        raise DatasetError("results are scored against annotations: add --annotations FILE, or --data")
    content = read_annotations(files.annotations, lenient=lenient)
    images = tuple(CocoImage(record["id"], Path(record["file_name"])) for record in content["images"])
    return CocoImages(images, files.annotations, _of_dataset(dataset, files, content), len(images))


def _split_files(
    coco: str | os.PathLike[str] | None,
    annotations: str | os.PathLike[str] | None,
    images_dir: str | os.PathLike[str] | None = None,
) -> tuple[DatasetFiles, SplitFiles | None]:
    """The dataset, and the files of the split to evaluate on; None if there are no annotations."""
    dataset = DatasetFiles(Path()) if coco is None else resolve_dataset(coco, images_dir=images_dir)
    if annotations is not None:
        root = dataset.path if dataset.path.is_dir() else dataset.path.parent
        return replace(dataset, names=None), annotations_file(Path(annotations), None if coco is None else root)
    return dataset, dataset.held_out() if dataset.splits else None


def _of_dataset(dataset: DatasetFiles, files: SplitFiles, content: dict[str, Any]) -> dict[str, Any]:
    """The content with the classes that a dataset file names, under these names, if it does."""
    if dataset.names is None:
        return content
    classes = classes_of(dataset.names, content, dataset.path, files.annotations)
    kept = of_categories(content, classes)
    return {**kept, "categories": [{**record, "name": classes[record["id"]]} for record in kept["categories"]]}


def plain_images(sources: Iterable[str | os.PathLike[str]], limit: int | None = None) -> CocoImages:
    """Pictures without annotations: files as given, and those directly in folders, sorted by name."""
    paths: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            pictures = pictures_in(source)
            if not pictures:
                raise DatasetError(f"{source} has no pictures ({', '.join(IMAGE_SUFFIXES)}): give a folder that has")
            paths += pictures
        elif source.is_file():
            paths.append(source)
        else:
            raise DatasetError(f"no such picture or folder: {source}")
    if not paths:
        raise DatasetError("no pictures named: give a folder or files")
    return CocoImages(tuple(CocoImage(i, p) for i, p in enumerate(paths[:limit])), available=len(paths))


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name; none if there is no such folder.

    Every picture that OpenCV can read counts, whatever its suffix. What a folder with pictures has besides is logged.

    Raises:
        DatasetError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    try:
        entries = sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise DatasetError(f"cannot read folder {folder}: {error.strerror or error}. Check its permissions") from error
    left_out: dict[str, list[Path]] = {}
    pictures = []
    for path in entries:
        if (reason := _no_picture(path)) is None:
            pictures.append(path)
        else:
            left_out.setdefault(reason, []).append(path)
    for reason, paths in left_out.items() if pictures else ():
        _log.warning("%s: left out %d %s: %s", folder, len(paths), reason, _some([path.name for path in paths]))
    return pictures


def _no_picture(path: Path) -> str | None:
    """Why a file in a folder of pictures is none; None if it is one."""
    if path.name.startswith("."):
        return "hidden files"
    if not path.is_file():
        return "dead links" if path.is_symlink() else "files of special kinds"
    return None if is_picture(path) else "files that OpenCV cannot read as pictures"


def _with_files(
    files: SplitFiles, content: dict[str, Any], folder: Path, limit: int | None, lenient: bool
) -> CocoImages:
    """The images of a split whose pictures exist."""
    records = sorted(content["images"], key=lambda image: image["id"])
    path = files.annotations
    existing = [record for record in records if is_file(folder / record["file_name"])]
    if not existing:
        first, where = records[0]["file_name"], ", ".join(map(str, files.folders or [folder]))
        raise DatasetError(f"none of the {len(records)} images of {path} (the first is {first}) is in {where}: "
                           "name their folder with --images-dir")  # fmt: skip
    missing = len(records) - len(existing)
    if missing and limit is None:
        present = {record["id"] for record in existing}
        first = next(record["file_name"] for record in records if record["id"] not in present)
        text = f"{missing} of the {len(records)} images of {path} are missing in {folder} (first: {first})"
        if not lenient:
            raise DatasetError(
                f"{text}: complete the folder, or use those that are there with --limit {len(existing)} or --lenient"
            )
        _log.warning("%s: left out", text)
    if limit is not None and limit > len(existing):
        _log.warning("--limit %d: only %d images have files", limit, len(existing))
    findings = Findings()
    sound = list(of_right_size(existing[:limit], folder, findings))
    findings.settle(path, lenient=lenient)
    images = tuple(CocoImage(record["id"], folder / record["file_name"]) for record in sound)
    return CocoImages(images, path, content, len(existing))


def fingerprint(images: CocoImages) -> str:
    """A digest of ids, file names and sizes in order: runs with the same one can be compared image by image."""
    digest = hashlib.sha256()
    for image in images.images:
        digest.update(f"{image.image_id}\t{image.path.name}\t{image.path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _some(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:4])) + (f" and {len(values) - 4} more" if len(values) > 4 else "")

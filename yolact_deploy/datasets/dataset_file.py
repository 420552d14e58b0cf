"""The description of a dataset to train on: its classes, and the annotations and pictures of its splits.

It is a small YAML file, whose paths are relative to it:

    names: [cat, dog]            # the classes; or {7: cat, 42: dog}, by category id; if left out, all of the file
    train:
      annotations: annotations/train.json
      images: images
    val:
      annotations: annotations/val.json
      images: images

or any other form of dataset that `resolve` supports.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.annotations import CURE, categories_of, is_id, read_coco
from yolact_deploy.datasets.resolve import SPLITS, Split, resolve_dataset, yaml_files
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset: class i is called ``names[i]`` and has the id ``category_ids[i]`` in the annotations of all splits."""

    path: Path
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, Split]
    lenient: bool = False  #: leave out records that are not sound

    def split(self, name: str) -> Split:
        """The split called ``name``; raises :class:`DatasetError` if there is none."""
        if name not in self.splits:
            raise DatasetError(
                f"{self.path} has no {name!r}, only {', '.join(self.splits)}: add '{name}:' with annotations and images"
            )
        return self.splits[name]

    @property
    def classes(self) -> dict[int, str]:
        """Name of each category id, in the order of the labels."""
        return dict(zip(self.category_ids, self.names, strict=True))

    def configure(self, config: YolactConfig) -> YolactConfig:
        """The same network for the classes of this dataset."""
        return config.with_classes(self.names, self.category_ids)


def open_dataset(
    path: str | os.PathLike[str], *, images_dir: str | os.PathLike[str] | None = None, lenient: bool = False
) -> DatasetSpec:
    """Find the splits and classes of a dataset. A single annotations file of another name is the training split.

    Args:
        path: dataset file (YAML), folder or annotations file, see `resolve`
        images_dir: folder of the pictures of all splits; by default it is searched
        lenient: leave out records that are not sound where the annotations are read

    Raises:
        DatasetError: no such file, or a description with an error.
    """
    dataset = resolve_dataset(path, images_dir=images_dir)
    files = {name: split.with_pictures(images_dir) for name in SPLITS if (split := dataset.find(name))}
    if not files and len(dataset.splits) == 1:
        files = {"train": dataset.splits[0].with_pictures(images_dir)}
    if not files:
        for file in [] if dataset.splits else yaml_files(dataset.path):
            resolve_dataset(file)  # raises what is wrong with it
        raise DatasetError(
            f"{path} has no annotations/instances_*train*.json: write a dataset file (YAML) with names, train and val"
        )
    splits: dict[str, Split] = {}
    classes: dict[int, str] = {}
    for name, split in files.items():
        content = read_coco(split.annotations)
        classes = classes or classes_of(dataset.names, content, dataset.path, split.annotations)
        located = split.locate(content["images"])
        splits[name] = Split(name, located.annotations, located.images)
    return DatasetSpec(dataset.path, tuple(classes.values()), tuple(classes), splits, lenient)


def classes_of(names: Any, content: Mapping[str, Any], path: Path, annotations: Path) -> dict[int, str]:
    """Name of each category id, in the order of the labels.

    Args:
        names: ``names`` of a dataset file: by id, or looked up by name in the annotations; None for all of those
        content: of the annotations
        path: of the dataset, for errors
        annotations: path of the annotations, for errors

    Raises:
        DatasetError: unknown or repeated names.
    """
    if isinstance(names, dict):
        if not names or not all(is_id(k) and isinstance(v, str) for k, v in names.items()):
            raise DatasetError(f"{path}: names: expected names by category id, such as {{7: cat}}, got {shown(names)}")
        _refuse_renamed(names, categories_of(content, annotations), path, annotations)
        return _distinct(path, names)
    categories = categories_of(content, annotations)
    if not categories:
        raise DatasetError(f"{annotations} has no categories: {CURE} that has some")
    if names is None:
        return _distinct(annotations, _without_root(categories, content))
    return _named(names, {name: number for number, name in categories.items()}, path, annotations)


def _refuse_renamed(names: Mapping[int, str], own: Mapping[int, str], path: Path, annotations: Path) -> None:
    """Refuse names that are not those of the annotations, which may only be told apart where two are the same."""
    given = list(own.values())
    renamed = [f"{n} is {shown(name)}, but {shown(own[n])} in {annotations.name}" for n, name in names.items()
               if own.get(n, name) != name and given.count(own[n]) == 1]  # fmt: skip
    if renamed:
        raise DatasetError(
            f"{path}: names: category {'; '.join(renamed[:3])}: correct the name or its id, or rename the class in the "
            "annotations"
        )


def _without_root(categories: dict[int, str], content: Mapping[str, Any]) -> dict[int, str]:
    """The categories without one that Roboflow adds above all others: it has no objects, and their or its own name."""
    used = {record.get("category_id") for record in content["annotations"] if isinstance(record, dict)
            and is_id(record.get("category_id"))}  # fmt: skip
    above = {str(record.get("supercategory")) for record in content["categories"]} - {"none"}
    roots = [record["id"] for record in content["categories"] if record.get("supercategory") == "none"]
    names = list(categories.values())
    left_out = {n for n in roots if n not in used and (categories[n] in above or names.count(categories[n]) > 1)}
    for number in left_out:
        _log.info("left out the category %d %s, which is above all others", number, shown(categories[number]))
    return {number: name for number, name in categories.items() if number not in left_out}


def _named(names: Any, ids: Mapping[str, int], path: Path, annotations: Path) -> dict[int, str]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: names: expected a list of names, got {shown(names)}")
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise DatasetError(
            f"{path}: {annotations.name} has no category called {', '.join(map(repr, unknown[:5]))}, only "
            f"{', '.join(map(repr, list(ids)[:10]))}: correct the names, or give them by id, such as {{7: cat}}"
        )
    _distinct(path, dict(enumerate(names)), by_id=False)
    return {ids[name]: name for name in names}


def _distinct(path: Path, classes: dict[int, str], *, by_id: bool = True) -> dict[int, str]:
    repeated = [name for name, count in Counter(classes.values()).items() if count > 1]
    if repeated:
        renamed = {number: f"{name} {number}" for number, name in classes.items() if name == repeated[0]}
        example = f", in a dataset file (YAML) with names: {shown(renamed)}" if by_id else ""
        raise DatasetError(
            f"{path}: two classes called {', '.join(map(shown, repeated[:5]))}: give each a name of its own{example}"
        )
    return classes

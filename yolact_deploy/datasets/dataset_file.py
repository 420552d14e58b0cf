"""The description of a set to train on: its classes, and the annotations and pictures of its splits.

It is a small YAML file, whose paths are relative to it:

    names: [cat, dog]            # the classes; or {7: cat, 42: dog}, by category id; or left out, for all of the file
    train:
      annotations: annotations/train.json
      images: images
    val:
      annotations: annotations/val.json
      images: images

or a folder in COCO's layout (``annotations/instances_*train*.json`` and ``*val*``), or with one such YAML file in it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import read_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.annotations import is_whole
from yolact_deploy.errors import DatasetError, import_optional

SPLITS = ("train", "val")

_CURE = "give a COCO instances file"
_YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Split:
    """One part of a set."""

    name: str
    annotations: Path
    images: Path


@dataclass(frozen=True)
class DatasetSpec:
    """A set: class i is called ``names[i]`` and has the id ``category_ids[i]`` in the annotations of every split."""

    path: Path
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """Raises :class:`DatasetError` where the set has no such split."""
        if name not in self.splits:
            raise DatasetError(
                f"{self.path} has no {name!r}, only {', '.join(self.splits)}: add '{name}:' with annotations and images"
            )
        return self.splits[name]

    @property
    def label_of(self) -> dict[int, int]:
        """0-based class of each category id."""
        return {number: label for label, number in enumerate(self.category_ids)}

    def configure(self, config: YolactConfig) -> YolactConfig:
        """The same network for the classes of this set."""
        return config.with_classes(self.names, self.category_ids)


def open_dataset(path: str | os.PathLike[str]) -> DatasetSpec:
    """Read the description of a set: a YAML file, or a folder.

    Raises:
        DatasetError: no such file, or it says something that cannot be.
    """
    source = Path(path)
    if source.is_dir():
        found = sorted(p for p in source.iterdir() if p.suffix in _YAML_SUFFIXES)
        if len(found) > 1:
            raise DatasetError(f"{source} has several dataset files ({', '.join(p.name for p in found)}): name one")
        if not found:
            return _from_folder(source)
        source = found[0]
    return _from_yaml(source)


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO file, of which it is only checked that the three lists are there.

    Raises:
        DatasetError: no such file, not JSON, or not COCO.
    """
    content = read_json(path, "annotation file", DatasetError)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path} is not a COCO instances file (no list {key!r}): {_CURE}")
    return dict(content)


def categories_of(content: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Name of each category id of a COCO file, in the order of the ids; raises :class:`DatasetError`."""
    found: dict[int, str] = {}
    for record in content["categories"]:
        if not isinstance(record, dict) or not is_whole(record.get("id")) or not isinstance(record.get("name"), str):
            raise DatasetError(
                f"{path}: expected categories with a whole number id and a name, got {record!r}: repair it"
            )
        if record["id"] in found:
            raise DatasetError(f"{path}: two categories with id {record['id']}: remove one")
        found[record["id"]] = record["name"]
    return dict(sorted(found.items()))


# -- YAML -----------------------------------------------------------------------------------------------------------


def _from_yaml(path: Path) -> DatasetSpec:
    content = _read_yaml(path)
    unknown = sorted(set(map(str, content)) - {"names", *SPLITS})
    if unknown:
        raise DatasetError(f"{path}: unknown {', '.join(unknown)}: a dataset file has names, {' and '.join(SPLITS)}")
    splits = {name: _split(path, name, content[name]) for name in SPLITS if content.get(name) is not None}
    if not splits:
        raise DatasetError(f"{path} has neither {' nor '.join(SPLITS)}: give each annotations and images")
    names, ids = _classes(path, content.get("names"), next(iter(splits.values())).annotations)
    return DatasetSpec(path, names, ids, splits)


def _read_yaml(path: Path) -> dict[Any, Any]:
    yaml = import_optional("yaml", extra="train", purpose="reading a dataset file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"no such dataset: {path}; give a dataset file (YAML) or a COCO folder") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read dataset file {path}: {error}") from error
    except yaml.YAMLError as error:
        raise DatasetError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a dataset file: expected names, {' and '.join(SPLITS)}")
    return content


def _split(path: Path, name: str, value: Any) -> Split:
    if not isinstance(value, dict) or set(value) != {"annotations", "images"}:
        raise DatasetError(f"{path}: {name}: expected 'annotations: FILE' and 'images: DIR', got {value!r}")
    if not all(isinstance(part, str) for part in value.values()):
        raise DatasetError(f"{path}: {name}: expected paths, got {value!r}")
    images = path.parent / value["images"]
    if not images.is_dir():
        raise DatasetError(f"{path}: {name}: no such folder of images: {images}")
    return Split(name, path.parent / value["annotations"], images)


def _classes(path: Path, names: Any, annotations: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids: as given by id, or looked up by name among the categories of the annotations."""
    if isinstance(names, dict):
        if not names or not all(is_whole(k) and isinstance(v, str) for k, v in names.items()):
            raise DatasetError(f"{path}: names: expected names by category id, such as {{7: cat}}, got {names!r}")
        return _distinct(path, tuple(names.values())), tuple(names)
    categories = categories_of(read_coco(annotations), annotations)
    if not categories:
        raise DatasetError(f"{annotations} has no categories: {_CURE} that has")
    if names is None:
        return _distinct(annotations, tuple(categories.values())), tuple(categories)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{path}: names: expected a list of names, got {names!r}")
    ids = {name: number for number, name in categories.items()}
    strange = [name for name in names if name not in ids]
    if strange:
        raise DatasetError(
            f"{path}: {annotations.name} has no category called {', '.join(map(repr, strange[:5]))}, only "
            f"{', '.join(map(repr, list(ids)[:10]))}: correct the names, or give them by id, such as {{7: cat}}"
        )
    return _distinct(path, tuple(names)), tuple(ids[name] for name in names)


def _distinct(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(f"{path}: two classes called {', '.join(twice)}: give each a name of its own")
    return names


# -- folder ---------------------------------------------------------------------------------------------------------


def _from_folder(folder: Path) -> DatasetSpec:
    places = (folder / "annotations", folder)
    found = sorted(file for place in places for file in place.glob("instances_*.json"))
    splits = {}
    for name in SPLITS:
        files = [file for file in found if name in file.name]
        if len(files) > 1:
            raise DatasetError(f"{folder} has several files for {name} ({', '.join(f.name for f in files)}): "
                               "write a dataset file (YAML) that names one")  # fmt: skip
        if files:
            splits[name] = Split(name, files[0], _pictures(folder, files[0]))
    if not splits:
        raise DatasetError(
            f"{folder} has no annotations/instances_*train*.json: write a dataset file (YAML) with names, train and val"
        )
    names, ids = _classes(folder, None, next(iter(splits.values())).annotations)
    return DatasetSpec(folder, names, ids, splits)


def _pictures(folder: Path, annotations: Path) -> Path:
    """The folder that has the first picture of a COCO file."""
    stem = annotations.stem.removeprefix("instances_")
    candidates = [folder / name for name in (stem, f"images/{stem}", "images", ".")]
    first = next(
        (r["file_name"] for r in read_coco(annotations)["images"] if isinstance(r, dict) and "file_name" in r), ""
    )
    for candidate in candidates:
        if (candidate / str(first)).is_file():
            return candidate
    there = [candidate for candidate in candidates if candidate.is_dir()]
    return there[0]

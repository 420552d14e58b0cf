"""Where the annotations and pictures of a dataset are: one search for every command.

A dataset is named by one of

- a dataset file (YAML, see `dataset_file`), or a folder that holds one
- a COCO folder: ``annotations/instances_*.json`` or ``instances_*.json``
- a Roboflow folder: ``train/_annotations.coco.json``, ``valid/_annotations.coco.json``, or one of those folders
- an annotations file (JSON)
- a format of another tool (see `formats`), which is read into a COCO file in the cache

The pictures of a COCO folder are in the folder, in ``images``, or in a folder called like the split or the annotations
file, beside the annotations or in ``images``.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.foreign import read_foreign
from yolact_deploy.datasets.formats.format_table import DatasetFormat, recognized
from yolact_deploy.datasets.formats.yaml_text import parse_yaml
from yolact_deploy.errors import DatasetError, MissingDependencyError
from yolact_deploy.untrusted import exists, is_file, read_bytes, shown
from yolact_deploy.vocabulary import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)

SPLITS = ("train", "val")

#: absolute paths of Windows and its network
_WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_YAML_SUFFIXES = (".yaml", ".yml")
#: JSON files of a folder that are looked at
_MOST_FILES = 20
_COCO_LISTS = tuple(re.compile(rb'"%s"\s*:\s*\[' % name) for name in (b"images", b"annotations", b"categories"))
_ROBOFLOW = "_annotations.coco.json"
#: other names of the folders of a split
_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
#: where pictures are often kept under a name that says nothing about the annotations file
_SHARED = ("images", ".", "data", "val2017", "train2017", "images/val2017", "images/train2017")


@dataclass(frozen=True)
class Split:
    """One part of a dataset."""

    name: str
    annotations: Path
    images: Path


@dataclass(frozen=True)
class SplitFiles:
    """A split whose picture folder is not known yet.

    Attributes:
        name: "train", "val", or what the annotations file is called
        own: folders that would hold pictures of this split alone
        shared: further folders in which its pictures may be
        is_fixed: the folder is known, and ``--images-dir`` has been followed
    """

    name: str
    annotations: Path
    own: tuple[Path, ...] = ()
    shared: tuple[Path, ...] = ()
    is_fixed: bool = False

    @property
    def folders(self) -> list[Path]:
        return [folder for folder in (*self.own, *self.shared) if folder.is_dir()]

    def locate(self, images: Sequence[Any]) -> Split:
        """The split with the folder that holds the most pictures of the image records ``images``."""
        names = [record.get("file_name") for record in images if isinstance(record, dict)]
        best, most = None, -1
        for folder in self.folders:
            count = sum(is_file(picture_path(folder, name)) for name in names)
            if count > most:
                best, most = folder, count
            if count == len(names):
                break
        return Split(self.name, self.annotations, best or self.annotations.parent)

    def with_pictures(self, folder: str | os.PathLike[str] | None) -> SplitFiles:
        """The same split with its pictures in a folder that ``--images-dir`` names; None changes nothing.

        Raises:
            DatasetError: no such folder.
        """
        if folder is None:
            return self
        path = Path(folder)
        if not exists(path) or not path.is_dir():
            hint = "it is a file" if exists(path) else "there is none"
            raise DatasetError(f"--images-dir: expected a folder, {hint}: {folder}")
        return self if self.is_fixed else replace(self, own=(), shared=(path,))

    def __str__(self) -> str:
        """The annotations file by the part of its path that sets it apart."""
        own = self.annotations.name
        return f"{self.annotations.parent.name}/{own}" if own == _ROBOFLOW else own


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset; a folder of plain pictures has no splits.

    Attributes:
        names: what a dataset file says about the classes
    """

    path: Path
    splits: tuple[SplitFiles, ...] = ()
    names: Any = None

    def find(self, name: str) -> SplitFiles | None:
        """The split with this name; None if there is none.

        Raises:
            DatasetError: several.
        """
        splits = [split for split in self.splits if split.name == name]
        if len(splits) > 1:
            raise DatasetError(
                f"{self.path} has several files for {name} ({', '.join(map(str, splits))}): write a dataset file "
                "(YAML) that names one"
            )
        return splits[0] if splits else None

    def held_out(self) -> SplitFiles:
        """The split to evaluate on: the only one, or else the only one called "val", or else "train".

        Raises:
            DatasetError: several could be meant.
        """
        if len(self.splits) == 1:
            return self.splits[0]
        named = [[split for split in self.splits if split.name == name] for name in ("val", "train")]
        val = named[0] or named[1]
        if len(val) != 1:
            raise DatasetError(
                f"{self.path} has several annotation files ({', '.join(map(str, self.splits))}): choose one with "
                "--annotations"
            )
        _log.info("%s has %d annotation files, using %s", self.path, len(self.splits), val[0])
        return val[0]


def resolve_dataset(
    source: str | os.PathLike[str], *, images_dir: str | os.PathLike[str] | None = None
) -> DatasetFiles:
    """Find the files of a dataset; of COCO files, none of the annotations is read.

    Args:
        images_dir: folder of the pictures of a format of another tool; by default it is searched

    Raises:
        DatasetError: no such dataset, a dataset file with an error, or several dataset files in the folder.
    """
    path = Path(source)
    if exists(path) and path.is_dir():
        for file, content in _described(path).items():
            return _from_yaml(file, content)
        if splits := tuple(_coco_files(path)):
            return DatasetFiles(path, splits)
    foreign = _recognized(path)
    if foreign is not None:
        files = read_foreign(path, foreign, None if images_dir is None else Path(images_dir))
        read = (SplitFiles(name, file, shared=(folder,), is_fixed=True) for name, file, folder in files)
        return DatasetFiles(path, tuple(read))
    if path.suffix.lower() == ".json" and is_file(path):
        return DatasetFiles(path, (annotations_file(path),))
    if not exists(path) or not path.is_dir():
        return _from_yaml(path, read_dataset_file(path))
    return DatasetFiles(path)


def foreign_format(path: Path) -> DatasetFormat | None:
    """The format of another tool that a dataset has; None for a dataset file (YAML), COCO, and all else."""
    if exists(path) and path.is_dir() and (_described(path) or _coco_files(path)):
        return None
    return _recognized(path)


def _recognized(path: Path) -> DatasetFormat | None:
    return recognized(path) if exists(path) and path.suffix.lower() not in IMAGE_SUFFIXES else None


def _described(folder: Path) -> dict[Path, Mapping[Any, Any]]:
    """The dataset file of a folder, if it has one; raises :class:`DatasetError` if it has several."""
    described = _dataset_files(folder)
    if len(described) > 1:
        names = ", ".join(file.name for file in described)
        raise DatasetError(f"{folder} has several dataset files ({names}): name one of them")
    return described


def has_annotations(source: str | os.PathLike[str]) -> bool:
    """Whether this is a dataset, and not a folder of plain pictures or nothing at all."""
    return exists(Path(source)) and bool(resolve_dataset(source).splits)


def annotations_file(path: Path, root: Path | None = None) -> SplitFiles:
    """The split of an annotations file alone.

    Args:
        root: folder of the dataset; by default inferred from the place of the file
    """
    if path.name == _ROBOFLOW:
        return SplitFiles(_split_name(path.parent.name), path, (path.parent,), (path.parent.parent,))
    if root is None:
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
    stem = path.stem.removeprefix("instances_")
    name = _split_name(stem)
    own = dict.fromkeys(root / place / own for own in (stem, *_ALIASES.get(name, ())) for place in ("", "images"))
    shared = dict.fromkeys((*(root / place for place in _SHARED), path.parent))
    return SplitFiles(name, path, tuple(own), tuple(folder for folder in shared if folder not in own))


def picture_path(folder: Path, name: object) -> Path | None:
    """The picture called ``name`` in ``folder``; None if that is no file name, or leads out of the folder.

    A backslash separates folders, as on Windows, unless there is a file of that very name. Links are not resolved.
    """
    if not isinstance(name, str) or _WINDOWS_PATH.match(name):
        return None
    literal = _inside(folder, name)
    return literal if "\\" not in name or is_file(literal) else _inside(folder, name.replace("\\", "/"))


def _inside(folder: Path, name: str) -> Path | None:
    root = os.path.normpath(folder.absolute())
    path = Path(os.path.normpath(Path(root, name)))
    return folder / path.relative_to(root) if path.is_relative_to(root) else None


def _coco_files(folder: Path) -> list[SplitFiles]:
    """The splits of a COCO or Roboflow folder, in the order of their files."""
    coco = [path for place in (folder / "annotations", folder) for path in place.glob("instances_*.json")]
    roboflow = [*folder.glob(_ROBOFLOW), *folder.glob(f"*/{_ROBOFLOW}")]
    return [annotations_file(path, folder) for path in sorted(coco or roboflow or _other_coco_files(folder))]


def _other_coco_files(folder: Path) -> list[Path]:
    """The COCO files of a folder or of ``annotations`` in it, whatever they are called."""
    for place in (folder / "annotations", folder):
        files = sorted(filter(is_file, place.glob("*.json")))[:_MOST_FILES]
        if found := [file for file in files if _looks_like_coco(file)]:
            return found
    return []


def _looks_like_coco(file: Path) -> bool:
    """Whether a file has the names of COCO's three lists, each before a list; it is not parsed."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
            return start.startswith(b"{") and all(name.search(data) for name in _COCO_LISTS)
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _split_name(name: str) -> str:
    """``train`` or ``val`` where the name contains it, else the name itself."""
    return next((split for split in SPLITS if split in name), name)


# -- dataset files --------------------------------------------------------------------------------------------------


def read_dataset_file(path: Path) -> Mapping[Any, Any]:
    """The content of a dataset file; raises :class:`DatasetError` if it is not a YAML mapping."""
    if not exists(path):
        raise DatasetError(f"no such dataset: {path}: give a dataset file (YAML) or a COCO folder")
    data = read_bytes(path, "dataset file", DatasetError)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"cannot read dataset file {path}: it is not text in UTF-8 ({error})") from error
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is not a dataset file: expected names, {' and '.join(SPLITS)}")
    return content


def yaml_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _YAML_SUFFIXES and is_file(path))


def _dataset_files(folder: Path) -> dict[Path, Mapping[Any, Any]]:
    """The YAML files of a folder that describe splits; those of other tools are ignored."""
    described = {}
    for path in yaml_files(folder):
        try:
            content = read_dataset_file(path)
        except (DatasetError, MissingDependencyError) as error:
            _log.warning("ignoring %s: %s", path, error)
            continue
        if any(isinstance(value, dict) for key, value in content.items() if key != "names"):
            described[path] = content
    return described


def _from_yaml(path: Path, content: Mapping[Any, Any]) -> DatasetFiles:
    unknown = [key for key in content if key not in ("names", *SPLITS)]
    if unknown:
        raise DatasetError(
            f"{path}: unknown {', '.join(map(shown, unknown[:5]))}: a dataset file has names, {' and '.join(SPLITS)}"
        )
    splits = tuple(_from_entry(path, name, content[name]) for name in SPLITS if content.get(name) is not None)
    if not splits:
        raise DatasetError(f"{path} has neither {' nor '.join(SPLITS)}: give each annotations and images")
    if "names" in content and content["names"] is None:
        raise DatasetError(
            f"{path}: names has no value: list the classes, or leave it out for those of the annotations"
        )
    return DatasetFiles(path, splits, content.get("names"))


def _from_entry(path: Path, name: str, value: Any) -> SplitFiles:
    if not isinstance(value, dict) or set(value) != {"annotations", "images"}:
        raise DatasetError(f"{path}: {name}: expected 'annotations: FILE' and 'images: DIR', got {shown(value)}")
    if not all(isinstance(part, str) for part in value.values()):
        raise DatasetError(f"{path}: {name}: expected paths, got {shown(value)}")
    images = path.parent / value["images"]
    if not exists(images) or not images.is_dir():
        raise DatasetError(f"{path}: {name}: no such folder of images: {shown(str(images))}")
    return SplitFiles(name, path.parent / value["annotations"], shared=(images,))

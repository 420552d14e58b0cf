"""Direct use of a format of another tool: read once into COCO files in the cache, until one of its files changes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.cache import cache_folder
from yolact_deploy.datasets.formats.coco_content import coco_content
from yolact_deploy.datasets.formats.format_table import DatasetFormat
from yolact_deploy.datasets.formats.read_set import FormatOptions, ReadPicture, ReadSet
from yolact_deploy.errors import DatasetError, OutputError
from yolact_deploy.progress import NOTE
from yolact_deploy.untrusted import read_json

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
#: part of the key: a later version that reads more does not find what an earlier one wrote
_VERSION = 1
#: name of a split, its annotations, and the folder of its pictures
SplitPlace = tuple[str, Path, Path]


def read_foreign(path: Path, kind: DatasetFormat, images_dir: Path | None = None) -> list[SplitPlace]:
    """The splits of a dataset as COCO files in the cache; says in one line what it is and what was left out.

    Raises:
        DatasetError: an error in a file of the dataset.
        OutputError: the cache cannot be written.
    """
    key = f"{_VERSION}\n{kind.title}\n{path.absolute()}\n{images_dir and images_dir.absolute()}"
    folder = cache_folder("datasets") / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    manifest = _fresh(folder)
    if manifest is None:
        dataset = kind.read(path, FormatOptions(images_dir=images_dir))
        require_pictures(dataset)
        manifest = _store(dataset, folder)
    _say(f"{path}: {manifest['line']} ('data convert' writes them as COCO)")
    return [(name, folder / f"{number}.json", Path(root)) for number, (name, root) in enumerate(manifest["splits"])]


def require_pictures(dataset: ReadSet) -> None:
    """Raise :class:`DatasetError` if a dataset has no pictures or objects."""
    if not dataset.objects:
        why = "".join(f" ({line})" for line in dataset.note_lines())
        raise DatasetError(f"{dataset.path}: {dataset.title} without an object{why}: annotate some")


@lru_cache(maxsize=64)
def _say(line: str) -> None:
    """Once in a process, however often the dataset is opened."""
    _log.log(NOTE, "%s", line)


def _store(dataset: ReadSet, folder: Path) -> dict[str, Any]:
    splits = []
    try:
        for number, (name, pictures) in enumerate(dataset.splits.items()):
            root = common_folder(pictures)
            names = {picture.path: Path(os.path.relpath(picture.path, root)).as_posix() for picture in pictures}
            write_bytes(folder / f"{number}.json", json.dumps(coco_content(dataset, pictures, names)).encode())
            splits.append([name, str(root.absolute())])
        manifest = {"line": dataset.describe(), "splits": splits, "inputs": _states(sorted(dataset.inputs))}
        write_json(folder / _MANIFEST, manifest)
    except OutputError as error:
        raise OutputError(f"{error} (or set YOLACT_DEPLOY_CACHE to another folder)") from error
    return manifest


def common_folder(pictures: Sequence[ReadPicture]) -> Path:
    """The deepest folder that all of the pictures are in."""
    return Path(os.path.commonpath({os.path.normpath(picture.path.parent.absolute()) for picture in pictures}))


def _fresh(folder: Path) -> dict[str, Any] | None:
    """The manifest of an earlier reading; None if there is none, or a file has changed since."""
    if not (folder / _MANIFEST).is_file():
        return None
    manifest: dict[str, Any] = read_json(folder / _MANIFEST, "cached dataset", DatasetError)
    paths = [Path(path) for path, *_ in manifest["inputs"]]
    return manifest if _states(paths) == manifest["inputs"] else None


def _states(paths: Iterable[Path]) -> list[list[Any]]:
    """Path, time of the last change and size of files and folders."""
    return [[str(path.absolute()), *_state(path)] for path in paths]


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size

"""One file of the results that several jobs have written, each for its shard of the pictures.

COCO results are lists of detections. What ``predict --format coco`` writes beside them is ``{"images": [...]}``. Both
are merged in the order of the files; nothing is scored, and nothing is dropped.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolact_deploy.datasets.shard import SHARD_NAME
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import read_json, shown

#: shards that an error names
_MOST_NAMED = 20


def merge_results(paths: Sequence[str | os.PathLike[str]], *, complete: bool = True) -> list[Any] | dict[str, Any]:
    """The results of all files, as one value of their kind.

    Args:
        complete: refuse files whose names say that shards are missing

    Raises:
        DatasetError: a file is neither results nor a list of pictures, files of both kinds are mixed, two files have
            the same picture, or a shard is missing.
    """
    if complete:
        _require_all_shards([Path(path).name for path in paths])
    files = {os.fspath(path): read_json(path, "results file", DatasetError) for path in paths}
    lists = {path: value for path, value in files.items() if isinstance(value, list)}
    if lists and len(lists) < len(files):
        other = next(path for path in files if path not in lists)
        raise DatasetError(f"{next(iter(lists))} has results and {other} a list of pictures: merge each kind by itself")
    if lists:
        _require_apart(lists, "image_id")
        return [result for results in lists.values() for result in results]
    for path, value in files.items():
        if not isinstance(value, dict) or not isinstance(value.get("images"), list):
            raise DatasetError(f"{path}: expected COCO results or the list of their pictures, got {shown(value)}")
    pictures = {path: value["images"] for path, value in files.items()}
    _require_apart(pictures, "id")
    first = next(iter(files.values()))
    return {**first, "images": [picture for own in pictures.values() for picture in own]}


def _require_apart(files: Mapping[str, Sequence[Any]], key: str) -> None:
    """Raise :class:`DatasetError` if a picture is in two files, or an entry has none."""
    owner: dict[object, str] = {}
    for path, entries in files.items():
        for index, entry in enumerate(entries):
            number = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(number, (int, str)):
                raise DatasetError(f"{path}: entry {index}: expected an object with {key!r}, got {shown(entry)}")
            if owner.setdefault(number, path) != path:
                raise DatasetError(f"picture {shown(number)} is in {owner[number]} and in {path}: name each shard once")


def _require_all_shards(names: Sequence[str]) -> None:
    """Raise :class:`DatasetError` if names like ``part-2-of-8.json`` do not stand for all of their shards."""
    series: defaultdict[tuple[str, int], set[int]] = defaultdict(set)
    for name in names:
        if match := re.search(SHARD_NAME, name):
            series[name[: match.start()], int(match[2])].add(int(match[1]))
    for (stem, count), there in series.items():
        missing = list(itertools.islice((i for i in range(1, count + 1) if i not in there), _MOST_NAMED))
        if missing:
            numbers = ", ".join(map(str, missing)) + (" ..." if len(missing) == _MOST_NAMED else "")
            raise DatasetError(f"{stem}: of {count} shards, {numbers} are missing: run them first")

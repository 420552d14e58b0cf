"""Whole datasets from one form to another: read any, write COCO or another tool's format, split, and merge."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.annotations import check_records, read_coco
from yolact_deploy.datasets.dataset_file import classes_of
from yolact_deploy.datasets.foreign import common_folder, require_pictures
from yolact_deploy.datasets.formats.coco_content import category_ids, coco_content
from yolact_deploy.datasets.formats.format_table import FORMATS
from yolact_deploy.datasets.formats.read_set import FormatOptions, ReadObject, ReadPicture, ReadSet, Segmentation
from yolact_deploy.datasets.resolve import SPLITS, SplitFiles, foreign_format, resolve_dataset
from yolact_deploy.errors import DatasetError, InputError, OutputError, import_optional
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.untrusted import is_file

COCO = "coco"
#: what ``--to`` takes
TARGETS = (COCO, *(name for name, one in FORMATS.items() if one.write))
#: what becomes of the pictures: copied, linked (a hard link, or a copy on another disk), or left where they are
PICTURES = ("copy", "link", "keep")
_DESCRIPTION = "dataset.yaml"
#: of an annotation, what a reader keeps apart
_OWN = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def read_any(source: str | os.PathLike[str], options: FormatOptions | None = None, *, lenient: bool = False) -> ReadSet:
    """Read a whole dataset in any form.

    Args:
        lenient: leave out records of COCO files that are not sound

    Raises:
        DatasetError: it is none, or has an error; the message names file and field.
    """
    path, options = Path(source), options or FormatOptions()
    foreign = foreign_format(path)
    dataset = foreign.read(path, options) if foreign is not None else _read_coco(path, options, lenient)
    require_pictures(dataset)
    return dataset


def _read_coco(path: Path, options: FormatOptions, lenient: bool) -> ReadSet:
    files = resolve_dataset(path)
    if not files.splits:
        forms = ", ".join(["COCO", *(one.title for one in FORMATS.values())])
        raise DatasetError(f"{path} is no dataset that is known: give one of {forms}")
    result = ReadSet("COCO", path)
    for split in files.splits:
        _read_split(split.with_pictures(options.images_dir), files.names, result, lenient)
    return result


def _read_split(split: SplitFiles, names: object, result: ReadSet, lenient: bool) -> None:
    content = read_coco(split.annotations)
    classes = classes_of(names, content, result.path, split.annotations)
    folder = split.locate(content["images"]).images
    content = check_records(content, split.annotations, folder, lenient=lenient)
    numbers = dict(zip(result.names, result.ids or (), strict=False))
    if other := [name for n, name in classes.items() if numbers.get(name, n) != n]:
        raise DatasetError(
            f"{split.annotations}: the id of {other[0]!r} is another one in another split: make them equal"
        )
    numbers |= {name: n for n, name in classes.items()}
    result.names, result.ids = list(numbers), list(numbers.values())
    result.categories += [record for record in content["categories"] if record["id"] in classes]
    pictures = {}
    for record in content["images"]:
        if not is_file(folder / record["file_name"]):
            raise DatasetError(
                f"{split.annotations}: there is no picture {record['file_name']} in {folder}: complete it"
            )
        more = {key: value for key, value in record.items() if key not in ("id", "file_name", "height", "width")}
        picture = ReadPicture(folder / record["file_name"], record["file_name"], record["height"], record["width"],
                              more=more)  # fmt: skip
        pictures[record["id"]] = picture
        result.splits.setdefault(split.name, []).append(picture)
    for record in content["annotations"]:
        name = classes.get(record["category_id"])
        if name is None:
            result.notes["object of a class that is not in the names left out"] += 1
            continue
        more = {key: value for key, value in record.items() if key not in _OWN}
        o = ReadObject(name, _rounded(record["segmentation"]), bool(record["iscrowd"]), more)
        pictures[record["image_id"]].objects.append(o)


def _rounded(mask: Segmentation) -> Segmentation:
    """Polygons to a thousandth of a pixel: the last digits of 32-bit numbers would decide about half pixels.

    >>> _rounded([[10.100000381, 2, 3.5]])
    [[10.1, 2, 3.5]]
    """
    return mask if isinstance(mask, dict) else [[round(value, 3) for value in ring] for ring in mask]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_dataset(
    dataset: ReadSet, folder: Path, *, to: str = COCO, pictures: str = "copy", progress: Progress = SILENT
) -> Path:
    """Write a dataset into an empty folder; the path that commands take as ``--data``.

    What the format cannot have is counted in the notes of ``dataset``.

    Args:
        to: one of :data:`TARGETS`
        pictures: one of :data:`PICTURES`; "keep" for COCO only

    Raises:
        OutputError: the folder has files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not empty: choose another folder with -o")
    if pictures == "keep":
        if to != COCO:
            raise InputError(f"--pictures keep: {FORMATS[to].title} has its pictures in the same folder: use link")
        return _write_coco(dataset, folder, None)
    pattern = "images/{split}" if to == COCO else FORMATS[to].pictures
    placed = _places(dataset, pattern)
    for (_, source), place in progress.track(list(placed.items()), "pictures"):
        _put(source, folder / place, pictures)
    if to == COCO:
        return _write_coco(dataset, folder, placed)
    write = FORMATS[to].write
    assert write is not None
    for name in dict.fromkeys(key for picture in dataset.pictures for o in picture.objects for key in o.more):
        dataset.notes[f"field {name} of annotations left out, which {FORMATS[to].title} does not have"] += 1
    write(dataset, folder, placed)
    return folder


def _places(dataset: ReadSet, pattern: str) -> dict[tuple[str, Path], str]:
    """Where each picture goes; names that would be the same but for folder or suffix get a number."""
    placed: dict[tuple[str, Path], str] = {}
    for split, pictures in dataset.splits.items():
        taken: set[str] = set()
        for picture in pictures:
            flat = PurePosixPath(picture.name.replace("../", "").replace("/", "_"))
            stem, number = flat.stem, 1
            while stem.lower() in taken:
                number += 1
                stem = f"{flat.stem}_{number}"
            if number > 1:
                dataset.notes["picture renamed, because another one has its name"] += 1
            taken.add(stem.lower())
            placed[split, picture.path] = f"{pattern.format(split=split)}/{stem}{flat.suffix}"
    return placed


def _put(source: Path, target: Path, how: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            try:
                os.link(source.resolve(), target)
            except OSError:  # another disk
                shutil.copyfile(source, target)
        else:
            shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}. Choose another folder with -o") from error


def _write_coco(dataset: ReadSet, folder: Path, placed: Mapping[tuple[str, Path], str] | None) -> Path:
    """Annotations of each split, and a dataset file with train and val."""
    entries = {}
    for split, pictures in dataset.splits.items():
        root = common_folder(pictures) if placed is None else Path("images", split)
        names = {}
        for picture in pictures:
            place = (
                Path(os.path.normpath(picture.path.absolute())) if placed is None else Path(placed[split, picture.path])
            )
            names[picture.path] = place.relative_to(root).as_posix()
        file = f"annotations/instances_{split}.json"
        write_bytes(folder / file, json.dumps(coco_content(dataset, pictures, names)).encode())
        entries[split] = {"annotations": file, "images": str(root) if placed is None else root.as_posix()}
    if not set(entries) & set(SPLITS):  # one of another name, or several
        entries["train"] = entries[next(iter(entries))]
    yaml = import_optional("yaml", extra="train", purpose="writing a dataset file")
    content = {"names": {number: name for name, number in category_ids(dataset).items()},
               **{split: entries[split] for split in SPLITS if split in entries}}  # fmt: skip
    write_bytes(folder / _DESCRIPTION, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return folder / _DESCRIPTION


# -- splitting and merging --------------------------------------------------------------------------------------------


def split_dataset(dataset: ReadSet, shares: Mapping[str, float], seed: int = 0) -> ReadSet:
    """The same pictures in other splits, of all splits together, the same for the same seed.

    Pictures of the rarest classes are dealt first, each to the split that lacks most of its share of the class.

    Args:
        shares: of each split; they sum up to 1

    Raises:
        InputError: a split would get no picture.
    """
    pictures = sorted(dataset.pictures, key=lambda picture: picture.name)
    random.Random(seed).shuffle(pictures)
    count = Counter(name for picture in pictures for name in {o.name for o in picture.objects})
    room = {split: share * len(pictures) for split, share in shares.items()}
    wanted = {split: {name: share * n for name, n in count.items()} for split, share in shares.items()}
    parts: dict[str, list[ReadPicture]] = {split: [] for split in shares}
    for picture in sorted(pictures, key=lambda p: min((count[o.name] for o in p.objects), default=len(pictures) + 1)):
        names = {o.name for o in picture.objects}
        rarest = min(names, key=lambda name: (count[name], name), default=None)

        def need(split: str, rarest: str | None = rarest) -> tuple[bool, float, float]:
            return room[split] > 0, 0.0 if rarest is None else wanted[split][rarest], room[split]

        best = max(parts, key=need)
        parts[best].append(picture)
        room[best] -= 1
        for name in names:
            wanted[best][name] -= 1
    if empty := [split for split, part in parts.items() if not part]:
        raise InputError(
            f"{len(pictures)} pictures are too few for a share of {shares[empty[0]]:g} as {empty[0]}: raise it"
        )
    result = _like(dataset)
    result.splits = {split: sorted(part, key=lambda picture: picture.name) for split, part in parts.items()}
    return result


def merge_datasets(datasets: Sequence[ReadSet]) -> ReadSet:
    """The pictures of several datasets, split by split; classes of the same name become one."""
    result = ReadSet("COCO", datasets[0].path)
    seen: dict[tuple[int, bytes], Path] = {}
    for dataset in datasets:
        for name in dataset.names:
            result.add_class(name)
        result.categories += dataset.categories
        result.notes.update(dataset.notes)
        for split, pictures in dataset.splits.items():
            for picture in pictures:
                key = (picture.path.stat().st_size, picture.path.read_bytes()[-4096:])
                if seen.setdefault(key, picture.path) != picture.path:
                    result.notes["picture that is in two of the datasets or splits, with both annotations"] += 1
                result.splits.setdefault(split, []).append(replace(picture))
    return result


def _like(dataset: ReadSet) -> ReadSet:
    """An empty dataset with the same classes."""
    result = ReadSet(dataset.title, dataset.path, dataset.names)
    result.ids, result.categories, result.notes = dataset.ids, dataset.categories, dataset.notes
    return result

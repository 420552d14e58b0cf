"""One pass over a COCO file: sound annotations go into a compact table, problems into findings.

Of the pictures it reads the sizes alone; `check` can decode them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.datasets.annotations import ImageRecord, RecordCheck, categories_of, read_coco
from yolact_deploy.datasets.class_names import other_names
from yolact_deploy.datasets.findings import Findings
from yolact_deploy.datasets.instance_table import ObjectTable, TableBuilder
from yolact_deploy.errors import DatasetError
from yolact_deploy.untrusted import shown

_MOST_KEYPOINTS = 1000


@dataclass(frozen=True)
class Scan:
    """The content of a file: ``table`` has the objects of each of ``images``."""

    classes: dict[int, str]  #: name of each category id, in the order of the labels
    images: list[ImageRecord]
    table: ObjectTable
    findings: Findings
    objects_of_class: NDArray[np.int64]  #: [classes] without crowds


def scan_file(annotations: Path, folder: Path, classes: Mapping[int, str] | None = None, *, sizes: bool = True) -> Scan:
    """Read and check a COCO file.

    Args:
        folder: of the pictures
        classes: name of each category id, in the order of the labels; by default those of the file
        sizes: also compare the sizes of the pictures with their records

    Raises:
        DatasetError: not a COCO file, or its categories have other names than ``classes``.
    """
    content = read_coco(annotations)
    own = categories_of(content, annotations)
    known = dict(own if classes is None else classes)
    names = list(own.values())
    renamed = [
        f"{pair.number} is {shown(pair.first)} there and {shown(pair.second)} here"
        for pair in other_names(own, known)
        if names.count(pair.first) == 1  # names of a dataset file may tell apart two that are the same
    ]
    if renamed:
        raise DatasetError(
            f"{annotations}: category {'; '.join(renamed[:3])}: are the ids of all splits the same? Correct the file, "
            "or the names of the dataset"
        )
    return _scan(content, folder, known, sizes)


def _scan(content: Mapping[str, Any], folder: Path, classes: dict[int, str], sizes: bool) -> Scan:
    check = RecordCheck(classes, folder, need_files=True, sizes=sizes)
    findings, images = check.findings, check.images
    check.add_images(content["images"])
    sound = [a for n, record in enumerate(content["annotations"]) if (a := check.annotation(record, n)) is not None]
    sound.sort(key=lambda a: (a.image, a.record["iscrowd"]))  # the table needs images in order
    label_of = {number: label for label, number in enumerate(classes)}
    builder = TableBuilder(_keypoint_mirror(content["categories"]))
    keys: set[int] = set()
    for annotation in sound:
        record = annotation.record
        if annotation.box is None:
            continue
        key = hash((annotation.image, record["category_id"], *record["bbox"]))
        if key in keys:
            findings.add("duplicate annotation", f"annotation {record['id']}")
        keys.add(key)
        keypoints = record.get("keypoints") or ()
        if len(keypoints) != 3 * len(builder.keypoint_mirror):
            keypoints = ()
        mask = record["segmentation"]
        drawn = mask if isinstance(mask, list) else mask["counts"].encode()
        label = label_of[record["category_id"]]
        builder.add(annotation.image, label, annotation.box, record["area"], record["iscrowd"], drawn, keypoints)
    table = builder.build(len(images))
    labels = table.labels[~table.iscrowd]
    if images and not len(labels):
        findings.add("no objects")
    for index in np.flatnonzero(table.counts() == 0).tolist():
        findings.add("image without objects", images[index].file_name)
    return Scan(classes, images, table, findings, np.bincount(labels, minlength=len(classes)))


def _keypoint_mirror(categories: Sequence[Any]) -> tuple[int, ...]:
    """Which keypoint each becomes in a mirror, by names with left and right; of the category that has the most."""
    lists = [c["keypoints"] for c in categories if isinstance(c, dict) and isinstance(c.get("keypoints"), list)]
    names: list[Any] = max(lists, key=len, default=[])[:_MOST_KEYPOINTS]
    swap = {"left": "right", "right": "left"}
    other = ["_".join(swap.get(part, part) for part in str(name).split("_")) for name in names]
    return tuple(names.index(name) if name in names else i for i, name in enumerate(other))

"""The formats by the names that ``data convert --to`` takes: a new one is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.datasets.formats import (
    cvat_xml,
    label_studio,
    labelme_json,
    mask_folders,
    pascal_voc,
    sbd_masks,
    yolo_seg,
)
from yolact_deploy.datasets.formats.read_set import FormatOptions, ReadSet

#: writes a dataset into a folder, whose pictures are where the last argument says, by split and path
Write = Callable[[ReadSet, Path, Mapping[tuple[str, Path], str]], None]


@dataclass(frozen=True)
class DatasetFormat:
    """A format of another tool.

    Attributes:
        title: as people know it
        recognizes: whether a file or folder has this format, quickly
        read: raises :class:`DatasetError` that names file and field
        write: None if it is read only
        pictures: folder of the pictures of a split, where it is written
    """

    title: str
    recognizes: Callable[[Path], bool]
    read: Callable[[Path, FormatOptions], ReadSet]
    write: Write | None = None
    pictures: str = "images/{split}"


#: the order in which they are tried
FORMATS: Mapping[str, DatasetFormat] = {
    "yolo": DatasetFormat(yolo_seg.TITLE, yolo_seg.recognizes, yolo_seg.read, yolo_seg.write),
    "sbd": DatasetFormat(sbd_masks.TITLE, sbd_masks.recognizes, sbd_masks.read),
    "voc": DatasetFormat(pascal_voc.TITLE, pascal_voc.recognizes, pascal_voc.read),
    "cvat": DatasetFormat(cvat_xml.TITLE, cvat_xml.recognizes, cvat_xml.read, cvat_xml.write),
    "labelstudio": DatasetFormat(label_studio.TITLE, label_studio.recognizes, label_studio.read),
    "labelme": DatasetFormat(
        labelme_json.TITLE, labelme_json.recognizes, labelme_json.read, labelme_json.write, "{split}"
    ),
    "masks": DatasetFormat(
        mask_folders.TITLE, mask_folders.recognizes, mask_folders.read, mask_folders.write, "{split}/images"
    ),
}


def recognized(path: Path) -> DatasetFormat | None:
    """The format of a file or folder; None if it is none of them."""
    try:
        return next((one for one in FORMATS.values() if one.recognizes(path)), None)
    except OSError:  # a folder that cannot be read is reported by whoever reads it
        return None

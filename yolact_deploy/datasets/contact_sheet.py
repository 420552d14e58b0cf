"""A contact sheet of a dataset: pictures with their masks in the colors of the classes, as one PNG or HTML file."""

from __future__ import annotations

import base64
import html
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolact_deploy.artifact import write_bytes
from yolact_deploy.datasets.formats.mask_shapes import mask_rle, picture_crops
from yolact_deploy.datasets.formats.read_set import ReadObject, ReadPicture, ReadSet
from yolact_deploy.detections import Detections
from yolact_deploy.draw import DrawStyle, Image, draw_detections, instance_color
from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress

#: of a sheet, which is one picture
MOST_PICTURES = 2000
_SIDE = 320  # of a picture on the sheet
_COLUMNS = 4
_LEGEND = 24  # height of a line in pixels
_MOST_CLASSES = 24
_PAPER = 250
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_sheet(
    dataset: ReadSet,
    path: Path,
    *,
    limit: int,
    split: str | None = None,
    only_class: str | None = None,
    progress: Progress = SILENT,
) -> int:
    """Draw up to ``limit`` pictures, spread evenly over the dataset; returns how many.

    Args:
        path: ends in .png or .html
        split: only this one
        only_class: only pictures and objects of this class

    Raises:
        DatasetError: no such split or class.
        InputError: another suffix.
    """
    if path.suffix.lower() not in (".png", ".html"):
        raise InputError(f"-o: expected a file that ends in .png or .html, got {path}")
    chosen = _chosen(dataset, limit, split, only_class)
    drawn = [(picture, _draw(picture, dataset.names)) for picture in progress.track(chosen, "drawing")]
    if path.suffix.lower() == ".png":
        sheet = _sheet([image for _, image in drawn], _counts(chosen), dataset.names)
        write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())
    else:
        write_bytes(path, _page(dataset, drawn).encode())
    return len(drawn)


def _chosen(dataset: ReadSet, limit: int, split: str | None, only_class: str | None) -> list[ReadPicture]:
    if split is not None and split not in dataset.splits:
        raise DatasetError(f"{dataset.path} has no split {split!r}, only {', '.join(dataset.splits)}")
    if only_class is not None and only_class not in dataset.names:
        raise DatasetError(f"{dataset.path} has no class {only_class!r}, only {', '.join(dataset.names[:20])}")
    pictures = list(dataset.pictures) if split is None else dataset.splits[split]
    if only_class is not None:
        kept = (_only(picture, only_class) for picture in pictures)
        pictures = [picture for picture in kept if picture.objects]
    if not pictures:
        raise DatasetError(f"{dataset.path}: no pictures to draw: choose another split or class")
    count = min(limit, len(pictures))
    return [pictures[i * len(pictures) // count] for i in range(count)]


def _only(picture: ReadPicture, name: str) -> ReadPicture:
    objects = [o for o in picture.objects if o.name == name]
    return ReadPicture(picture.path, picture.name, picture.height, picture.width, objects)


def _draw(picture: ReadPicture, names: list[str]) -> Image:
    """The picture with its masks, at most :data:`_SIDE` pixels a side."""
    image = read_image(picture.path)
    if image.shape[:2] != (picture.height, picture.width):
        size = f"{picture.width} x {picture.height}, got {image.shape[1]} x {image.shape[0]}"
        raise DatasetError(f"{picture.path}: expected pixels {size}: correct the annotations")
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    height, width = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    objects = [_scaled(o, picture, height, width) for o in picture.objects]
    shown = ReadPicture(picture.path, picture.name, height, width, [o for o in objects if o is not None])
    style = DrawStyle(hide=frozenset(("boxes", "scores", "labels")), color="class")
    return draw_detections(np.ascontiguousarray(small), _detections(shown, names), style=style)


def _scaled(o: ReadObject, picture: ReadPicture, height: int, width: int) -> ReadObject | None:
    """The object in a picture of another size."""
    if isinstance(o.mask, list):
        share = (width / picture.width, height / picture.height)
        return ReadObject(o.name, [[v * share[i % 2] for i, v in enumerate(ring)] for ring in o.mask], o.iscrowd)
    one = ReadPicture(picture.path, "", picture.height, picture.width, [o])
    full = picture_crops(one).full()[0].astype(np.uint8) * 255
    small = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA) > 127
    return ReadObject(o.name, mask_rle(small), o.iscrowd) if small.any() else None


def _detections(picture: ReadPicture, names: list[str]) -> Detections:
    crops = picture_crops(picture)
    corners: list[list[float]] = []
    for crop, (x, y) in zip(crops.crops, crops.offsets.tolist(), strict=True):
        corners.append([x, y, x + crop.shape[1], y + crop.shape[0]])
    count = len(picture.objects)
    return Detections(
        boxes=np.array(corners, np.float32).reshape(-1, 4),
        scores=np.ones(count, np.float32),
        labels=np.array([names.index(o.name) for o in picture.objects], np.int64),
        class_names=tuple(names),
        mask_data=crops,
        height=picture.height,
        width=picture.width,
    )


def _counts(pictures: list[ReadPicture]) -> Counter[str]:
    return Counter(o.name for picture in pictures for o in picture.objects)


def _sheet(images: list[Image], counts: Counter[str], names: list[str]) -> Image:
    """Pictures in rows of four, and the classes below."""
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    classes = counts.most_common(_MOST_CLASSES)
    lines = -(-len(classes) // columns)
    sheet = np.full((rows * _SIDE + lines * _LEGEND + 8, columns * _SIDE, 3), _PAPER, np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        height, width = image.shape[:2]
        y, x = row * _SIDE + (_SIDE - height) // 2, column * _SIDE + (_SIDE - width) // 2
        sheet[y : y + height, x : x + width] = image
    for place, (name, count) in enumerate(classes):
        row, column = divmod(place, columns)
        y, x = rows * _SIDE + 8 + row * _LEGEND, column * _SIDE + 8
        cv2.rectangle(sheet, (x, y), (x + 14, y + 14), instance_color(names.index(name)), cv2.FILLED)
        cv2.putText(sheet, f"{name} {count}", (x + 22, y + 13), _FONT, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return sheet


def _page(dataset: ReadSet, drawn: list[tuple[ReadPicture, Image]]) -> str:
    cells: list[str] = []
    for picture, image in drawn:
        data = base64.b64encode(cv2.imencode(".jpg", image)[1].tobytes()).decode("ascii")
        counted = Counter(o.name for o in picture.objects).most_common()
        text = ", ".join(f"{count} {name}" for name, count in counted) or "no objects"
        cells.append(f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption><b>{_text(picture.name)}</b>'
                     f"<br>{_text(text)}</figcaption></figure>")  # fmt: skip
    counts = _counts([picture for picture, _ in drawn])
    legend = "".join(
        f'<li><i style="background:{_css(dataset.names.index(name))}"></i>{_text(name)} {count}</li>'
        for name, count in counts.most_common()
    )
    title = f"{dataset.path}: {dataset.describe()}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(str(dataset.path))}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{_text(title)}</h1>'
        f"<ul>{legend}</ul><main>{''.join(cells)}</main></html>\n"
    )


_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:1rem;background:#fafafa;color:#222}h1{font-size:1rem}"
    "main{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:320px}img{max-width:100%}"
    "ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.3rem 1rem}"
    "i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}figcaption{overflow-wrap:anywhere}"
)


def _css(index: int) -> str:
    blue, green, red = instance_color(index)
    return f"rgb({red},{green},{blue})"


def _text(value: Any) -> str:
    return html.escape(str(value))

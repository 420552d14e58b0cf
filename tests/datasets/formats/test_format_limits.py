"""Damaged and hostile datasets of other tools: one error that names file and field, soon and without much memory."""

from __future__ import annotations

import base64
import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools")

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.convert import read_any
from yolact_deploy.datasets.formats.read_set import ReadSet
from yolact_deploy.datasets.resolve import read_dataset_file
from yolact_deploy.errors import DatasetError

Make = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a.png and images/b.png."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "images/b.png"):
        assert cv2.imwrite(str(tmp_path / name), np.full((40, 60, 3), 90, np.uint8))
    return tmp_path


def refused(folder: Path, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(DatasetError, match=message):
        read_any(folder)
    assert time.monotonic() - start < 60, "no hang"


# -- YAML -------------------------------------------------------------------------------------------------------------

_TAGS = ["!!bool x", "!!int ''", "!!float ''", "!!timestamp ''", "!!int abc", "!!set x", "!!python/name:os.system"]


@pytest.mark.parametrize("value", _TAGS)
def test_tags_that_do_not_fit_their_values(value: str, folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text(f"train: images\nnames: [a]\nnc: {value}\n")
    refused(folder / "data.yaml", "data.yaml is not valid YAML")
    with pytest.raises(DatasetError, match=r"data\.yaml is not valid YAML"):
        read_dataset_file(folder / "data.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: &a [y, y]\ntrain: images\nnames: [[*a, *a], b]", "names: expected the names of classes"),
        ("train: images\nnames: [{a: 1}]", "names: expected the names of classes"),
        ("train: images\nnames: [~]", "names: expected the names of classes"),
        ("train: images\nnames: {0: a, 2: b}", "names: expected the classes 0 to 1"),
        ("train: images\npath: 3\nnames: [a]", "path: expected a folder, got 3"),
        (f"train: {'x' * 5000}\nnames: [a]", "train: no such folder or list of pictures"),
        ('train: "a\\0b"\nnames: [a]', "train: no such folder or list of pictures"),
    ],
)
def test_descriptions_of_yolo(text: str, message: str, folder: Path) -> None:
    (folder / "data.yaml").write_text(text)
    refused(folder, message)


@pytest.mark.parametrize("line", ["n" * 5000, "../" * 2000 + "x.png", "a\0b.png", "/dev/null"])
def test_lists_of_yolo(line: str, folder: Path) -> None:
    (folder / "data.yaml").write_text("train: list.txt\nnames: [a]\n")
    (folder / "list.txt").write_text(line)
    refused(folder, "list.txt: there is no picture")


def bomb(levels: int, width: int) -> str:
    """Aliases of aliases, whose text would have width ** levels words."""
    lines = ["l0: &l0 [x]"] + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join([*lines, "train: images", f"names: *l{levels - 1}"])


@pytest.mark.parametrize(("levels", "width"), [(9, 9), (30, 2), (3, 30)])
def test_aliases(levels: int, width: int, folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text(bomb(levels, width))
    refused(folder / "data.yaml", "data.yaml has .* aliases")


# -- XML --------------------------------------------------------------------------------------------------------------

_ENTITIES = '<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy"><!ENTITY z SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "data",
    [
        f"{_ENTITIES}<annotations><image name='&x;'/></annotations>".encode(),
        f"<!--{'a' * 200_000}-->{_ENTITIES}<annotations><image name='&x;'/></annotations>".encode(),
        f"<!-- <annotations> -->{_ENTITIES.lower().replace('doctype', 'DOCTYPE')}<annotations/>".encode(),
    ],
    ids=["at the start", "after 200 kB", "another case"],
)
def test_document_types_wherever_they_are(data: bytes, folder: Path) -> None:
    (folder / "annotations.xml").write_bytes(b"<!-- <annotations> -->" + data)
    refused(folder / "annotations.xml", "annotations.xml(: document types and entities| is not valid XML)")


def test_a_document_type_in_another_encoding(folder: Path) -> None:
    from yolact_deploy.datasets.formats.xml_text import read_xml

    (folder / "a.xml").write_bytes(f"{_ENTITIES}<annotations/>".encode("utf-16"))
    with pytest.raises(DatasetError, match=r"a\.xml: document types and entities are not read"):
        read_xml(folder / "a.xml", ReadSet("", folder))


@pytest.mark.parametrize(
    "image",
    [
        f"<image name='{'n' * 5000}' width='60' height='40'/>",
        "<image name='a.png' width='1e999' height='40'/>",
        "<image name='a.png' width='inf' height='40'/>",
        f"<image name='a.png' width='{'9' * 5000}' height='40'/>",
    ],
)
def test_pictures_of_cvat(image: str, folder: Path) -> None:
    (folder / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    refused(folder, "annotations.xml: (the picture|image)")


# -- JSON -------------------------------------------------------------------------------------------------------------


def labelme(folder: Path, **more: Any) -> None:
    content = {"shapes": [], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60, **more}
    (folder / "a.json").write_text(json.dumps(content))


def huge_png(height: int, width: int) -> bytes:
    """A few hundred bytes that claim to be a picture of this size."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 1000))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"imageHeight": float("inf")}, "expected height and width"),
        ({"imageHeight": [1]}, "expected height and width"),
        ({"imagePath": "n" * 5000}, "the picture 'nnn"),
        ({"imagePath": "a\0.png"}, "the picture 'a"),
        ({"imagePath": 7}, "the picture '7' is not in"),
    ],
)
def test_pictures_of_labelme(more: dict[str, Any], message: str, folder: Path) -> None:
    labelme(folder, **more)
    refused(folder, message)


@pytest.mark.parametrize(
    "mask",
    [huge_png(1 << 20, 1 << 20), huge_png(40_000, 40_000), huge_png(40, 1 << 30), b"", b"\x89PNG", b"GIF89a"],
    ids=["2 ** 40", "1.6 billion", "wide", "empty", "cut", "gif"],
)
def test_masks_of_labelme(mask: bytes, folder: Path) -> None:
    shape = {"label": "a", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": base64.b64encode(mask).decode()}
    labelme(folder, shapes=[shape])
    refused(folder, r"a\.json: shape 0: mask")


def test_folders_and_pipes_called_like_annotations(folder: Path) -> None:
    labelme(folder, shapes=[{"label": "a", "points": [[1, 1], [9, 1], [9, 9]]}])
    for name in ("b.json", "c.xml", "d.yaml"):
        (folder / name).mkdir()
    os.mkfifo(folder / "e.json")
    os.mkfifo(folder / "f.xml")
    os.mkfifo(folder / "g.yaml")
    assert read_any(folder).objects == 1


def task(**more: Any) -> dict[str, Any]:
    result = {"value": {"polygonlabels": ["a"], "points": [[1, 1], [9, 1], [9, 9]]}}
    return {"data": {"image": "/data/a.png"}, "annotations": [{"result": [result]}], **more}


SIZED = {"original_width": float("inf"), "original_height": 1, "value": {"polygonlabels": ["a"], "points": []}}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (task(annotations=5), "annotations: expected a list of objects, got 5"),
        (task(annotations={"result": []}), "annotations: expected a list of objects"),
        (task(annotations=[{"result": 7}]), "result: expected a list of objects, got 7"),
        (task(annotations=[{"result": "text"}]), "result: expected a list of objects, got 'text'"),
        (task(data={"image": "http://[bad/a.png"}), "data: expected the address of a picture"),
        (task(data={"image": ["a.png"]}), "data names no picture"),
        (task(data={"image": "/data/" + "n" * 5000 + ".png"}), "the picture 'data/nnn|the picture '/data/nnn"),
        (task(annotations=[{"result": [SIZED]}]), "expected height and width"),
    ],
)  # fmt: skip
def test_tasks_of_label_studio(broken: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "export.json").write_text(json.dumps([broken]))
    # The first bytes must look like an export.
    (folder / "export.json").write_text(json.dumps([task(), {**broken}]))
    refused(folder / "export.json", f"task 1.*{message}")


def test_many_classes_take_no_time_that_grows_with_their_square() -> None:
    dataset = ReadSet("", Path())
    start = time.monotonic()
    for number in range(200_000):
        dataset.add_class(f"class {number}")
    dataset.names = [*dataset.names, "set by a reader"]
    assert dataset.add_class("set by a reader") == "set by a reader"
    assert len(dataset.names) == 200_001
    assert time.monotonic() - start < 30


def zigzag(folder: Path, kind: str) -> Path:
    """A dataset of one outline that crosses the picture's surroundings a thousand times."""
    points = [[1e6 * (place % 2), float(place % 7)] for place in range(2000)]
    if kind == "labelme":
        labelme(folder, shapes=[{"label": "a", "points": points}])
    elif kind.startswith("cvat"):
        text = ";".join(f"{x},{y}" for x, y in points)
        mask = "<mask label='a' group_id='1' rle='0, 4' left='0' top='0' width='2' height='2'/>"
        shapes = f"<polygon label='a' group_id='1' points='{text}'/>{mask if 'mask' in kind else ''}"
        head = "<annotations><image name='a.png' width='60' height='40'>"
        (folder / "annotations.xml").write_text(f"{head}{shapes}</image></annotations>")
    else:
        corners = "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(points, 1))
        item = f"<object><name>a</name><polygon>{corners}</polygon></object>"
        (folder / "a.xml").write_text(f"<annotation><filename>a.png</filename>{item}</annotation>")
    return folder


@pytest.mark.parametrize("kind", ["labelme", "cvat", "cvat with a mask", "voc"])
def test_outlines_that_would_fill_the_memory(kind: str, folder: Path) -> None:
    refused(zigzag(folder, kind), "an object of class 'a' in a.png has an outline far longer than 60 x 40 pixels")


# -- masks ------------------------------------------------------------------------------------------------------------


def noise(path: Path) -> None:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (noise, r"a\.png: 2\d{4} different values, and each would be an object"),
        (lambda path: path.write_bytes(huge_png(1 << 20, 1 << 20)), r"a\.png: 1048576 x 1048576, expected a mask"),
        (lambda path: path.write_bytes(huge_png(40_000, 30_000)), r"a\.png: 30000 x 40000, expected a mask"),
        (lambda path: path.write_bytes(b"\x89PNG"), r"a\.png: expected a PNG that can be read"),
        (lambda path: path.write_bytes(b""), r"a\.png: expected a PNG that can be read"),
    ],
    ids=["a photograph", "2 ** 40", "1.2 billion", "cut", "empty"],
)
@pytest.mark.parametrize("voc", [False, True], ids=["masks", "voc"])
def test_mask_pictures(write: Make, message: str, voc: bool, tmp_path: Path) -> None:
    images, masks = ("JPEGImages", "SegmentationObject") if voc else ("images", "masks")
    for name in (images, masks, "SegmentationClass"):
        (tmp_path / name).mkdir()
    noise(tmp_path / images / "a.png")
    write(tmp_path / masks / "a.png")
    refused(tmp_path, message)


def test_mask_pictures_of_16_bits_in_color(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    noise(tmp_path / "images" / "a.png")
    ids = np.zeros((150, 150, 3), np.uint16)
    ids[:50, :, 2], ids[50:90, :, 1] = 1, 256  # with 8 bits a channel, these two are one number
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), ids)
    assert read_any(tmp_path).objects == 2


@pytest.mark.parametrize("stem", ["../../secret", "sub/a", "/etc/passwd", "n" * 5000])
def test_lists_of_voc_stay_in_their_folder(stem: str, tmp_path: Path) -> None:
    for name in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Segmentation/train.txt").write_text(stem)
    refused(tmp_path / "voc", r"train\.txt: expected names of pictures without folder")


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz", "set.7z"])
def test_archives(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
    for command in (["data", "convert", str(tmp_path / name), "-o", "out"], ["data", "check", str(tmp_path / name)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert name in error

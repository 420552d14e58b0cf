"""Files as other tools write them, in the forms that a format has; what is left out is counted."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

from format_sets import iou

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.convert import read_any
from yolact_deploy.datasets.dataset_file import open_dataset
from yolact_deploy.datasets.formats.mask_shapes import pixels
from yolact_deploy.datasets.formats.pascal_voc import voc_color
from yolact_deploy.datasets.formats.read_set import FormatOptions, ReadSet
from yolact_deploy.errors import DatasetError

HEIGHT, WIDTH = 40, 60


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(len(str(path.name))).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(path), image)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def only(dataset: ReadSet) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Classes and pixels of the objects of the only picture."""
    (one,) = dataset.pictures
    return [(o.name, pixels(o.mask, HEIGHT, WIDTH)) for o in one.objects]


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray[Any, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


# -- YOLO -------------------------------------------------------------------------------------------------------------

SQUARE = "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5"  # pixels 6..30, 4..20


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("names: [cat, dog]\ntrain: images/train\nval: images/train\n", "images/train"),
        ("names: {0: cat, 1: dog}\nnc: 2\npath: .\ntrain: [images/train]\n", "images/train"),
        ("names: [cat, dog]\ntrain: ../train/images\nval: ../train/images\n", "train/images"),
        ("names: [cat, dog]\ntrain: list.txt\n", "images/train"),
        ("names: [cat, dog]\nnc: 2\n", "images"),
    ],
)
def test_yolo_layouts(text: str, images: str, tmp_path: Path) -> None:
    picture(tmp_path / images / "a.jpg")
    write(tmp_path / images.replace("images", "labels") / "a.txt", f"1 {SQUARE}\n")
    write(tmp_path / "list.txt", f"./{images}/a.jpg\n")
    write(tmp_path / "data.yaml", text)
    spec = open_dataset(tmp_path)
    assert spec.names == ("cat", "dog")
    name, mask = only(_train(read_any(tmp_path)))[0]
    assert name == "dog"
    assert iou(mask, box(6, 4, 30, 20)) == 1


def _train(dataset: ReadSet) -> ReadSet:
    dataset.splits = {"train": dataset.splits["train"]}
    return dataset


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 " + SQUARE, r"a.txt line 1: class '2': expected 0 to 1"),
        ("x " + SQUARE, r"a.txt line 1: class 'x'"),
        ("0 0.1 0.1 0.5 nan 0.5 0.5", "line 1: expected numbers of pixels, got 'nan'"),
        ("0 0.1 0.1 0.5 0.1 0.5", "line 1: expected pairs of x and y, got 5 numbers"),
        ("0 10 10 50 10 50 50", "line 1: 50: expected shares"),
        ("0 0.5 0.5 0.2 0.2", "the labels are 1 boxes"),
    ],
)
def test_yolo_errors(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.txt", line + "\n")
    write(tmp_path / "data.yaml", "names: [cat, dog]\ntrain: images\n")
    with pytest.raises(DatasetError, match=message):
        read_any(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "data.yaml" in (error := capsys.readouterr().err) or "a.txt" in error
    assert "Traceback" not in error


def test_yolo_boxes_are_counted_or_taken(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.txt", f"0 0.5 0.5 0.2 0.2\n1 {SQUARE}\n")
    write(tmp_path / "data.yaml", "names: [cat, dog]\ntrain: images\n")
    dataset = read_any(tmp_path)
    assert [name for name, _ in only(dataset)] == ["dog"]
    assert dict(dataset.notes) == {"box without an outline left out": 1}
    taken = read_any(tmp_path, FormatOptions(boxes=True))
    assert iou(only(taken)[0][1], box(24, 16, 36, 24)) == 1


# -- LabelMe ----------------------------------------------------------------------------------------------------------


def shape(label: str, kind: str, points: list[Any], **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def labelme(folder: Path, *shapes: dict[str, Any], **more: Any) -> Path:
    picture(folder / "a.png")
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageData": None,
               "imageHeight": HEIGHT, "imageWidth": WIDTH, **more}  # fmt: skip
    write(folder / "a.json", json.dumps(content))
    return folder


def test_labelme_shapes(tmp_path: Path) -> None:
    data = base64.b64encode(cv2.imencode(".png", np.ones((5, 7), np.uint8))[1].tobytes()).decode()
    labelme(
        tmp_path,
        shape("cat", "polygon", [[2, 2], [10, 2], [10, 8], [2, 8]], group_id=4),
        shape("cat", "polygon", [[20, 2], [30, 2], [30, 8], [20, 8]], group_id=4),
        shape("dog", "rectangle", [[50, 30], [40, 20]]),
        shape("dog", "mask", [[3, 20], [9, 24]], mask=data),
        shape("dog", "circle", [[30, 20], [30, 26]]),
        shape("dog", "point", [[1, 1]]),
    )
    dataset = read_any(tmp_path)
    objects = only(dataset)
    assert [name for name, _ in objects] == ["cat", "dog", "dog", "dog"]
    assert iou(objects[0][1], box(2, 2, 10, 8) | box(20, 2, 30, 8)) == 1
    assert iou(objects[1][1], box(40, 20, 50, 30)) == 1
    assert iou(objects[2][1], box(3, 20, 10, 25)) == 1
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    assert iou(objects[3][1], (x + 0.5 - 30) ** 2 + (y + 0.5 - 20) ** 2 <= 36) > 0.95
    assert dataset.notes["shape of type 'point' left out, which has no area"] == 1
    assert dataset.notes["circle taken as a mask of that shape"] == 1


@pytest.mark.parametrize(
    ("broken", "more", "message"),
    [
        (shape("cat", "polygon", [[2, 2], [10, None]]), {}, r"a.json: shape 0: points: expected numbers"),
        ({"shape_type": "polygon", "points": []}, {}, "shape 0: expected a label"),
        (shape("cat", "mask", [[0, 0], [5, 5]], mask="x"), {}, "shape 0: mask: expected a PNG in base64"),
        (shape("cat", "circle", [[0, 0]]), {}, "shape 0: points: expected two for a circle"),
        (shape("cat", "polygon", [[2, 2], [9, 2], [9, 9]]), {"imagePath": "b.png"}, "the picture 'b.png' is not in"),
        (shape("cat", "polygon", [[2, 2], [9, 2], [9, 9]]), {"imageWidth": 61}, "has 60 x 40 pixels, not 61 x"),
    ],
)
def test_labelme_errors(broken: dict[str, Any], more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_any(labelme(tmp_path, broken, **more))


# -- CVAT -------------------------------------------------------------------------------------------------------------


def cvat(folder: Path, shapes: str) -> Path:
    picture(folder / "images" / "a.png")
    write(
        folder / "annotations.xml",
        '<?xml version="1.0"?><annotations><meta><task><labels><label><name>cat</name></label><label><name>owl</name>'
        f'</label></labels></task></meta><image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
        "</annotations>",
    )
    return folder


def test_cvat_shapes(tmp_path: Path) -> None:
    dataset = read_any(cvat(tmp_path,
        '<polygon label="cat" points="2,2;10,2;10,8;2,8" group_id="1"/>'
        '<polygon label="cat" points="20,2;30,2;30,8;20,8" group_id="1"/>'
        '<mask label="cat" rle="1, 4, 1" left="4" top="30" width="3" height="2"/>'
        '<ellipse label="cat" cx="40" cy="20" rx="8" ry="5"/>'
        '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/><points label="cat" points="3,3"/><tag label="cat"/>'
    ))  # fmt: skip
    objects = only(dataset)
    assert dataset.names == ["cat", "owl"]
    assert len(objects) == 3
    assert iou(objects[0][1], box(2, 2, 10, 8) | box(20, 2, 30, 8)) == 1
    mask = box(4, 30, 7, 32)
    mask[30, 4] = mask[31, 6] = False
    assert iou(objects[1][1], mask) == 1
    assert objects[2][1].sum() == pytest.approx(np.pi * 40, rel=0.03)
    assert sum(dataset.notes.values()) == 4


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ('<polygon label="cat" points="2,2;x,2;10,8"/>', "polygon 0: points: expected numbers of pixels, got 'x'"),
        ('<polygon points="2,2;9,2;10,8"/>', "polygon 0: no label"),
        ('<mask label="cat" rle="1, 4" left="4" top="30" width="3" height="2"/>', "do not fill 3 x 2"),
        ('<mask label="cat" rle="1, 5" left="59" top="30" width="3" height="2"/>', "leaves the picture"),
    ],
)
def test_cvat_errors(shapes: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_any(cvat(tmp_path, shapes))


def test_entities_are_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    text = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><annotations><image name="&a;"/></annotations>'
    write(tmp_path / "annotations.xml", text)
    with pytest.raises(DatasetError, match="document types and entities are not read"):
        read_any(tmp_path)


# -- Pascal VOC and SBD -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["colors", "gray", "labelmap"])
def test_voc_masks(form: str, tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    write(tmp_path / "ImageSets" / "Segmentation" / "train.txt", "a\n")
    names = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nowl:10,20,30::\ncat:40,50,60::\n"
    if form == "labelmap":
        write(tmp_path / "labelmap.txt", names)
    first, second = box(2, 2, 20, 20), box(30, 5, 50, 30)
    first[8:12, 8:12] = False
    for folder, values in (("SegmentationObject", (1, 2)), ("SegmentationClass", (8, 15))):
        image = np.zeros((HEIGHT, WIDTH) if form == "gray" else (HEIGHT, WIDTH, 3), np.uint8)
        for mask, value in zip((first, second), values, strict=True):
            color = value if form == "gray" else voc_color(value)[::-1]
            if form == "labelmap" and folder == "SegmentationClass":
                color = (30, 20, 10) if value == 8 else (60, 50, 40)
            image[mask] = color
        image[33:35] = 255 if form == "gray" else (192, 224, 224)  # void
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), image)
    objects = only(read_any(tmp_path))
    assert len(objects) == 2
    found = ("owl", "cat") if form == "labelmap" else ("cat", "person")
    assert [iou(dict(objects)[name], mask) for name, mask in zip(found, (first, second), strict=True)] == [1, 1]


def test_voc_of_boxes_alone_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    write(tmp_path / "Annotations" / "a.xml",
          "<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin>"
          "<xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>")  # fmt: skip
    with pytest.raises(DatasetError, match="1 objects are boxes without masks"):
        read_any(tmp_path)
    assert iou(only(read_any(tmp_path, FormatOptions(boxes=True)))[0][1], box(2, 2, 9, 9)) == 1


def test_sbd(tmp_path: Path) -> None:
    scipy = pytest.importorskip("scipy.io", reason="SBD's files need scipy")
    picture(tmp_path / "img" / "a.jpg")
    (tmp_path / "inst").mkdir()
    segmentation = np.zeros((HEIGHT, WIDTH), np.uint8)
    segmentation[box(2, 2, 20, 20)], segmentation[box(30, 5, 50, 30)] = 1, 2
    truth = {"Segmentation": segmentation, "Categories": np.array([[8], [15]])}
    scipy.savemat(str(tmp_path / "inst" / "a.mat"), {"GTinst": truth})
    write(tmp_path / "val.txt", "a\n")
    dataset = read_any(tmp_path)
    assert list(dataset.splits) == ["val"]
    assert [(name, int(mask.sum())) for name, mask in only(dataset)] == [("cat", 324), ("person", 500)]
    (tmp_path / "inst" / "a.mat").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"a\.mat: expected GTinst"):
        read_any(tmp_path)


# -- Label Studio -----------------------------------------------------------------------------------------------------


def brush(mask: np.ndarray[Any, Any]) -> list[int]:
    """A brush mask as its format describes: RGBA bytes in runs, here of 8-bit counters."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}"
    for start in range(0, len(values), 256):
        part = values[start : start + 256]
        same = bool((part == part[0]).all())
        bits += f"{int(same)}{2:02b}{len(part) - 1:08b}"
        bits += f"{part[0]:08b}" if same else "".join(f"{value:08b}" for value in part)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def studio(folder: Path, *results: dict[str, Any], image: str = "/data/upload/1/0a1b2c3d-a.png") -> Path:
    picture(folder / "a.png")
    task = {"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)}]}
    return write(folder / "project.json", json.dumps([task])).parent


def result(kind: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": WIDTH, "original_height": HEIGHT, "value": {kind: ["cat"], **value}}


def test_label_studio(tmp_path: Path) -> None:
    mask = box(10, 10, 30, 30) & ~box(15, 15, 20, 20)
    dataset = read_any(studio(
        tmp_path,
        result("polygonlabels", points=[[10, 10], [50, 10], [50, 50], [10, 50]]),
        result("brushlabels", format="rle", rle=brush(mask)),
        result("rectanglelabels", x=0, y=0, width=10, height=10, rotation=0),
        {"type": "choices", "value": {"choices": ["good"]}},
    ))  # fmt: skip
    objects = only(dataset)
    assert [iou(a, b) for (_, a), b in zip(objects, (box(6, 4, 30, 20), mask), strict=True)] == [1, 1]
    assert sum(dataset.notes.values()) == 2


def test_label_studio_errors(tmp_path: Path) -> None:
    cut = brush(box(10, 10, 30, 30))[:40]
    with pytest.raises(DatasetError, match="task 0: result 0: rle: it ends early"):
        read_any(studio(tmp_path / "a", result("brushlabels", rle=cut)))
    with pytest.raises(DatasetError, match="has 60 x 40 pixels, not 60 x 41"):
        read_any(studio(tmp_path / "b", {**result("polygonlabels", points=[]), "original_height": 41}))
    with pytest.raises(DatasetError, match=r"the picture .* is not in"):
        read_any(studio(tmp_path / "c", result("polygonlabels", points=[]), image="/data/upload/1/other.png"))


# -- mask pictures ----------------------------------------------------------------------------------------------------


def ids(*masks: np.ndarray[Any, Any], dtype: Any = np.uint8, step: int = 1) -> np.ndarray[Any, Any]:
    image = np.zeros((HEIGHT, WIDTH), dtype)
    for number, mask in enumerate(masks, 1):
        image[mask] = number * step
    return image


@pytest.mark.parametrize("layout", ["ids", "16 bits", "class folders", "numbered", "folder", "bowl"])
def test_mask_pictures(layout: str, tmp_path: Path) -> None:
    first, second = box(2, 2, 20, 20), box(20, 2, 30, 20)
    whole = {"ids": ids(first, second), "16 bits": ids(first, second, dtype=np.uint16, step=1000)}
    one = [ids(mask, step=255) for mask in (first, second)]
    files: dict[str, np.ndarray[Any, Any]] = {
        "class folders": {"masks/cell/a.png": ids(first, second)},
        "numbered": {f"masks/a_{i}.png": mask for i, mask in enumerate(one)},
        "folder": {f"masks/a/x{i}.png": mask for i, mask in enumerate(one)},
        "bowl": {f"a/masks/x{i}.png": mask for i, mask in enumerate(one)},
    }.get(layout) or {"masks/a.png": whole[layout]}  # fmt: skip
    picture(tmp_path / ("a/images/a.png" if layout == "bowl" else "images/a.jpg"))
    for name, image in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    dataset = read_any(tmp_path, FormatOptions(class_name="nucleus"))
    objects = only(dataset)
    assert {name for name, _ in objects} == {"cell" if layout == "class folders" else "nucleus"}
    assert [iou(a, b) for (_, a), b in zip(objects, (first, second), strict=True)] == [1, 1]
    assert not dataset.notes


def test_masks_that_belong_to_no_picture_or_another_size(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "c.png"), ids(box(1, 1, 5, 5)))
    with pytest.raises(DatasetError, match=r"c\.png: there is no picture of this name"):
        read_any(tmp_path)
    (tmp_path / "masks" / "c.png").rename(tmp_path / "masks" / "a.png")
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.ones((3, 4), np.uint8))
    with pytest.raises(DatasetError, match=r"a\.png: 4 x 3, expected a mask picture of 60 x 40"):
        read_any(tmp_path)

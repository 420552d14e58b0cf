"""Runs in an environment of other tools: writes a COCO folder in their formats. ``SOURCE TARGET TOOL...``.

Each tool writes folders of its own into TARGET.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock


def datumaro(source: Path, target: Path) -> None:
    import datumaro

    for name in ("coco_instances", "cvat", "voc"):
        data = datumaro.Dataset.import_from(str(source), "coco_instances")
        if name == "voc":  # it has no polygons
            data.transform("polygons_to_masks")
            data.transform("merge_instance_segments")
        data.export(str(target / name), name, save_media=True)


def supervision(source: Path, target: Path) -> None:
    import supervision

    data = supervision.DetectionDataset.from_coco(str(source / "images"), str(instances_of(source)), force_masks=True)
    yolo, voc = target / "supervision_yolo", target / "supervision_voc"
    data.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    data.as_pascal_voc(str(voc / "images"), str(voc / "annotations"))


def ultralytics(source: Path, target: Path) -> None:
    """Its converter writes labels; names of classes are those of the coco.yaml that it ships."""
    import yaml
    from ultralytics.data.converter import convert_coco
    from ultralytics.utils import ROOT

    folder = target / "ultralytics_yolo"
    convert_coco(str(source / "annotations"), str(folder), use_segments=True, cls91to80=True)
    (folder / "images").rmdir()
    shutil.copytree(source / "images", folder / "images" / "default")
    names = yaml.safe_load((ROOT / "cfg" / "datasets" / "coco.yaml").read_text("utf-8"))["names"]
    (folder / "data.yaml").write_text(yaml.safe_dump({"train": "images/default", "names": names}))


def labelme(source: Path, target: Path) -> None:
    for name in ("PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets"):
        sys.modules[name] = mock.MagicMock()  # the windows; writing a file needs none
    from labelme import utils
    from labelme._label_file import write_label_file
    from pycocotools.coco import COCO

    folder = target / "labelme"
    shutil.copytree(source / "images", folder)
    coco = COCO(str(instances_of(source)))
    for image in coco.dataset["images"]:
        shapes = []
        for number, annotation in enumerate(coco.imgToAnns[image["id"]]):
            shape: dict[str, Any] = {"label": coco.cats[annotation["category_id"]]["name"], "flags": {}, "mask": None,
                                     "description": "", "group_id": None}  # fmt: skip
            if isinstance(annotation["segmentation"], dict):
                mask = coco.annToMask(annotation).astype(bool)
                ys, xs = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
                x0, y0, x1, y1 = (int(value) for value in (xs[0], ys[0], xs[-1], ys[-1]))
                coded = utils.img_arr_to_b64(mask[y0 : y1 + 1, x0 : x1 + 1])
                shapes.append({**shape, "shape_type": "mask", "points": [[x0, y0], [x1, y1]], "mask": coded})
                continue
            parts = annotation["segmentation"]
            for ring in parts:
                points = [list(pair) for pair in zip(ring[::2], ring[1::2], strict=True)]
                group = number if len(parts) > 1 else None
                shapes.append({**shape, "shape_type": "polygon", "points": points, "group_id": group})
        write_label_file(
            str((folder / image["file_name"]).with_suffix(".json")), shapes=shapes, image_path=image["file_name"],
            image_height=image["height"], image_width=image["width"],
        )  # fmt: skip


def label_studio(source: Path, target: Path) -> None:
    """It has no run lengths, so crowds are left out before; boxes are those of objects with outlines."""
    convert_coco_to_ls = importlib.import_module("label_studio_sdk.converter.imports.coco").convert_coco_to_ls

    folder = target / "label_studio"
    shutil.copytree(source / "images", folder / "images")
    content = json.loads(instances_of(source).read_text("utf-8"))
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    (folder / "coco").mkdir()
    (folder / "coco" / "instances.json").write_text(json.dumps(content))
    convert_coco_to_ls(str(folder / "coco" / "instances.json"), str(folder / "tasks.json"))
    shutil.rmtree(folder / "coco")


TOOLS = {tool.__name__: tool for tool in (datumaro, supervision, ultralytics, labelme, label_studio)}


def instances_of(source: Path) -> Path:
    (path,) = (source / "annotations").glob("*.json")
    return path


def main(source: Path, target: Path, tools: list[str]) -> None:
    for tool in tools:
        TOOLS[tool](source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

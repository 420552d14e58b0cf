"""Runs in an environment of datumaro and supervision: writes a COCO folder in their formats. ``SOURCE TARGET``."""

from __future__ import annotations

import sys
from pathlib import Path


def main(source: Path, target: Path) -> None:
    import datumaro
    import supervision

    (annotations,) = (source / "annotations").glob("*.json")
    for name in ("coco_instances", "cvat", "voc"):
        data = datumaro.Dataset.import_from(str(source), "coco_instances")
        if name == "voc":  # it has no polygons
            data.transform("polygons_to_masks")
            data.transform("merge_instance_segments")
        data.export(str(target / name), name, save_media=True)
    data = supervision.DetectionDataset.from_coco(str(source / "images"), str(annotations), force_masks=True)
    yolo, voc = target / "supervision_yolo", target / "supervision_voc"
    data.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    data.as_pascal_voc(str(voc / "images"), str(voc / "annotations"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

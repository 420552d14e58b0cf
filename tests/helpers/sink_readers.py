"""Runs in an environment of other tools: reads what our sinks wrote. ``TOOL FOLDER RESULT.npz``.

For masks, the result has ``labels`` and ``masks`` [n, H, W] of the only picture; for tracks, scores by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np


def supervision_yolo(folder: Path) -> dict[str, Any]:
    import supervision

    data = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "yolo"), str(folder / "data.yaml"), force_masks=True
    )
    ((_, _, found),) = list(data)
    return {"labels": found.class_id, "masks": found.mask}


def ultralytics_yolo(folder: Path) -> dict[str, Any]:
    from ultralytics.data.utils import polygon2mask, verify_image_label

    _, rows, shape, segments, _, missing, _, _, corrupt, message = verify_image_label(
        (str(folder / "images/a.png"), str(folder / "yolo/a.txt"), "", False, 2, 0, 0, False)
    )
    assert (missing, corrupt, message) == (0, 0, "")
    size = np.array(shape[::-1])
    return {"labels": rows[:, 0], "masks": [polygon2mask(shape, [(one * size).ravel()]) for one in segments]}


def labelme_file(folder: Path) -> dict[str, Any]:
    for name in ("PyQt5", "PyQt5.QtCore", "PyQt5.QtGui", "PyQt5.QtWidgets"):
        sys.modules[name] = mock.MagicMock()  # the windows; reading a file needs none
    from labelme import LabelFile

    file = LabelFile(str(folder / "labelme/clip/000000.json"))
    image = cv2.imdecode(np.frombuffer(file.image_data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    masks = []
    for shape in file.shapes:
        assert shape["shape_type"] == "mask"
        (x1, y1), (x2, y2) = np.array(shape["points"], int)
        masks.append(np.zeros(image.shape[:2], np.bool_))
        masks[-1][y1 : y2 + 1, x1 : x2 + 1] = shape["mask"]
    labels = [{"cat": 0, "traffic light": 1}[shape["label"]] for shape in file.shapes]
    return {"labels": labels, "masks": masks, "groups": [shape["group_id"] or 0 for shape in file.shapes]}


def trackeval_mot(folder: Path) -> dict[str, Any]:
    import trackeval

    data = trackeval.datasets.MotChallenge2DBox(
        {
            "GT_FOLDER": str(folder / "truth"), "TRACKERS_FOLDER": str(folder / "trackers"), "BENCHMARK": "MOT15",
            "SKIP_SPLIT_FOL": True, "SEQ_INFO": {"clip": 3}, "DO_PREPROC": False, "TRACKER_SUB_FOLDER": "",
            "PRINT_CONFIG": False,
        }
    )  # fmt: skip
    ready = data.get_preprocessed_seq_data(data.get_raw_seq_data("mot", "clip"), "pedestrian")
    quiet = {"PRINT_CONFIG": False}
    clear = trackeval.metrics.CLEAR(quiet).eval_sequence(ready)
    return {
        "HOTA": trackeval.metrics.HOTA().eval_sequence(ready)["HOTA"].mean(),
        "IDF1": trackeval.metrics.Identity(quiet).eval_sequence(ready)["IDF1"],
        "matched": clear["CLR_TP"],
        "wrong": clear["CLR_FP"] + clear["CLR_FN"] + clear["IDSW"],
    }


def trackeval_ytvis(folder: Path) -> dict[str, Any]:
    import trackeval

    data = trackeval.datasets.YouTubeVIS(
        {
            "GT_FOLDER": f"{folder}/truth/", "TRACKERS_FOLDER": f"{folder}/", "SPLIT_TO_EVAL": "val",
            "TRACKERS_TO_EVAL": ["ours"], "TRACKER_SUB_FOLDER": "", "PRINT_CONFIG": False,
        }
    )  # fmt: skip
    result = {}
    raw = data.get_raw_seq_data("ours", "clip")
    for name in ("cat", "traffic light"):
        ready = data.get_preprocessed_seq_data(raw, name)
        metric = trackeval.metrics.TrackMAP({"PRINT_CONFIG": False, "USE_AREA_RANGES": False, "USE_TIME_RANGES": False})
        combined = metric.combine_sequences({"clip": metric.eval_sequence(ready)})
        result[name] = combined["AP_all"].mean()
    return result


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    reader.__name__: reader
    for reader in (supervision_yolo, ultralytics_yolo, labelme_file, trackeval_mot, trackeval_ytvis)
}
MISSING = 3

if __name__ == "__main__":
    try:
        content = READERS[sys.argv[1]](Path(sys.argv[2]))
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    np.savez(sys.argv[3], **content)

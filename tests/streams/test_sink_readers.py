"""What sinks write, read by the tools it is for, where ``YOLACT_READERS`` names a Python that has them.

The tools are supervision, Ultralytics, LabelMe and TrackEval. They need an environment of their own, since some bring
another OpenCV. pandas and pycocotools read in ``test_sinks.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sink_items import HEIGHT, NAMES, WIDTH, found, frames, image, picture, write
from sink_readers import MISSING

from yolact_deploy.datasets.shape_videos import _runs

SCRIPT = Path(__file__).parents[1] / "helpers" / "sink_readers.py"


def read(tool: str, folder: Path) -> dict[str, Any]:
    python = os.environ.get("YOLACT_READERS")
    if not python:
        pytest.skip("YOLACT_READERS names no Python with supervision, ultralytics, labelme and trackeval")
    result = folder / "result.npz"
    done = subprocess.run([python, SCRIPT, tool, folder, result], capture_output=True, text=True, check=False)
    if done.returncode == MISSING:
        pytest.skip(f"YOLACT_READERS: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(result) as content:
        return {name: content[name] for name in content.files}


def overlap(first: Any, second: Any) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("tool", ["supervision_yolo", "ultralytics_yolo"])
def test_yolo(tool: str, tmp_path: Path) -> None:
    write("yolo", tmp_path, [picture()])
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image())
    (tmp_path / "data.yaml").write_text(json.dumps({"names": dict(enumerate(NAMES)), "nc": len(NAMES)}))
    content = read(tool, tmp_path)
    assert content["labels"].tolist() == [0, 1]
    for mask, expected in zip(content["masks"].astype(bool), found().masks, strict=False):
        assert overlap(mask, expected) > 0.97


def test_labelme(tmp_path: Path) -> None:
    write("labelme", tmp_path, frames(1))
    content = read("labelme_file", tmp_path)
    assert content["labels"].tolist() == [0, 1]
    assert content["groups"].tolist() == [1, 0]
    np.testing.assert_array_equal(content["masks"], found().masks[:2])


def test_mot(tmp_path: Path) -> None:
    """Against a truth of its own boxes, where one object is also in the first frame, in which it had no id yet."""
    write("mot", tmp_path / "trackers", frames(3))
    truth = tmp_path / "truth" / "clip" / "gt"
    truth.mkdir(parents=True)
    boxes = [(number, box) for number, box in enumerate(((10, 20, 70, 60), (100, 60, 15, 20)), 1)]
    rows = [f"{frame},{number},{x},{y},{w},{h},1,1,1" for frame in (1, 2, 3) for number, (x, y, w, h) in boxes]
    (truth / "gt.txt").write_text("\n".join(rows) + "\n")
    content = read("trackeval_mot", tmp_path)
    assert (int(content["matched"]), int(content["wrong"])) == (5, 1)
    assert content["IDF1"] == pytest.approx(10 / 11)
    # Of six objects five were detected; the second one has its id in two of three frames.
    assert content["HOTA"] == pytest.approx((5 / 6 * (3 * 1 + 2 * 2 / 3) / 5) ** 0.5)


def test_youtube_vis(tmp_path: Path) -> None:
    write("ytvis", tmp_path / "youtube_vis_val", frames(3))
    results = tmp_path / "youtube_vis_val" / "ours"
    results.mkdir()
    (tmp_path / "youtube_vis_val" / "ytvis" / "results.json").rename(results / "results.json")
    videos = json.loads((tmp_path / "youtube_vis_val" / "ytvis" / "videos.json").read_text())
    annotations = []
    for number, (category, mask) in enumerate(zip((5, 9), found().masks, strict=False), 1):
        hidden = [] if number == 1 else [0]
        rle = {"size": [HEIGHT, WIDTH], "counts": _runs(mask)}
        annotations.append(
            {"id": number, "video_id": 1, "category_id": category, "iscrowd": 0, "height": HEIGHT, "width": WIDTH,
             "segmentations": [None if i in hidden else rle for i in range(3)],
             "areas": [None if i in hidden else int(mask.sum()) for i in range(3)]}
        )  # fmt: skip
    categories = [{"id": 5, "name": NAMES[0]}, {"id": 9, "name": NAMES[1]}]
    truth = tmp_path / "truth" / "youtube_vis_val"
    truth.mkdir(parents=True)
    (truth / "truth.json").write_text(json.dumps({**videos, "categories": categories, "annotations": annotations}))
    content = read("trackeval_ytvis", tmp_path)
    assert {name: float(value) for name, value in content.items()} == pytest.approx({"cat": 1, "traffic light": 1})

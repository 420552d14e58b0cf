"""Generated videos: the same on each call, with ids that stay, in the format of YouTube-VIS."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_deploy.cli import main as cli
from yolact_deploy.datasets.shape_videos import render_video
from yolact_deploy.errors import DatasetError


def test_objects_keep_their_ids_and_looks() -> None:
    frames = list(render_video(1, frames=12))
    for first, second in zip(frames, render_video(1, frames=12), strict=True):
        np.testing.assert_array_equal(first.image, second.image)
    labels = {shape.number: shape.label for frame in frames for shape in frame.shapes}
    assert len(labels) >= 3
    for frame in frames:
        assert all(labels[shape.number] == shape.label for shape in frame.shapes)
        assert max(np.sum([shape.mask for shape in frame.shapes], axis=0).ravel()) == 1, "masks do not overlap"
    assert (frames[0].image != frames[-1].image).mean() > 0.5
    with pytest.raises(DatasetError, match="at least 64 x 64"):
        next(render_video(0, width=32))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_written_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    arguments = ["data", "shapes", "-o", str(tmp_path), "--videos", "2", "--frames", "5", "--size", "160x120", "--json"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 2
    content = json.loads((tmp_path / "instances.json").read_text())
    assert [len(video["file_names"]) for video in content["videos"]] == [5, 5]
    image = cv2.imread(str(tmp_path / "JPEGImages" / content["videos"][1]["file_names"][4]))
    assert image is not None
    assert image.shape == (120, 160, 3)
    truth = list(render_video(1, frames=5, height=120, width=160))[4].shapes
    of_video = [one for one in content["annotations"] if one["video_id"] == 2]
    seen = [one for one in of_video if one["segmentations"][4] is not None]
    assert len(seen) == len(truth)
    for shape in truth:
        areas = [one["areas"][4] for one in seen if one["category_id"] == shape.label + 1]
        assert int(shape.mask.sum()) in areas
    rle = seen[0]["segmentations"][4]
    decoded = masks.decode(masks.frPyObjects(rle, *rle["size"]))
    assert int(decoded.sum()) == seen[0]["areas"][4]
    assert cli.main(["data", "shapes", "-o", str(tmp_path), "--videos", "0"]) == 2

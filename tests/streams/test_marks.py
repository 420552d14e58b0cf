"""Marks in written files: found again, ignored by readers, and in no file of others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import write_json
from yolact_deploy.streams.marks import JSON_MARK, is_marked, mark_picture
from yolact_deploy.streams.video import probe_video
from yolact_deploy.streams.writers import VideoWriter

IMAGE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures(suffix: str, tmp_path: Path) -> None:
    data = cv2.imencode(suffix, IMAGE)[1].tobytes()
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "marked").write_bytes(mark_picture(data))
    assert not is_marked(tmp_path / "plain")
    assert is_marked(tmp_path / "marked")
    plain, marked = (cv2.imread(str(tmp_path / name)) for name in ("plain", "marked"))
    np.testing.assert_array_equal(plain, marked)


def test_jpeg_without_jfif_header(tmp_path: Path) -> None:
    data = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    bare = data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]
    marked = mark_picture(bare)
    (tmp_path / "a.jpg").write_bytes(marked)
    assert is_marked(tmp_path / "a.jpg")
    assert cv2.imdecode(np.frombuffer(marked, np.uint8), cv2.IMREAD_COLOR) is not None


def test_videos(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 10, (40, 30)) as writer:
        for _ in range(3):
            writer.write(IMAGE)
    assert is_marked(tmp_path / "a.mp4")
    assert probe_video(tmp_path / "a.mp4") == (40, 30, 10.0, 3)


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {**JSON_MARK, "detections": []})
    assert is_marked(tmp_path / "a.json")
    write_json(tmp_path / "b.json", {"imagePath": "yolact-deploy/a.png", "shapes": []})
    assert not is_marked(tmp_path / "b.json")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"")])
def test_no_file_and_empty_ones_are_not_marked(make: object, tmp_path: Path) -> None:
    make(tmp_path / "a")  # type: ignore[operator]
    assert not is_marked(tmp_path / "a")

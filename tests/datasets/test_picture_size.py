"""Sizes from headers are those of the decoded pictures."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolact_deploy.datasets.picture_size import picture_size, wrong_sizes
from yolact_deploy.preprocess import read_image

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def exif(orientation: int, order: str = "<") -> bytes:
    """The APP1 segment of a JPEG file."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(f"{order}HHHII", 2, 0x010F, 2, 1, 0) + struct.pack(
        f"{order}HHIHH", 0x0112, 3, 1, orientation, 0
    )
    body = b"Exif\0\0" + mark + struct.pack(f"{order}I", 8) + entries + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / f"x{suffix}"), PICTURE)
    assert picture_size(tmp_path / f"x{suffix}") == (48, 64)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs(tmp_path: Path, orientation: int, order: str) -> None:
    data = cv2.imencode(".jpg", PICTURE)[1].tobytes()
    path = tmp_path / "x.jpg"
    path.write_bytes(data[:2] + exif(orientation, order) + data[2:])
    assert picture_size(path) == read_image(path).shape[:2] == ((64, 48) if orientation > 4 else (48, 64))


@pytest.mark.parametrize("options", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2], []])
@pytest.mark.parametrize("before", [b"", b"\xff\xe2" + struct.pack(">H", 60_000) + bytes(59_998)])
def test_kinds_of_jpeg(tmp_path: Path, options: list[int], before: bytes) -> None:
    data = cv2.imencode(".jpg", PICTURE, options)[1].tobytes()
    (tmp_path / "x.jpg").write_bytes(data[:2] + before + data[2:])
    assert picture_size(tmp_path / "x.jpg") == (48, 64)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\x08Exif\0\0", bytes(99)]
)
def test_what_is_no_picture_has_no_size(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.png").write_bytes(data)
    assert picture_size(tmp_path / "x.png") is None
    assert picture_size(tmp_path / "absent.png") is None


def test_wrong_sizes_are_those_that_differ(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), PICTURE[: 10 + i])
    expected = [(10 + i if i % 2 else 64, 64) for i in range(30)]
    wrong = list(wrong_sizes(zip(paths, expected, strict=True)))
    assert wrong == [None if i % 2 else (10 + i, 64) for i in range(30)]

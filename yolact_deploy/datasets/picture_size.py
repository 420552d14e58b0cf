"""The size of a picture from the first bytes of its file: tens of microseconds where decoding takes milliseconds."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import JPEG_FRAMES, jpeg_segments, read_image

_THREADS = 4
#: so many wrong sizes are confirmed by decoding; after that, the headers are trusted
_CONFIRMED = 8
_ORIENTATION = 0x0112

Size = tuple[int, int]


def picture_size(path: Path) -> Size | None:
    """Height and width of a picture as `read_image` gives them, upright; None if it cannot be read.

    PNG and JPEG are read from their headers; others, and PNG files that may be turned, are decoded.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if head.startswith(b"\x89PNG\r\n\x1a\n") and b"eXIf" not in head:
                width, height = struct.unpack(">II", head[16:24])
                return height, width
            if head.startswith(b"\xff\xd8") and (size := _jpeg_size(file)):
                return size
    except (OSError, ValueError, struct.error):
        return None
    return _decoded_size(path)


def wrong_sizes(pictures: Iterable[tuple[Path, Size]]) -> Iterator[Size | None]:
    """For each picture and its expected (height, width), the actual size where that is another, else None."""
    pictures, confirmed = list(pictures), 0
    with ThreadPoolExecutor(_THREADS) as pool:
        actual = pool.map(lambda picture: picture_size(picture[0]), pictures)
        for (path, expected), size in zip(pictures, actual, strict=True):
            if size not in (None, expected) and confirmed < _CONFIRMED:
                size = _decoded_size(path)
                confirmed += size not in (None, expected)
            yield None if size == expected else size


def _decoded_size(path: Path) -> Size | None:
    try:
        height, width = read_image(path).shape[:2]
    except InputError:
        return None
    return height, width


def _jpeg_size(file: io.BufferedIOBase) -> Size | None:
    """From the frame header; turned if the EXIF data before it says so."""
    turned = False
    for code, body in jpeg_segments(file):
        if code in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", body, 1)
            return (width, height) if turned else (height, width)
        turned = turned or (code == 0xE1 and _is_turned(body))
    return None


def _is_turned(segment: bytes) -> bool:
    """Whether EXIF data exchanges height and width: orientations 5 to 8."""
    if not segment.startswith(b"Exif\0\0"):
        return False
    exif = segment[6:]
    order = "<" if exif.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    entries = (struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i) for i in range(count))
    return any(tag == _ORIENTATION and 5 <= value <= 8 for tag, _, _, value in entries)

"""Marks in the files that ``predict`` writes: by them it knows its own files, and overwrites no others."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_NAME = b"yolact-deploy"
_PNG_TEXT = b"tEXtSoftware\0" + _NAME
_JPEG_COMMENT = b"\xff\xfe" + struct.pack(">H", 2 + len(_NAME)) + _NAME
#: the first item of the JSON objects
JSON_MARK = {"written_by": _NAME.decode()}
#: a box at the end of an MP4 file that players skip
MP4_MARK = struct.pack(">I", 8 + len(_NAME)) + b"free" + _NAME
#: an element at the end of a Matroska file that players skip
MKV_MARK = b"\xec" + bytes([0x80 | len(_NAME)]) + _NAME
#: by the suffix of the file
VIDEO_MARKS = {**dict.fromkeys((".mp4", ".mov", ".m4v"), MP4_MARK), ".mkv": MKV_MARK}
_MARKS = (_PNG_TEXT, _JPEG_COMMENT, MP4_MARK, MKV_MARK, b'"written_by": "%s"' % _NAME)
_ENDS = 512


def mark_picture(data: bytes) -> bytes:
    """A PNG or JPEG file with a mark that viewers ignore."""
    if data.startswith(b"\x89PNG"):
        chunk = struct.pack(">I", len(_PNG_TEXT) - 4) + _PNG_TEXT + struct.pack(">I", zlib.crc32(_PNG_TEXT))
        return data[:33] + chunk + data[33:]  # after the header
    # JFIF comes first.
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:start] + _JPEG_COMMENT + data[start:]


def is_marked(path: Path) -> bool:
    """Whether a file is one that ``predict`` has written."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(_ENDS)
            file.seek(max(file.seek(0, 2) - _ENDS, 0))
            return any(mark in start or mark in end for end in (file.read(),) for mark in _MARKS)
    except OSError:
        return False

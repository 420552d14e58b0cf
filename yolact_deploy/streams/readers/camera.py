"""Cameras of this computer, by number or as ``/dev/video*``, through OpenCV."""

from __future__ import annotations

import re
from pathlib import Path

import cv2

from yolact_deploy.errors import InputError
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.timed_frames import Reader, ReadOptions
from yolact_deploy.untrusted import shown

#: longer numbers are names of files
_CAMERA_DIGITS = 10
_DEVICE = re.compile(r"/dev/video(\d{1,4})")


def is_camera(source: object) -> bool:
    """True for a camera: an int, digits that are not the name of a file, or ``/dev/video0`` and the like."""
    if isinstance(source, str):
        if _DEVICE.fullmatch(source):
            return True
        return source.isdecimal() and len(source) < _CAMERA_DIGITS and not Path(source).exists()
    return isinstance(source, int)


def open_camera(text: str, options: ReadOptions) -> Reader:
    """Open a camera by its number.

    Raises:
        InputError: there is no such camera, or it cannot be used.
    """
    match = _DEVICE.fullmatch(text)
    number = int(match[1]) if match else int(text)
    if not 0 <= number < 1 << 31:
        raise InputError(f"there is no camera {shown(number)}: the first one has the number 0")
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(
            f"cannot open camera {number}: check that it is connected, that no other program uses it, and that you may "
            f"read /dev/video{number}"
        )
    return OpenCvReader(capture, f"camera {number}", live=True)

"""A video file, through PyAV if it is installed, else through OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2

from yolact_deploy.errors import InputError
from yolact_deploy.streams.readers.av_reader import AvReader, has_av
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.timed_frames import Reader, ReadOptions


def is_video_file(text: str) -> bool:
    """Whatever no other kind takes is the name of a file."""
    return True


def open_video(text: str, options: ReadOptions) -> Reader:
    """Open a file.

    Raises:
        InputError: no such file, a folder, or not a video that can be decoded.
    """
    path = Path(text)
    if not path.exists():
        raise InputError(f"no such video: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a video file")
    if (options.decoder or ("av" if has_av() else "opencv")) == "av":
        return AvReader(str(path), str(path), options)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(f"cannot read video {path}: damaged, incomplete, or a format that OpenCV cannot decode")
    return OpenCvReader(capture, str(path), start=options.start)

"""A GStreamer pipeline, ``gst:... ! appsink``, where OpenCV is built with GStreamer, as NVIDIA's for a Jetson is."""

from __future__ import annotations

import re

import cv2

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.timed_frames import Reader, ReadOptions

PREFIX = "gst:"


def is_pipeline(text: str) -> bool:
    """Whether this is a pipeline, as ``gst:videotestsrc ! videoconvert ! video/x-raw,format=BGR ! appsink``."""
    return text.startswith(PREFIX)


def open_pipeline(text: str, options: ReadOptions) -> Reader:
    """Start a pipeline.

    Raises:
        BackendError: OpenCV is built without GStreamer, as that of PyPI is.
        InputError: the pipeline does not start.
    """
    pipeline = text.removeprefix(PREFIX).strip()
    if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        raise BackendError(
            f"{text}: this OpenCV is built without GStreamer, like all of PyPI. Use that of JetPack or one built from "
            "source, or name the camera's rtsp:// address"
        )
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise InputError(f"{text}: GStreamer cannot start this pipeline; try it with gst-launch-1.0")
    return OpenCvReader(capture, text, live=True)

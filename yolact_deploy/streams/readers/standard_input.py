"""Standard input, ``-``: any container that can be read without seeking, MJPEG, or raw BGR frames of a given size."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_pixels
from yolact_deploy.streams.readers.av_reader import AvReader
from yolact_deploy.streams.timed_frames import DEFAULT_FPS, Reader, ReadOptions, StreamCounts, TimedFrame, VideoInfo


def is_standard_input(text: str) -> bool:
    """Whether this is ``-``."""
    return text == "-"


def open_standard_input(text: str, options: ReadOptions) -> Reader:
    """Read standard input.

    Raises:
        InputError: a terminal, or nothing that can be decoded.
        MissingDependencyError: PyAV is not installed, and the frames are not raw.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("- reads a video from standard input, which is a terminal: pipe a video into this command")
    if options.raw_size is not None:
        return RawReader(sys.stdin.buffer, options.raw_size, options.start)
    try:
        return AvReader(sys.stdin.buffer, "standard input", options)
    except InputError as error:
        raise InputError(
            f"{error}. An MP4 with its index at the end cannot be piped; raw BGR frames require --raw-size WxH"
        ) from error


class RawReader(Reader):
    """Raw BGR frames, one after the other, at 30 frames per second."""

    def __init__(self, file: object, size: tuple[int, int], start: float) -> None:
        self.name, self.counts = "standard input", StreamCounts()
        width, height = size
        check_pixels(self.name, (height, width))
        self.info = VideoInfo(width, height, DEFAULT_FPS, None)
        self._file, self._start = file, start

    def frames(self) -> Iterator[TimedFrame]:
        width, height = self.info[:2]
        size, index = width * height * 3, 0
        while data := self._file.read(size):  # type: ignore[attr-defined]  # a binary file
            if len(data) < size:
                self.counts.damaged += 1
                break
            seconds, index = index / DEFAULT_FPS, index + 1
            if seconds >= self._start - 1e-6:
                self.counts.frames += 1
                yield TimedFrame(np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3), seconds)
        if not self.counts.frames:
            raise InputError(f"standard input ended before the first raw frame of {width} x {height}: {size} bytes")

"""Videos, cameras and pipelines through OpenCV: the fallback for videos where PyAV is not installed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_pixels
from yolact_deploy.streams.timed_frames import DEFAULT_FPS, Reader, StreamCounts, TimedFrame, VideoInfo

_log = logging.getLogger(__name__)


class OpenCvReader(Reader):
    """What a ``cv2.VideoCapture`` gives.

    Args:
        capture: opened; this reader releases it
        live: frames have the time of the clock, and their number is not known
        start: seconds to skip

    Raises:
        InputError: frames larger than agreed.
    """

    def __init__(self, capture: Any, name: str, *, live: bool = False, start: float = 0.0) -> None:
        import cv2

        self.name, self.live, self.counts = name, live, StreamCounts()
        self._capture, self._start, self._cv2 = capture, start, cv2
        if live:  # its frames say more than its properties
            self.info = VideoInfo(0, 0, DEFAULT_FPS, None)
            return
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.info = VideoInfo(
            int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
            int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
            fps if 0 < fps < 1000 else DEFAULT_FPS,
            int(frames) if 0 < frames < 1e9 else None,
        )
        check_pixels(name, (self.info.height, self.info.width))

    def frames(self) -> Iterator[TimedFrame]:
        count, seconds, begin = 0, 0.0, 0.0
        try:
            while True:
                ok, frame = self._capture.read()
                if not ok:
                    break
                now = time.monotonic() if self.live else self._capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1e3
                if count == 0:
                    begin, seconds = (now, 0.0) if self.live else (0.0, now if now > 0 else 0.0)
                else:  # a stream without times counts frames
                    seconds = now - begin if now - begin > seconds else seconds + 1 / self.info.fps
                count += 1
                if seconds < self._start - 1e-6:
                    continue
                self.counts.frames += 1
                yield TimedFrame(frame, seconds)
        finally:
            self._capture.release()
        expected = self.info.frames
        if self.counts.frames == 0:
            late = f" after {self._start:g} s" if count else ""
            raise InputError(f"{self.name} has no frame that can be decoded{late}: it is damaged or empty")
        # OpenCV does not distinguish the end from an error, and headers of intact files are off by a few frames.
        if expected is not None and count < 0.9 * expected:
            _log.warning(
                "%s ended after %d of %d frames: the file is damaged or incomplete", self.name, count, expected
            )

    def close(self) -> None:
        self._capture.release()

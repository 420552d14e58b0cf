"""Addresses: RTSP, HTTP (MJPEG, HLS, files, single pictures) and FFmpeg's other protocols, reconnected if they fail.

A live source that ends has failed: an RTSP server that is killed ends the stream without an error.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator

import cv2

from yolact_deploy.errors import InputError
from yolact_deploy.streams.readers.av_reader import AvReader, has_av
from yolact_deploy.streams.readers.opencv_reader import OpenCvReader
from yolact_deploy.streams.timed_frames import Reader, ReadOptions, StreamCounts, TimedFrame, without_password

_log = logging.getLogger(__name__)

PROTOCOLS = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt")
_ADDRESS = re.compile(rf"(?i)({'|'.join(PROTOCOLS)})://\S+")
#: seconds before the first attempt to reconnect, doubled for each further one, and the longest
_BACK_OFF, _LONGEST_BACK_OFF = 0.25, 8.0


def is_address(text: str) -> bool:
    """Whether this is the address of a stream, such as ``rtsp://camera/1``."""
    return _ADDRESS.fullmatch(text) is not None


def open_address(text: str, options: ReadOptions) -> Reader:
    """Connect to an address.

    Raises:
        InputError: nobody answers, what answers is no video, or ``start`` for a live source.
    """
    reader = _connect(text, options)
    if not getattr(reader, "endless", reader.live):
        return reader  # a video or a picture on a server, which ends
    if options.start:
        reader.close()
        raise InputError(f"{reader.name} is live: it cannot start {options.start:g} s later. Leave --start out")
    return LiveReader(text, options, reader)


def _connect(text: str, options: ReadOptions) -> Reader:
    name = without_password(text)
    if (options.decoder or ("av" if has_av() else "opencv")) == "av":
        ffmpeg = {"rtsp_transport": "tcp"} if text.lower().startswith("rtsp") else {}
        return AvReader(text, name, options, network=True, ffmpeg=ffmpeg)
    limit = int(options.timeout * 1e3)
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    capture = cv2.VideoCapture(text, cv2.CAP_FFMPEG, parameters)
    if not capture.isOpened():
        raise InputError(
            f"cannot connect to {name}: no video that OpenCV can read came within {options.timeout:g} s. Check the "
            "address, the network and that the source runs; 'yolact-deploy[video]' reads more kinds of streams"
        )
    return OpenCvReader(capture, name, live=not 0 < capture.get(cv2.CAP_PROP_FRAME_COUNT) < 1e9)


class LiveReader(Reader):
    """A live address that is connected again after a failure, until no frame has come for ``options.timeout``."""

    live = True

    def __init__(self, text: str, options: ReadOptions, first: Reader) -> None:
        self.name, self.info, self.counts = first.name, first.info, StreamCounts()
        self._text, self._options = text, options
        self._reader: Reader | None = first
        self._closed = threading.Event()

    def frames(self) -> Iterator[TimedFrame]:
        begin = last = time.monotonic()
        wait, shown = _BACK_OFF, 0.0
        while not self._closed.is_set():
            failure: BaseException | None = None
            try:
                for frame in self._read():
                    last, wait = time.monotonic(), _BACK_OFF
                    # Each connection starts to count at 0, so all have the time of the clock.
                    shown = max(last - begin, shown)
                    self.counts.frames += 1
                    yield TimedFrame(frame.image, shown)
            except InputError as error:
                failure = error
            if self._closed.is_set():
                return
            silent = time.monotonic() - last
            if silent + wait > self._options.timeout:
                raise InputError(
                    f"{self.name} has sent no frame for {silent:.1f} s, after {self.counts.frames} frames and "
                    f"{self.counts.reconnects} reconnections ({failure or 'it ended the stream'}); --timeout sets the "
                    "limit"
                ) from failure
            _log.warning("%s: %s; connecting again", self.name, failure or "the stream ended")
            self._closed.wait(wait)
            wait = min(2 * wait, _LONGEST_BACK_OFF)

    def _read(self) -> Iterator[TimedFrame]:
        reader, self._reader = self._reader, None
        if reader is None:
            reader = _connect(self._text, self._options)
            self.counts.reconnects += 1
        try:
            with contextlib.closing(reader.frames()) as frames:  # type: ignore[type-var]  # generators can be closed
                yield from frames
        finally:
            self.counts.damaged += reader.counts.damaged
            reader.close()

    def interrupt(self) -> None:
        self._closed.set()

    def close(self) -> None:
        self._closed.set()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

"""Videos through PyAV: FFmpeg's decoders with rotation, variable frame rates and counts of what is damaged.

Frames become BGR arrays in the thread that decodes: converting the same frame in two threads can hang PyAV.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.preprocess import check_pixels
from yolact_deploy.streams.timed_frames import DEFAULT_FPS, Reader, ReadOptions, StreamCounts, TimedFrame, VideoInfo

_log = logging.getLogger(__name__)

#: what PyAV raises besides its own errors, which are also OSError or ValueError
_ERRORS = (OSError, ValueError, EOFError)


def has_av() -> bool:
    """Whether PyAV is installed and loads."""
    try:
        import_optional("av", "video", "Reading videos")
    except ImportError:
        return False
    return True


class AvReader(Reader):
    """A video file, an address or an open binary file.

    Args:
        target: a path, an address or a binary file object
        name: for messages
        options: ``start`` is sought, the rest is the caller's
        network: limit the time of opening and of each read
        ffmpeg: options for FFmpeg's demuxer

    Raises:
        InputError: it cannot be opened, or has no video.
    """

    def __init__(
        self,
        target: Any,
        name: str,
        options: ReadOptions,
        *,
        network: bool = False,
        ffmpeg: dict[str, str] | None = None,
        form: str | None = None,
    ) -> None:
        self._av = av = import_optional("av", "video", "Reading videos with PyAV")
        self.name, self.counts = name, StreamCounts()
        try:
            self._container = av.open(
                target,
                format=form,
                options=ffmpeg or {},
                timeout=(options.timeout, options.timeout) if network else None,
                metadata_errors="replace",
            )
        except (*_ERRORS, av.error.FFmpegError) as error:
            raise InputError(_cannot_open(name, error, network)) from error
        if not self._container.streams.video:
            kinds = sorted({stream.type for stream in self._container.streams})
            self._container.close()
            raise InputError(f"{name} has no video, only {', '.join(kinds) or 'data that cannot be decoded'}")
        self._stream = self._container.streams.video[0]
        # Several frames at once delay the first one by five packets, which a live source should not wait for.
        self._stream.thread_type = "SLICE" if network else "AUTO"
        self._check_size()
        length = self._container.duration
        # A picture has no length either; formats of pictures end in _pipe.
        is_picture = self._container.format.name.endswith("_pipe") or self._container.format.name == "image2"
        self.endless = network and not is_picture and not (length is not None and length > 0)
        self._start = options.start
        self._stamp = form == "mpjpeg" or self._container.format.name == "mpjpeg"
        self.info = self._header()

    def _check_size(self) -> None:
        context = self._stream.codec_context
        try:
            check_pixels(self.name, (context.height, context.width))
        except InputError:
            self.close()
            raise

    def _header(self) -> VideoInfo:
        stream, context = self._stream, self._stream.codec_context
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate and 0 < rate < 1000 else DEFAULT_FPS
        return VideoInfo(context.width, context.height, fps, stream.frames or None)

    @property
    def container_name(self) -> str:
        """FFmpeg's name of the format."""
        return str(self._container.format.name)

    def frames(self) -> Iterator[TimedFrame]:
        counts, clock = self.counts, _Clock(self._stream, self.info.fps, arrival=self._stamp)
        try:
            if self._start:
                self._seek()
            convert = _Converter(self._av)
            for frame in self._decoded():
                seconds = clock(frame)
                if seconds < self._start - 1e-6:
                    continue
                counts.frames += 1
                counts.damaged += bool(frame.is_corrupt)
                yield TimedFrame(convert(frame), seconds)
        finally:
            self.close()
        if counts.frames == 0 and not self.endless:
            late = f" after {self._start:g} s" if self._start else ""
            raise InputError(f"{self.name} has no frame that can be decoded{late}: it is damaged or empty")
        self._report()

    def _decoded(self) -> Iterator[Any]:
        """Frames packet by packet: a packet that cannot be decoded is counted and skipped."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (*_ERRORS, self._av.error.FFmpegError) as error:
                if self.endless or isinstance(error, (self._av.error.ExitError, TimeoutError)):
                    raise InputError(f"{self.name}: {_reason(error)}") from error
                self.counts.damaged += 1  # a file ends where it is cut
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except (*_ERRORS, self._av.error.FFmpegError):
                self.counts.damaged += 1
                continue
            yield from frames

    def _seek(self) -> None:
        begin = self._container.start_time or 0
        with contextlib.suppress(*_ERRORS, self._av.error.FFmpegError):  # then frames are read and dropped
            self._container.seek(int(self._start * self._av.time_base) + begin)

    def _report(self) -> None:
        count, expected = self.counts.frames, self.info.frames
        if self.counts.damaged:
            _log.warning("%s: %d packets or frames are damaged", self.name, self.counts.damaged)
        # Headers of intact files are off by a few frames.
        if expected is not None and not self._start and count < 0.9 * expected:
            _log.warning(
                "%s ended after %d of %d frames: the file is damaged or incomplete", self.name, count, expected
            )

    def close(self) -> None:
        self._container.close()


class _Clock:
    """When a frame is shown, in seconds from the start of the stream; a frame without a time follows the one before."""

    def __init__(self, stream: Any, fps: float, *, arrival: bool) -> None:
        self._fps, self._arrival = fps, arrival
        self._base = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
        self._last: float | None = None
        self._begin = time.monotonic()

    def __call__(self, frame: Any) -> float:
        if self._arrival:  # this format has no times: FFmpeg counts 25 frames per second, whatever the real rate
            seconds = time.monotonic() - self._begin if self._last is not None else 0.0
            self._begin = time.monotonic() if self._last is None else self._begin
        elif frame.pts is not None and frame.time_base is not None:
            seconds = float(frame.pts * frame.time_base) - self._base
        else:
            seconds = 0.0
        if self._last is not None and seconds <= self._last:
            seconds = self._last + 1 / self._fps
        self._last = seconds = max(seconds, 0.0)
        return seconds


class _Converter:
    """Decoded frames as upright BGR arrays."""

    def __init__(self, av: Any) -> None:
        self._reformat = av.video.reformatter.VideoReformatter().reformat

    def __call__(self, frame: Any) -> Any:
        # Bilinear chroma costs less than FFmpeg's default and differs by a gray level.
        image = self._reformat(frame, format="bgr24", interpolation="FAST_BILINEAR").to_ndarray()
        turns = round(frame.rotation / 90) % 4 if frame.rotation else 0
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if type(error).__name__ == "ExitError" or isinstance(error, TimeoutError):
        return "no answer within the time limit"
    return str(text).strip().rstrip(".")


def _cannot_open(name: str, error: BaseException, network: bool) -> str:
    if network:
        return f"cannot connect to {name}: {_reason(error)}. Check the address, the network and that the source runs"
    return f"cannot read video {name}: damaged, incomplete, or a format that FFmpeg cannot decode ({_reason(error)})"

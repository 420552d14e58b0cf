"""Video files, encoded in a thread: H.264 with the audio of the source through PyAV, else MPEG-4 through OpenCV."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import threading
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from yolact_deploy.artifact import atomic_write
from yolact_deploy.errors import InputError, OutputError, import_optional, system_reason
from yolact_deploy.streams.audio import AudioCopy
from yolact_deploy.streams.marks import VIDEO_MARKS
from yolact_deploy.streams.readers.av_reader import has_av
from yolact_deploy.streams.threaded_stages import Channel
from yolact_deploy.streams.timed_frames import Image
from yolact_deploy.streams.video import probe_video

_log = logging.getLogger(__name__)

#: ticks of a second; frames of 24, 25, 30, 60 and 30000/1001 per second start at whole ones
_TICKS = 90_000
_H264 = {"preset": "veryfast", "crf": "23"}


class VideoWriter:
    """Writes a video in its own thread; the file appears under its name only when it is complete.

    >>> with VideoWriter("out.mp4", 30, (1280, 720)) as writer:      # doctest: +SKIP
    ...     writer.write(frame)

    Args:
        path: .mp4 or .mkv; with PyAV also .mov and others that hold H.264
        fps: frames per second of the file, where frames have no times of their own
        size: width and height of every frame, in pixels; PyAV repeats the last column or row of odd ones
        encoder: "av" for H.264, "opencv" for MPEG-4 Part 2 without audio; None is PyAV if it is installed
        audio: the video whose audio is copied, as it is
        audio_start: seconds of the audio to skip
        depth: frames that may wait for the encoder before :meth:`write` blocks

    Raises:
        OutputError: the file cannot be written, there is no encoder for it, or frames are missing in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float,
        size: tuple[int, int],
        *,
        encoder: str | None = None,
        audio: str | os.PathLike[str] | None = None,
        audio_start: float = 0.0,
        depth: int = 4,
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        self._size = size
        self._queue: Channel[tuple[Image, float | None]] = Channel(depth)
        self._failure: BaseException | None = None
        self._open = True
        self._resources = contextlib.ExitStack()
        self._temporary = self._resources.enter_context(atomic_write(self.path, suffix=self.path.suffix or ".mp4"))
        try:
            self._encoder = open_encoder(
                self._temporary, self.path, fps, size, encoder=encoder, audio=audio, audio_start=audio_start
            )
        except OutputError as error:
            self._discard(error)
            raise
        self._thread = threading.Thread(target=self._work, name="yolact-video-writer", daemon=True)
        self._thread.start()

    def write(self, frame: Image, seconds: float | None = None) -> None:
        """Queue a frame; do not modify it afterwards.

        Args:
            seconds: when it is shown; None follows the frame before at the rate of the file. OpenCV ignores it

        Raises:
            InputError: a frame of another size, or not uint8 BGR.
            OutputError: encoding an earlier frame failed.
        """
        width, height = self._size
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise InputError(
                f"{self.path}: expected frames uint8 BGR [{height}, {width}, 3], got {frame.dtype} {list(frame.shape)}"
            )
        if not self._queue.put((frame, seconds)):
            raise self._error()
        self.frames += 1

    def close(self) -> None:
        """Finish the file and rename it to its final name; closing again does nothing."""
        if not self._open:
            return
        self._open = False
        self._queue.end()
        self._thread.join()
        self._queue.close()  # a later write is refused
        error = self._error() if self._failure else self._incomplete() or self._unmarked()
        if error:
            self._discard(error)
            raise error
        self._resources.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._open:
            self._open = False
            self._queue.close()
            self._thread.join()
            self._discard(error)

    def _work(self) -> None:
        try:
            for frame, seconds in self._queue:
                self._encoder.encode(frame, seconds)
        except BaseException as error:  # raised at the next write
            self._failure = error
            self._queue.close()
        finally:
            try:
                self._encoder.close()
            except BaseException as error:  # raised when the writer is closed
                self._failure = self._failure or error

    def _error(self) -> OutputError:
        failure = self._failure
        reason = system_reason(failure) if isinstance(failure, OSError) else failure or "it is already closed"
        error = OutputError(f"cannot write video {self.path}: {reason}")
        error.__cause__ = self._failure
        return error

    def _incomplete(self) -> OutputError | None:
        """OpenCV does not report a full disk, so the length of the finished file is checked."""
        if self.frames == 0:
            return OutputError(f"no frame was written to {self.path}, so the file was not created")
        try:
            frames = probe_video(self._temporary).frames
        except InputError:
            frames = 0
        if frames is not None and frames < self.frames:
            return OutputError(
                f"video {self.path} has {frames} of {self.frames} frames: is the disk full? Free some space"
            )
        return None

    def _unmarked(self) -> OutputError | None:
        """Append the mark that tells our videos from others."""
        try:
            with self._temporary.open("ab") as file:
                file.write(VIDEO_MARKS.get(self.path.suffix.lower(), b""))
        except OSError as error:  # the disk is full by now
            self._failure = error
            return self._error()
        return None

    def _discard(self, error: BaseException) -> None:
        """Remove the temporary file by passing the error through :func:`atomic_write`."""
        with contextlib.suppress(Exception):
            self._resources.__exit__(type(error), error, error.__traceback__)


class Encoder(abc.ABC):
    """Writes frames into a file; made by :func:`open_encoder`."""

    @abc.abstractmethod
    def encode(self, frame: Image, seconds: float | None) -> None:
        """Encode a frame, shown at ``seconds`` or after the one before."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finish the file."""


def open_encoder(
    file: Path,
    path: Path,
    fps: float,
    size: tuple[int, int],
    *,
    encoder: str | None = None,
    audio: str | os.PathLike[str] | None = None,
    audio_start: float = 0.0,
) -> Encoder:
    """An encoder that writes ``file``; the arguments are those of :class:`VideoWriter`, ``path`` is for messages.

    Raises:
        OutputError: the file cannot be written, or there is no encoder for it.
    """
    if (encoder or ("av" if has_av() else "opencv")) == "av":
        return _AvEncoder(file, path, fps, size, audio, audio_start)
    return _OpenCvEncoder(file, path, fps, size)


class _AvEncoder(Encoder):
    """H.264 by libx264, with the time of each frame and a copy of the audio."""

    def __init__(
        self, file: Path, path: Path, fps: float, size: tuple[int, int], audio: Any, audio_start: float
    ) -> None:
        av = self._av = import_optional("av", "video", "Writing H.264")
        try:
            options = {"movflags": "faststart"} if path.suffix.lower() in (".mp4", ".mov", ".m4v") else {}
            self._container = av.open(str(file), "w", options=options)
            self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1_001_000))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise OutputError(
                f"cannot write video {path}: FFmpeg cannot write H.264 to {path.suffix or 'such'} files here "
                f"({error}); use .mp4 or .mkv"
            ) from error
        width, height = size
        self._pad = width % 2, height % 2
        self._stream.width, self._stream.height = width + self._pad[0], height + self._pad[1]
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(_H264)
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._step = max(1, round(_TICKS / fps))
        self._last = -self._step
        self._sound = False  # frames are in it, and none failed: FFmpeg crashes if it is called on after an error
        self._audio = AudioCopy.open(audio, self._container, audio_start) if audio is not None else None

    def encode(self, frame: Image, seconds: float | None) -> None:
        if any(self._pad):
            frame = cv2.copyMakeBorder(  # type: ignore[assignment]  # uint8 stays uint8
                frame, 0, self._pad[1], 0, self._pad[0], cv2.BORDER_REPLICATE
            )
        # OpenCV converts in half the time of FFmpeg.
        planes = cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420)
        image = self._av.VideoFrame.from_ndarray(planes, format="yuv420p")
        ticks = self._last + self._step if seconds is None else round(seconds * _TICKS)
        self._last = max(ticks, self._last + 1)
        image.pts, image.time_base = self._last, Fraction(1, _TICKS)
        self._sound = False
        self._container.mux(self._stream.encode(image))
        if self._audio is not None:
            self._audio.copy_until(self._last / _TICKS)
        self._sound = True

    def close(self) -> None:
        try:
            if self._sound:
                self._container.mux(self._stream.encode(None))
                if self._audio is not None:
                    self._audio.copy_until((self._last + self._step) / _TICKS)
        finally:
            if self._audio is not None:
                self._audio.close()
            self._container.close()


class _OpenCvEncoder(Encoder):
    """MPEG-4 Part 2 at a constant rate."""

    def __init__(self, file: Path, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            raise OutputError(
                f"cannot write video {path}: OpenCV has no mp4v encoder for {path.suffix} files; use .mp4"
            )

    def encode(self, frame: Image, seconds: float | None) -> None:
        self._writer.write(frame)

    def close(self) -> None:
        self._writer.release()

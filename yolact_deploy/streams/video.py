"""Videos and cameras: frames are decoded a few ahead in a thread, and written atomically in a thread.

Frames are uint8 BGR [H, W, 3].
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write
from yolact_deploy.errors import InputError, OutputError
from yolact_deploy.preprocess import check_pixels
from yolact_deploy.streams.marks import MP4_MARK
from yolact_deploy.untrusted import shown

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
VideoSource = str | os.PathLike[str] | int | Iterable[Image]
_Item = TypeVar("_Item")

#: frames per second if a camera or file does not report it
DEFAULT_FPS = 30.0
#: seconds between the checks of a waiting thread for a stop
_POLL = 0.05
_END = object()
#: longer numbers are names of files
_CAMERA_DIGITS = 10


class VideoInfo(NamedTuple):
    """Facts from the header of a video."""

    width: int
    height: int
    fps: float  #: :data:`DEFAULT_FPS` if the header has none
    frames: int | None  #: None if the header has none


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, frame rate and number of frames of a video file, from its header.

    Raises:
        InputError: no such file, or not a video that OpenCV can read.
    """
    capture = _open_file(Path(path))
    try:
        return _info(capture)
    finally:
        capture.release()


def is_camera(source: object) -> bool:
    """True for the number of a camera: an int, or digits that are not the name of a file."""
    if isinstance(source, str):
        return source.isdecimal() and len(source) < _CAMERA_DIGITS and not Path(source).exists()
    return isinstance(source, int)


class TimedFrame(NamedTuple):
    """A frame and when it is shown."""

    image: Image
    seconds: float  #: from the start of the video, as the stream states it


def read_ahead(source: VideoSource, depth: int = 4) -> Generator[Image, None, None]:
    """Frames of a video file, a camera or an iterable, decoded in a thread up to ``depth`` frames ahead.

    Closing the iterator (leaving the loop, ``close()``) ends the thread. Errors in the thread are raised here.

    Raises:
        InputError: a video or camera cannot be opened (at the call), or has no frame that can be decoded.
    """
    if isinstance(source, (str, os.PathLike, int)):
        return _images(read_timed(source, depth))
    if isinstance(source, Iterable):
        return _read_in_thread(iter(source), depth)
    raise InputError(f"expected the path of a video, the number of a camera or frames, got {type(source).__name__}")


def read_timed(source: str | os.PathLike[str] | int, depth: int = 4) -> Generator[TimedFrame, None, None]:
    """:func:`read_ahead` of a video file or a camera, with the time of each frame."""
    if is_camera(source):
        number = int(source)  # type: ignore[arg-type]  # is_camera has checked it
        return _read_in_thread(_frames(_open_camera(number), f"camera {number}", None), depth)
    path = Path(source)  # type: ignore[arg-type]  # no camera
    capture = _open_file(path)
    info = _info(capture)
    return _read_in_thread(_frames(capture, str(path), info.frames, info.fps), depth)


def _images(frames: Generator[TimedFrame, None, None]) -> Generator[Image, None, None]:
    with contextlib.closing(frames):
        for frame in frames:
            yield frame.image


def _open_file(path: Path) -> cv2.VideoCapture:
    if not path.exists():
        raise InputError(f"no such video: {path}")
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a video file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise InputError(f"cannot read video {path}: damaged, incomplete, or a format that OpenCV cannot decode")
    info = _info(capture)
    check_pixels(path, (info.height, info.width))
    return capture


def _open_camera(number: int) -> cv2.VideoCapture:
    if not 0 <= number < 1 << 31:
        raise InputError(f"there is no camera {shown(number)}: the first one has the number 0")
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise InputError(
            f"cannot open camera {number}: check that it is connected, that no other program uses it, and that you may "
            f"read /dev/video{number}"
        )
    return capture


def _info(capture: cv2.VideoCapture) -> VideoInfo:
    fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return VideoInfo(
        int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        fps if 0 < fps < 1000 else DEFAULT_FPS,
        int(frames) if 0 < frames < 1e9 else None,
    )


def _frames(
    capture: cv2.VideoCapture, name: str, expected: int | None, fps: float | None = None
) -> Iterator[TimedFrame]:
    """Frames until the end; without ``fps``, as of a camera, their times are those of the clock."""
    count, seconds, start = 0, 0.0, 0.0
    try:
        while True:
            ok, frame = capture.read()
            if not ok:
                break
            now = time.monotonic() if fps is None else capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            if count == 0:
                start, seconds = (now, 0.0) if fps is None else (0.0, now if now > 0 else 0.0)
            else:  # a stream without times counts frames
                seconds = now - start if now - start > seconds else seconds + 1 / (fps or DEFAULT_FPS)
            count += 1
            yield TimedFrame(frame, seconds)  # type: ignore[arg-type]  # VideoCapture gives uint8
    finally:
        capture.release()
    if count == 0:
        raise InputError(f"{name} has no frame that can be decoded: it is damaged or empty")
    # OpenCV does not distinguish the end from an error, and headers of intact files are off by a few frames.
    if expected is not None and count < 0.9 * expected:
        _log.warning("%s ended after %d of %d frames: the file is damaged or incomplete", name, count, expected)


def _read_in_thread(frames: Iterator[_Item], depth: int) -> Generator[_Item, None, None]:
    ahead: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
    stop = threading.Event()

    def read() -> None:
        try:
            for frame in frames:
                if not _put(ahead, frame, stop):
                    return
            _put(ahead, _END, stop)
        except BaseException as error:  # raised in the consumer
            _put(ahead, _ReadFailure(error), stop)
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=read, name="yolact-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not _END:
            if isinstance(item, _ReadFailure):
                raise item.error
            yield item
    finally:
        stop.set()
        # An iterable of the caller may block forever; a file or a camera answers soon.
        thread.join(timeout=10)


class _ReadFailure(NamedTuple):
    error: BaseException


def _put(target: queue.Queue[Any], item: object, stop: threading.Event) -> bool:
    """Put an item into a bounded queue; False if the other side has stopped."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=_POLL)
            return True
    return False


class VideoWriter:
    """Writes an MP4 in its own thread; the file appears under its name only when it is complete.

    >>> with VideoWriter("out.mp4", 30, (1280, 720)) as writer:      # doctest: +SKIP
    ...     writer.write(frame)

    Args:
        fps: frames per second of the file
        size: width and height of every frame, in pixels
        depth: frames that may wait for the encoder before :meth:`write` blocks

    Raises:
        OutputError: the file cannot be written, OpenCV has no encoder, or frames are missing in the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float, size: tuple[int, int], *, codec: str = "mp4v", depth: int = 4
    ) -> None:
        self.path = Path(path)
        self.frames = 0
        self._size = size
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._resources = contextlib.ExitStack()
        self._temporary = self._resources.enter_context(atomic_write(self.path, suffix=self.path.suffix or ".mp4"))
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*codec), fps, size)
        if not self._writer.isOpened():
            error = OutputError(
                f"cannot write video {self.path}: OpenCV has no {codec} encoder for {self.path.suffix} files; use .mp4"
            )
            self._discard(error)
            raise error
        self._thread = threading.Thread(target=self._work, name="yolact-video-writer", daemon=True)
        self._thread.start()

    def write(self, frame: Image) -> None:
        """Queue a frame; do not modify it afterwards.

        Raises:
            InputError: a frame of another size, or not uint8 BGR.
            OutputError: encoding an earlier frame failed.
        """
        width, height = self._size
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise InputError(
                f"{self.path}: expected frames uint8 BGR [{height}, {width}, 3], got {frame.dtype} {list(frame.shape)}"
            )
        if not _put(self._queue, frame, self._stop):
            raise self._error()
        self.frames += 1

    def close(self) -> None:
        """Finish the file and rename it to its final name; closing again does nothing."""
        if not self._writer.isOpened():
            return
        _put(self._queue, _END, self._stop)
        self._thread.join()
        self._stop.set()  # a later write is refused
        self._writer.release()
        error = self._error() if self._failure else self._incomplete()
        if error:
            self._discard(error)
            raise error
        if self.path.suffix.lower() == ".mp4":
            with self._temporary.open("ab") as file:
                file.write(MP4_MARK)
        self._resources.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._stop.set()
        self._thread.join()
        self._writer.release()
        self._discard(error)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    frame = self._queue.get(timeout=_POLL)
                except queue.Empty:
                    continue
                if frame is _END:
                    return
                self._writer.write(frame)
        except BaseException as error:  # raised at the next write
            self._failure = error
            self._stop.set()

    def _error(self) -> OutputError:
        return OutputError(f"cannot write video {self.path}: {self._failure or 'it is already closed'}")

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

    def _discard(self, error: BaseException) -> None:
        """Remove the temporary file by passing the error through :func:`atomic_write`."""
        with contextlib.suppress(Exception):
            self._resources.__exit__(type(error), error, error.__traceback__)

"""Videos, cameras and other streams as frames, decoded a few ahead in a thread.

Frames are uint8 BGR [H, W, 3], and the receiver owns them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any

from yolact_deploy.errors import InputError
from yolact_deploy.streams.readers.kinds import open_reader
from yolact_deploy.streams.readers.video_file import open_video
from yolact_deploy.streams.threaded_stages import Pipeline
from yolact_deploy.streams.timed_frames import Image, Reader, ReadOptions, StreamCounts, TimedFrame, VideoInfo

VideoSource = str | os.PathLike[str] | int | Iterable[Image]


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, frame rate and number of frames of a video file, from its header.

    Raises:
        InputError: no such file, or not a video that can be decoded.
    """
    reader = open_video(os.fspath(path), ReadOptions())
    try:
        return reader.info
    finally:
        reader.close()


class FrameStream:
    """The frames of an open source, read ahead in a thread; iterate, and close it at the end.

    Args:
        reader: closed with this stream
        depth: frames decoded ahead; one if only the latest counts
    """

    def __init__(self, reader: Reader, options: ReadOptions | None = None, depth: int = 4) -> None:
        options = options or ReadOptions()
        self.reader = reader
        latest = (options.buffer or ("latest" if reader.live else "all")) == "latest"
        self._pipe: Pipeline[TimedFrame] = Pipeline(
            _selected(reader, options), depth=depth, latest=latest, name="read-ahead"
        )

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def info(self) -> VideoInfo:
        return self.reader.info

    @property
    def live(self) -> bool:
        return self.reader.live

    @property
    def counts(self) -> StreamCounts:
        """What has happened so far."""
        self.reader.counts.dropped = self._pipe.dropped
        return self.reader.counts

    def __iter__(self) -> Iterator[TimedFrame]:
        return self

    def __next__(self) -> TimedFrame:
        return next(self._pipe)

    def stop(self) -> None:
        """Let the stream end now; another thread may be waiting for a frame."""
        self.reader.interrupt()
        self._pipe.stop()

    def close(self) -> None:
        """End the thread and free the source."""
        self.stop()
        if self._pipe.close():
            self.reader.close()

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _selected(reader: Reader, options: ReadOptions) -> Iterator[TimedFrame]:
    """Every ``stride``-th frame for ``duration`` seconds."""
    frames: Any = reader.frames()
    try:
        end = None if options.duration is None else options.start + options.duration
        for index, frame in enumerate(frames):
            if end is not None and frame.seconds >= end - 1e-6:
                return
            if index % options.stride == 0:
                yield frame
    finally:
        frames.close()
        reader.close()


def read_ahead(source: VideoSource, depth: int = 4, options: ReadOptions | None = None) -> Generator[Image, None, None]:
    """Frames of a video file, a camera, an address or an iterable, decoded in a thread up to ``depth`` frames ahead.

    Closing the iterator (leaving the loop, ``close()``) ends the thread. Errors in the thread are raised here.

    Raises:
        InputError: a source cannot be opened (at the call), or has no frame that can be decoded.
    """
    if isinstance(source, (str, os.PathLike, int)):
        return _images(read_timed(source, depth, options))
    if isinstance(source, Iterable):
        return _taken(Pipeline(source, depth=depth, name="read-ahead"))
    raise InputError(f"expected the path of a video, the number of a camera or frames, got {type(source).__name__}")


def read_timed(source: str | os.PathLike[str] | int, depth: int = 4, options: ReadOptions | None = None) -> FrameStream:
    """:func:`read_ahead` of a stream, with the time of each frame, facts about it and counts."""
    options = options or ReadOptions()
    return FrameStream(open_reader(str(source), options), options, depth)


def _images(frames: FrameStream) -> Generator[Image, None, None]:
    with frames:
        for frame in frames:
            yield frame.image


def _taken(frames: Pipeline[Image]) -> Generator[Image, None, None]:
    with frames:
        yield from frames

"""What every reader of frames gives: frames with their times, facts about the stream, and counts of what went wrong."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.vocabulary import BUFFERS, DECODERS, check_word

Image = NDArray[np.uint8]

#: frames per second if a camera or file does not report it
DEFAULT_FPS = 30.0


class VideoInfo(NamedTuple):
    """Facts from the header of a video."""

    width: int  #: as shown, after rotation; 0 if unknown
    height: int
    fps: float  #: mean rate; :data:`DEFAULT_FPS` if the header has none
    frames: int | None  #: None if the header has none


class TimedFrame(NamedTuple):
    """A frame and when it is shown."""

    image: Image  #: uint8 BGR [H, W, 3]; the receiver owns it
    seconds: float  #: from the start of the video, as the stream states it


@dataclass
class StreamCounts:
    """What happened to a stream while it was read."""

    frames: int = 0  #: decoded
    damaged: int = 0  #: packets that could not be decoded, and frames that the decoder marked as corrupt
    dropped: int = 0  #: frames that a newer one replaced before anybody took them
    reconnects: int = 0


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read streams.

    Attributes:
        stride: take every n-th frame
        start: seconds of a file to skip
        duration: seconds to read after ``start``; None reads to the end
        buffer: "latest" replaces a frame that nobody has taken by the next one, "all" lets the source wait. None is
            "latest" for live sources and "all" for files
        timeout: seconds without a frame after which a live source has failed; until then it is reconnected
        decoder: "av" or "opencv"; None is PyAV if it is installed, else OpenCV
        raw_size: width and height of raw BGR frames on standard input

    Raises:
        InputError: a value out of range.
    """

    stride: int = 1
    start: float = 0.0
    duration: float | None = None
    buffer: str | None = None
    timeout: float = 10.0
    decoder: str | None = None
    raw_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InputError(f"stride: expected 1 or more, got {self.stride}")
        if not 0 <= self.start < float("inf"):
            raise InputError(f"start: expected seconds from 0, got {self.start}")
        if self.duration is not None and not self.duration > 0:
            raise InputError(f"duration: expected more than 0 seconds, got {self.duration}")
        if not 0 < self.timeout <= 86400:
            raise InputError(f"timeout: expected more than 0 and at most 86400 seconds, got {self.timeout}")
        if self.buffer is not None:
            check_word("buffer", self.buffer, BUFFERS)
        if self.decoder is not None:
            check_word("decoder", self.decoder, DECODERS)


class Reader(abc.ABC):
    """An open source of frames, which can be iterated over once."""

    #: for messages and output; without passwords
    name: str
    info: VideoInfo
    counts: StreamCounts
    #: whether frames are lost if nobody takes them in time
    live: bool = False

    @abc.abstractmethod
    def frames(self) -> Iterator[TimedFrame]:
        """Frames until the end.

        Raises:
            InputError: no frame can be decoded, or a live source has failed.
        """

    def interrupt(self) -> None:  # noqa: B027  # most are read at once
        """Ask :meth:`frames`, which another thread may be running, to end soon."""

    def close(self) -> None:  # noqa: B027  # some have nothing to close
        """Free the source while nobody iterates over it; closing again does nothing."""


_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


def without_password(address: str) -> str:
    """An address as messages and outputs may show it.

    >>> without_password("rtsp://admin:secret@camera/1")
    'rtsp://***@camera/1'
    """
    return _PASSWORD.sub("***@", address)

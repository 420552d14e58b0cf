"""The kinds of sources of frames, in the order in which a name is tried: a new kind is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from yolact_deploy.streams.readers.address import is_address, open_address
from yolact_deploy.streams.readers.camera import is_camera, open_camera
from yolact_deploy.streams.readers.gstreamer import is_pipeline, open_pipeline
from yolact_deploy.streams.readers.screen import is_screen, open_screen
from yolact_deploy.streams.readers.standard_input import is_standard_input, open_standard_input
from yolact_deploy.streams.readers.video_file import is_video_file, open_video
from yolact_deploy.streams.timed_frames import Reader, ReadOptions


class SourceKind(NamedTuple):
    """How a kind of source is recognized by its name, and opened."""

    matches: Callable[[str], bool]
    open: Callable[[str, ReadOptions], Reader]
    #: whether it plays at its own pace, so that several of them run side by side
    live: bool


KINDS: dict[str, SourceKind] = {
    "camera": SourceKind(is_camera, open_camera, True),
    "address": SourceKind(is_address, open_address, True),
    "standard input": SourceKind(is_standard_input, open_standard_input, False),
    "GStreamer pipeline": SourceKind(is_pipeline, open_pipeline, True),
    "screen": SourceKind(is_screen, open_screen, True),
    "video file": SourceKind(is_video_file, open_video, False),
}


def kind_of(text: str) -> str:
    """The name of the kind of a source, one of :data:`KINDS`."""
    return next(name for name, kind in KINDS.items() if kind.matches(text))


def is_stream_name(text: str) -> bool:
    """Whether a name means a stream whatever files there are: a camera, an address, ``-`` and the like."""
    return kind_of(text) != "video file"


def open_reader(text: str, options: ReadOptions | None = None) -> Reader:
    """Open a source by its name.

    Raises:
        InputError: it cannot be opened or decoded.
        MissingDependencyError, BackendError: this kind requires a package that is missing.
    """
    return KINDS[kind_of(text)].open(text, options or ReadOptions())

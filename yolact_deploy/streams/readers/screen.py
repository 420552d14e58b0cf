"""The screen, ``screen:`` or ``screen::1``, through PyAV's X11 grabber."""

from __future__ import annotations

import os

from yolact_deploy.errors import InputError
from yolact_deploy.streams.readers.av_reader import AvReader
from yolact_deploy.streams.timed_frames import Reader, ReadOptions

PREFIX = "screen:"


def is_screen(text: str) -> bool:
    """Whether this is ``screen:``, or ``screen:`` with the name of an X display."""
    return text.startswith(PREFIX)


def open_screen(text: str, options: ReadOptions) -> Reader:
    """Start to grab a display.

    Raises:
        InputError: there is no display.
        MissingDependencyError: PyAV is not installed.
    """
    display = text.removeprefix(PREFIX) or os.environ.get("DISPLAY", "")
    if not display:
        raise InputError(f"{text}: there is no display to grab; set DISPLAY or name it, as in screen::0")
    reader = AvReader(display, f"screen {display}", options, form="x11grab")
    reader.live = True
    return reader

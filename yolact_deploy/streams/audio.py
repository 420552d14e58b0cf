"""The audio of a video, copied packet by packet into another file beside new frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from yolact_deploy.errors import import_optional

_log = logging.getLogger(__name__)


class AudioCopy:
    """Copies the first audio stream of ``source`` into the container ``out``; made by :meth:`open`."""

    def __init__(self, source: Any, stream: Any, target: Any, out: Any, start: float) -> None:
        self._source, self._target, self._out = source, target, out
        begin = (source.start_time or 0) / 1e6  # of all streams, so that sound and picture stay together
        self._shift = begin + start
        # What a decoder needs before the first sound has times below 0. Only MP4 can hold them; elsewhere FFmpeg would
        # move everything, and the frames would not have their times.
        self._cut = start > 0 or "mp4" not in out.format.name.split(",")
        self._packets: Iterator[Any] = source.demux(stream)
        self._next: Any = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], out: Any, start: float = 0.0) -> AudioCopy | None:
        """Begin a copy; None if there is no audio, or the container cannot hold it, which is logged.

        Args:
            out: PyAV's container, before anything is written to it
            start: seconds of the audio to skip
        """
        av = import_optional("av", "video", "Copying audio")
        try:
            source = av.open(os.fspath(path), metadata_errors="replace")
        except (OSError, ValueError, av.error.FFmpegError):  # the reader of the frames reports it
            return None
        if not source.streams.audio:
            source.close()
            return None
        stream = source.streams.audio[0]
        try:
            target = out.add_stream_from_template(stream)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            codec = stream.codec_context.name
            source.close()
            _log.warning("%s: the audio is left out, since this kind of file cannot hold %s (%s)", path, codec, error)
            return None
        return cls(source, stream, target, out, start)

    def copy_until(self, seconds: float) -> None:
        """Write the packets up to a time of the new file."""
        while (packet := self._peek()) is not None:
            time = float(packet.dts * packet.time_base) - self._shift
            if time > seconds:
                return
            self._next = None
            if time < 0 and self._cut:
                continue
            ticks = round(self._shift / packet.time_base)
            packet.dts -= ticks
            if packet.pts is not None:
                packet.pts -= ticks
            packet.stream = self._target
            self._out.mux(packet)

    def _peek(self) -> Any:
        while self._next is None:
            try:
                packet = next(self._packets, None)
            except (OSError, ValueError, EOFError):  # cut short
                packet = None
            if packet is None:
                return None
            self._next = packet if packet.dts is not None else None  # the last one is empty
        return self._next

    def close(self) -> None:
        self._source.close()

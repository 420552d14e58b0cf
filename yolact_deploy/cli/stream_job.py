"""Streams of ``predict``: reading, network, tracking and drawing overlap, of one stream or of several at once."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from yolact_deploy.artifact import atomic_write
from yolact_deploy.cli.schemas import DETECTIONS
from yolact_deploy.detections import Detections
from yolact_deploy.draw import DrawStyle, draw_detections
from yolact_deploy.runtime.streaming import StreamFrame
from yolact_deploy.streams.byte_track import ByteTracker, TrackOptions
from yolact_deploy.streams.counting import LineCounter, ZoneCounter
from yolact_deploy.streams.marks import JSON_MARK
from yolact_deploy.streams.sinks.screens import RateDisplay
from yolact_deploy.streams.sources import NamedStream
from yolact_deploy.streams.threaded_stages import Channel
from yolact_deploy.streams.timed_frames import Image
from yolact_deploy.streams.video import FrameStream
from yolact_deploy.streams.writers import VideoWriter

Counter = LineCounter | ZoneCounter


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What is made of detections.

    Attributes:
        style: how they are drawn
        show: in a window
        show_fps: rate and latency on the frames
        mjpeg_port: serve drawn frames on this port of the loopback interface
        track: give objects ids; None does not
        counters: make new counters for a stream
        suffix: of the videos, ".mp4" or ".mkv"
    """

    style: DrawStyle = field(default_factory=DrawStyle)
    show: bool = False
    show_fps: bool = False
    mjpeg_port: int | None = None
    track: TrackOptions | None = None
    counters: Callable[[], list[Counter]] = list
    suffix: str = ".mp4"

    @property
    def watched(self) -> bool:
        """Whether frames are drawn even if no overlay is written."""
        return self.show or self.mjpeg_port is not None


class FrameTag(NamedTuple):
    """What travels with a frame."""

    stream: RunningStream
    seconds: float
    born: float  #: ``time.perf_counter()`` after decoding


class RunningStream:
    """A stream that is read, its tracker and counters, and its outputs once there is a frame."""

    def __init__(self, stream: NamedStream, frames: FrameStream, name: str, options: StreamOptions) -> None:
        self.stream, self.frames, self.name = stream, frames, name
        self.error: BaseException | None = None
        self.outputs: VideoOutputs | None = None
        fps = frames.info.fps
        self._tracker = ByteTracker(options.track, fps=fps) if options.track is not None else None
        self.counters = options.counters()
        self._rate = RateDisplay() if options.show_fps else None
        self._style = options.style

    def jobs(self) -> Iterator[StreamFrame]:
        """The frames as jobs; an error of the source ends them and is kept in :attr:`error`."""
        try:
            for frame in self.frames:
                yield StreamFrame(frame.image, FrameTag(self, frame.seconds, time.perf_counter()))
        except Exception as error:
            self.error = error

    def followed(self, detections: Detections) -> Detections:
        """The detections with ids, if they are tracked; counted, if something counts them."""
        if self._tracker is not None:
            detections = self._tracker.track(detections)
            for counter in self.counters:
                counter.update(detections)
        return detections

    def drawn(self, job: StreamFrame) -> Image:
        """The frame with everything on it."""
        assert job.detections is not None
        image = draw_detections(job.image, job.detections, style=self._style)
        for counter in self.counters:
            counter.draw(image)
        if self._rate is not None:
            self._rate.draw(image, job.tag.born)
        return image


def merged(streams: Sequence[RunningStream]) -> Iterator[StreamFrame]:
    """Frames of several streams as they come; those of each stay in order, and one that fails ends alone."""
    channel: Channel[StreamFrame] = Channel(2 * len(streams))
    left = len(streams)
    lock = threading.Lock()

    def feed(stream: RunningStream) -> None:
        nonlocal left
        for job in stream.jobs():
            if not channel.put(job):
                break
        with lock:
            left -= 1
            if not left:
                channel.end()

    threads = [threading.Thread(target=feed, args=(one,), name="yolact-feed", daemon=True) for one in streams]
    for thread in threads:
        thread.start()
    try:
        yield from channel
    finally:
        channel.close()
        for stream in streams:
            stream.frames.close()
        for thread in threads:
            thread.join(10)


class VideoOutputs:
    """The output files of one stream; they appear under their names when ``stack`` exits without an error.

    Args:
        first: the first drawn frame
        fps: of the video where frames have no times
        audio: the video whose audio is copied
        start: seconds by which times are later than those in the written video
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        paths: dict[str, Path],
        first: Image,
        fps: float,
        *,
        audio: str | None = None,
        start: float = 0.0,
    ) -> None:
        self.paths = list(paths.values())
        self.video: VideoWriter | None = None
        self.count = 0
        #: whether frames are shown more than a frame's time off a constant rate
        self.varies = False
        self._lines: TextIO | None = None
        self._fps, self._start = fps, start
        if "overlay" in paths:
            size = first.shape[1], first.shape[0]
            self.video = stack.enter_context(VideoWriter(paths["overlay"], fps, size, audio=audio, audio_start=start))
        if "json" in paths:
            temporary = stack.enter_context(atomic_write(paths["json"]))
            self._lines = stack.enter_context(temporary.open("w", encoding="utf-8"))

    @staticmethod
    def files(name: str, formats: Sequence[str], suffix: str) -> dict[str, str]:
        """Names of the files by format."""
        files = {"overlay": f"{name}_overlay{suffix}", "json": f"{name}.jsonl"}
        return {kind: file for kind, file in files.items() if kind in formats}

    def write(self, seconds: float, detections: Detections, drawn: Image | None) -> None:
        """Take a frame; ``seconds`` is its time in the stream."""
        if self._lines is not None:
            line: dict[str, Any] = {"frame": self.count, "time": round(seconds, 4), **detections.to_json()}
            self._lines.write(json.dumps({**JSON_MARK, "schema": DETECTIONS, **line}) + "\n")
        if self.video is not None and drawn is not None:
            self.video.write(drawn, seconds - self._start)
            self.varies |= abs(seconds - self._start - self.count / self._fps) > 1.5 / self._fps
        self.count += 1

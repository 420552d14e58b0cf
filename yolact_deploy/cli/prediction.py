"""The work of ``yolact-deploy predict``: run a model over sources and write each output file atomically."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import write_bytes, write_json
from yolact_deploy.cli.schemas import DETECTIONS, PREDICT
from yolact_deploy.cli.stream_job import RunningStream, StreamOptions, VideoOutputs, merged
from yolact_deploy.datasets.shard import Shard
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections
from yolact_deploy.errors import BackendError, InputError, OutputError, YolactDeployError
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.sliced_predictor import SlicedPredictor
from yolact_deploy.runtime.streaming import StreamFrame, check_multiframe, detect_stages
from yolact_deploy.streams.marks import JSON_MARK, is_marked, mark_picture
from yolact_deploy.streams.readers.av_reader import has_av
from yolact_deploy.streams.sinks.screens import MjpegServer, Window
from yolact_deploy.streams.sinks.sink import Sink, SinkItem
from yolact_deploy.streams.sinks.sink_table import SINKS
from yolact_deploy.streams.sources import NamedStream, Picture, Sources, UniqueNames, image_ids
from yolact_deploy.streams.threaded_stages import Pipeline, each
from yolact_deploy.streams.timed_frames import DEFAULT_FPS, ReadOptions
from yolact_deploy.streams.video import read_timed

if TYPE_CHECKING:
    from yolact_deploy.cli.schemas.output_types import FailedSource, PredictSummary, StreamSummary

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

#: lossless formats; overlays of such pictures are written lossless as well
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_STREAM_COUNTS: tuple[Literal["damaged", "dropped", "reconnects"], ...] = ("damaged", "dropped", "reconnects")
#: names of the COCO files
COCO_FILES = ("detections.coco.json", "detections.images.json")
#: errors of the system after which no other output can be written either
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Summary:
    """Counts and outputs; ``spent_ms`` is the sum over all images."""

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    spent_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    outputs: list[Path] = field(default_factory=list)
    failed: list[FailedSource] = field(default_factory=list)
    #: what folders have besides pictures, by the reason for which it is left out
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    #: what happened to streams: packets damaged, frames dropped, reconnections, objects counted
    streams: list[StreamSummary] = field(default_factory=list)
    #: whether Ctrl-C ended the run early
    interrupted: bool = False

    def to_dict(self) -> PredictSummary:
        """JSON-ready, with the mean milliseconds of each stage per image."""
        count = max(self.images, 1)
        return {
            "schema": PREDICT,
            "images": self.images,
            "detections": self.detections,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else 0.0,
            "mean_ms": {stage: round(spent / count, 3) for stage, spent in self.spent_ms.items()},
            "outputs": [str(path) for path in self.outputs],
            "failed": self.failed,
            "left_out": {reason: list(map(str, paths)) for reason, paths in self.left_out.items()},
            "streams": self.streams,
            "interrupted": self.interrupted,
        }


@contextlib.contextmanager
def output_folder(name: str | os.PathLike[str]) -> Iterator[Path]:
    """Create a folder and check that it is writable; on failure remove it again if it is new and empty.

    Raises:
        OutputError: it cannot be created or written.
    """
    folder = Path(name)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to folder {folder}: {error.strerror or error}. Choose another one with -o"
        ) from error
    try:
        yield folder
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


class PredictionJob:
    """One run of a model over sources.

    Args:
        folder: output folder
        formats: "overlay", "json", "coco" and names of :data:`~yolact_deploy.streams.sinks.sink_table.SINKS`
        progress: counts pictures and frames
        max_frames: of each video, None for all
        overwrite: replace files that no earlier run wrote
        reading: how to read streams
        making: what is made of detections
        multiframe: frames in one batch; None is one, one of each stream, or a fixed batch
        shard: run only this part of the pictures, with the names and ids that they have among all
    """

    def __init__(
        self,
        model: Predictor,
        folder: Path,
        formats: Sequence[str],
        *,
        progress: Progress = SILENT,
        max_frames: int | None = None,
        overwrite: bool = False,
        reading: ReadOptions | None = None,
        making: StreamOptions | None = None,
        multiframe: int | None = None,
        shard: Shard | None = None,
    ) -> None:
        self.model = model
        self.folder = folder
        self.formats = formats
        self.progress = progress
        self.max_frames = max_frames
        self.overwrite = overwrite
        self._category_ids: tuple[int, ...] = self.model.config.category_ids
        self.shard = shard
        self.reading = reading or ReadOptions()
        self.making = making or StreamOptions()
        self.multiframe = check_multiframe(model, multiframe) if multiframe is not None else None
        self.summary = Summary()
        self._names = UniqueNames(COCO_FILES if "coco" in formats else ())
        self._sinks: list[Sink] = []
        self._window: Window | None = None
        self._server: MjpegServer | None = None

    def run(self, sources: Sources) -> Summary:
        """Process all sources.

        A source that cannot be read, or whose outputs cannot be written, is reported and skipped, unless it is the only
        one. Ctrl-C and SIGTERM end the run after the batch at work, and keep what is done.

        Raises:
            InputError: the only source cannot be read.
            OutputError, BackendError: writing, showing or the network failed.
        """
        alone = len(sources.pictures) + len(sources.streams) == 1
        start = time.perf_counter()
        if sources.classes is not None:
            self._category_ids = sources.classes.category_ids(self.model.config)
        self.summary.left_out = dict(sources.left_out)
        with contextlib.ExitStack() as stack:
            self._open_outputs(stack)
            if sources.pictures:
                self._run_pictures(sources.pictures, alone)
            for group in sources.groups():
                if not self.summary.interrupted:
                    self._run_streams(group, alone)
        self.summary.seconds = time.perf_counter() - start
        return self.summary

    def _open_outputs(self, stack: contextlib.ExitStack) -> None:
        if self.making.show:
            self._window = Window()
            stack.callback(self._window.close)
        if self.making.mjpeg_port is not None:
            self._server = MjpegServer(self.making.mjpeg_port)
            stack.callback(self._server.close)
            self.progress.note(f"serving drawn frames at {self._server.address}")
        ids = self.model.config.category_ids
        kinds = [SINKS[name] for name in self.formats if name in SINKS]
        self._sinks = [kind(self.folder, ids, overwrite=self.overwrite) for kind in kinds]
        stack.callback(self._finish_sinks)

    def _finish_sinks(self) -> None:
        for sink in self._sinks:
            if sink.claimed:
                sink.finish()
            self.summary.outputs += sink.paths

    # -- pictures ---------------------------------------------------------------------------------------------------

    def _run_pictures(self, pictures: Sequence[Picture], alone: bool) -> None:
        coco = _CocoOutputs() if "coco" in self.formats else None
        results, listed = (name if self.shard is None else f"{self.shard.name(name[:-5])}.json" for name in COCO_FILES)
        if coco is not None:
            self._require_own(results, listed)
        made_up = image_ids([picture.path for picture in pictures])
        ids = [made if p.image_id is None else p.image_id for p, made in zip(pictures, made_up, strict=True)]
        names = [self._names(picture.folder / picture.path.stem) for picture in pictures]
        work: Sequence[_Work] = list(map(_Work, pictures, ids, names))
        if self.shard is not None:
            work = self.shard.of(work)
        try:
            with interrupt_stops() as stopped:
                self._run_batches(work, coco, stopped, alone)
        finally:  # also of an interrupted or failed run
            if coco is not None and (coco.images or not alone):
                self._write_json(listed, {"images": coco.images})
                self._write(self.folder / results, coco.results)

    def _run_batches(
        self, work: Sequence[_Work], coco: _CocoOutputs | None, stopped: threading.Event, alone: bool
    ) -> None:
        """Decoding, the network, drawing and writing overlap; this thread writes."""
        with self._running(self._read_pictures(work, alone), stopped) as done:
            for job in self.progress.track(done, "predict", len(work)):
                one, detections = job.tag, job.detections
                assert detections is not None
                self._count(job, detections)
                if coco is not None:
                    coco.add(one, detections, self._category_ids)
                with self._reported(one.path, alone):
                    self._write_picture(one, job, detections)
                self._watch(one.name, job.drawn, stopped)
        if stopped.is_set():
            left = len(work) - self.summary.images - len(self.summary.failed)
            self._interrupt(f"{left} of {len(work)} pictures are left")

    def _running(
        self, pictures: Iterator[StreamFrame], stopped: threading.Event
    ) -> contextlib.AbstractContextManager[Iterator[StreamFrame]]:
        """Pictures with their detections, drawn; tiled ones in this thread, which also shows the progress of tiles."""
        batch = self.multiframe or self.model.backend.max_batch
        stages = (*detect_stages(self.model, batch, stopped=stopped.is_set), each(self._draw_picture))
        if isinstance(self.model, SlicedPredictor):
            self.model.progress = self.progress
            detect, draw = stages
            return contextlib.nullcontext(iter(draw(iter(detect(pictures)))))
        return Pipeline[StreamFrame](pictures, *stages, name="pictures")

    def _read_pictures(self, work: Iterable[_Work], alone: bool) -> Iterator[StreamFrame]:
        for one in work:
            image: Image | None = None
            with self._reported(one.path, alone), self._timed("decode"):
                self._require_own(*self._picture_files(one).values())
                image = read_image(one.path)
            if image is not None:
                yield StreamFrame(image, one)

    def _draw_picture(self, job: StreamFrame) -> StreamFrame:
        assert job.detections is not None
        if "overlay" in self.formats or self.making.watched:
            with self._timed("draw"):
                job.drawn = draw_detections(job.image, job.detections, style=self.making.style)
        return job

    def _picture_files(self, work: _Work) -> dict[str, str]:
        """Names of the outputs of a picture, by format."""
        suffix = ".png" if work.path.suffix.lower() in _LOSSLESS else ".jpg"
        files = {"overlay": f"{work.name}_overlay{suffix}", "json": f"{work.name}.json"}
        return {kind: name for kind, name in files.items() if kind in self.formats}

    def _write_picture(self, work: _Work, job: StreamFrame, detections: Detections) -> None:
        names = self._picture_files(work)
        with self._timed("write"):
            if "overlay" in names:
                assert job.drawn is not None
                self._write_image(names["overlay"], job.drawn)
            if "json" in names:
                self._write_json(names["json"], {"schema": DETECTIONS, "image": str(work.path), **detections.to_json()})
            for sink in self._sinks:
                sink.take(SinkItem(work.name, str(work.path), job.image, detections))

    def _require_own(self, *names: str) -> None:
        require_own(self.folder, names, overwrite=self.overwrite)

    def _interrupt(self, rest: str) -> None:
        self.summary.interrupted = True
        _log.error("interrupted: %s; what was done is kept", rest)

    def _write_image(self, name: str, image: Image) -> None:
        target = self.folder / name
        ok, data = cv2.imencode(target.suffix, image)
        if not ok:
            raise OutputError(
                f"cannot encode {target}: the picture is probably larger than the {target.suffix} format allows"
            )
        write_bytes(target, mark_picture(data.tobytes()))
        self.summary.outputs.append(target)

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self._write(self.folder / name, {**JSON_MARK, **value})

    def _write(self, target: Path, value: object) -> None:
        write_json(target, value)
        self.summary.outputs.append(target)

    # -- streams ----------------------------------------------------------------------------------------------------

    def _run_streams(self, group: Sequence[NamedStream], alone: bool) -> None:
        """Run the streams of a group side by side, in one batch."""
        with contextlib.ExitStack() as opened:
            streams: list[RunningStream] = []
            for stream in group:
                with self._reported(stream, alone):
                    name = self._names(stream.folder / stream.stem)
                    self._require_own(*VideoOutputs.files(name, self.formats, self.making.suffix).values())
                    frames = opened.enter_context(read_timed(stream.name, options=self.reading))
                    streams.append(RunningStream(stream, frames, name, self.making))
            if not streams:
                return
            failure = self._run_frames(streams, opened)
            for one in streams:
                with self._reported(one.stream, alone):
                    self._conclude(one)
            if failure is not None:
                raise failure

    def _run_frames(self, streams: list[RunningStream], opened: contextlib.ExitStack) -> YolactDeployError | None:
        """Detect and write until the end or a request to stop; the error that ended it after some frames."""

        def stop_reading() -> None:
            for one in streams:
                one.frames.stop()

        stopped = opened.enter_context(interrupt_stops(stop_reading))
        live = any(one.frames.live for one in streams)
        most = self.model.backend.max_batch
        batch = self.multiframe or check_multiframe(self.model, None if len(streams) == 1 else min(most, len(streams)))
        source = streams[0].jobs() if len(streams) == 1 else merged(streams)
        stages = (*detect_stages(self.model, batch, wait=not live, stopped=stopped.is_set), each(self._follow))
        frames = [one.frames.info.frames for one in streams]
        total = None if None in frames else sum(min(n, self.max_frames or n) for n in frames if n)
        # What waits between stages is late by then, so live sources let little wait.
        pipeline: Pipeline[StreamFrame] = Pipeline(source, *stages, depth=1 if live else 4, name="frames")
        with contextlib.ExitStack() as written, pipeline as done:
            written.callback(stop_reading)
            try:
                what = f"predict {streams[0].name}" if len(streams) == 1 else "predict"
                for job in self.progress.track(self._until_full(done, streams), what, total, "frames"):
                    self._take_frame(job, written, stopped)
            except (InputError, BackendError) as error:
                if not any(one.outputs for one in streams):
                    raise
                return error  # what is done is kept
        if stopped.is_set() and not live:
            ends = ", ".join(f"{one.stream} ends after {one.outputs.count if one.outputs else 0}" for one in streams)
            self._interrupt(f"{ends} frames")
        return None

    def _until_full(self, jobs: Iterable[StreamFrame], streams: Sequence[RunningStream]) -> Iterator[StreamFrame]:
        """The jobs until each stream has its --max-frames; ends by itself, so that the last frame is counted."""
        for job in jobs:
            yield job
            if all(self._is_full(one) for one in streams):
                return

    def _is_full(self, one: RunningStream) -> bool:
        return self.max_frames is not None and one.outputs is not None and one.outputs.count >= self.max_frames

    def _follow(self, job: StreamFrame) -> StreamFrame:
        assert job.detections is not None
        stream: RunningStream = job.tag.stream
        with self._timed("track" if self.making.track else "detect"):
            job.detections = stream.followed(job.detections)
        if "overlay" in self.formats or self.making.watched:
            with self._timed("draw"):
                job.drawn = stream.drawn(job)
        return job

    def _take_frame(self, job: StreamFrame, written: contextlib.ExitStack, stopped: threading.Event) -> None:
        """Write a frame and its detections, and show it."""
        one: RunningStream = job.tag.stream
        detections = job.detections
        assert detections is not None
        if self._is_full(one):
            return
        if one.outputs is None:
            files = VideoOutputs.files(one.name, self.formats, self.making.suffix)
            keeps_audio = one.stream.is_file and self.reading.stride == 1
            one.outputs = VideoOutputs(
                written,
                {kind: self.folder / name for kind, name in files.items()},
                job.image,
                self._rate_of(one, job.image),
                audio=one.stream.name if keeps_audio else None,
                start=self.reading.start,
            )
        self._count(job, detections)
        with self._timed("write"):
            number = one.outputs.count
            one.outputs.write(job.tag.seconds, detections, job.drawn)
            for sink in self._sinks:
                sink.take(SinkItem(one.name, str(one.stream), job.image, detections, number, job.tag.seconds))
        self._watch(one.name, job.drawn, stopped)

    def _rate_of(self, one: RunningStream, frame: Image) -> float:
        """The frame rate of the video; of a live one without times, what the model reaches."""
        if not one.frames.live or "overlay" not in self.formats or has_av():
            return one.frames.info.fps
        start = time.perf_counter()
        draw_detections(frame, self.model([frame])[0])
        return min(DEFAULT_FPS, 1 / (time.perf_counter() - start))

    def _watch(self, name: str, drawn: Image | None, stopped: threading.Event) -> None:
        if drawn is not None and self._server is not None:
            self._server.show(drawn)
        if drawn is not None and self._window is not None and not self._window.show(name, drawn):
            stopped.set()

    def _conclude(self, one: RunningStream) -> None:
        """Note what a stream came to, and raise the error that ended it."""
        if one.outputs is not None:
            self.summary.outputs += one.outputs.paths
            if one.outputs.varies and not one.frames.live and one.outputs.video is not None and not has_av():
                _log.warning(
                    "%s: the time between frames varies; the overlay plays at a constant %.4g frames/s",
                    one.stream, one.frames.info.fps,
                )  # fmt: skip
        summary: StreamSummary = {"source": str(one.stream)}
        for kind in _STREAM_COUNTS:
            if number := getattr(one.frames.counts, kind):
                summary[kind] = number
        if counted := [counter.to_dict() for counter in one.counters]:
            summary["counts"] = counted
        if len(summary) > 1:
            self.summary.streams.append(summary)
        if one.error is not None:
            raise one.error

    # -- both -------------------------------------------------------------------------------------------------------

    def _count(self, job: StreamFrame, detections: Detections) -> None:
        for stage, spent in job.spent.items():
            if stage != "decode":  # done before and timed there
                self.summary.spent_ms[stage] += spent
        self.summary.images += 1
        self.summary.detections += len(detections)

    @contextlib.contextmanager
    def _reported(self, source: Path | NamedStream, alone: bool) -> Iterator[None]:
        """Report a source that failed and continue, unless it is the only one or nothing more can be written."""
        try:
            yield
        except (InputError, OutputError) as error:
            if alone or (isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_SPACE):
                raise
            _log.error("%s", error)
            self.summary.failed.append({"source": str(source), "error": str(error)})

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.summary.spent_ms[stage] += (time.perf_counter() - start) * 1e3


def require_own(folder: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Raise :class:`OutputError` if an output would replace a file that no run of this command wrote."""
    for name in names:
        target = folder / name
        # COCO results are a list of detections and nothing else: the file beside them has the mark.
        marked = name.replace("detections.coco", "detections.images")
        if overwrite or not os.path.lexists(target) or is_marked(folder / marked):
            continue
        raise OutputError(
            f"{target} exists, and no earlier run wrote it: choose another folder with -o, or replace it with "
            "--overwrite"
        )


class _Work(NamedTuple):
    """A picture to run."""

    picture: Picture
    image_id: int
    name: str  #: of its outputs, without the suffix

    @property
    def path(self) -> Path:
        return self.picture.path


class _CocoOutputs:
    """What the COCO files of a run will have."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def add(self, work: _Work, detections: Detections, category_ids: Sequence[int]) -> None:
        size = {"width": detections.width, "height": detections.height}
        # Ids that are made up are marked by the name, which 'eval' takes instead.
        name = {"file_name": str(work.path)} if work.picture.image_id is None else {}
        self.results += [{**result, **name} for result in detections.to_coco(work.image_id, category_ids)]
        self.images.append({"id": work.image_id, "file_name": str(work.path), **size})


@contextlib.contextmanager
def interrupt_stops(stop_also: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, as a request to end and keep what is done.

    The second one interrupts as usual.

    Args:
        stop_also: called by the handler after the event is set
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        stop_also()
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    handled = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, stop) for number in handled}
    try:
        yield stopped
    finally:
        restore()

"""The work of ``yolact-deploy predict``: run a model over sources and write each output file atomically."""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write, write_bytes, write_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections
from yolact_deploy.errors import BackendError, InputError, OutputError, YolactDeployError
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.streams.marks import JSON_MARK, is_marked, mark_picture
from yolact_deploy.streams.readers.av_reader import has_av
from yolact_deploy.streams.sources import NamedStream, Picture, Sources, UniqueNames, image_ids
from yolact_deploy.streams.timed_frames import DEFAULT_FPS, ReadOptions, TimedFrame
from yolact_deploy.streams.video import read_timed
from yolact_deploy.streams.writers import VideoWriter

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

#: lossless formats; overlays of such pictures are written lossless as well
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
#: names of the COCO files
_COCO = ("detections.coco.json", "detections.images.json")
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
    failed: list[dict[str, str]] = field(default_factory=list)
    #: what folders have besides pictures, by the reason for which it is left out
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    #: whether Ctrl-C ended the run early
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the mean milliseconds of each stage per image."""
        count = max(self.images, 1)
        return {
            "images": self.images,
            "detections": self.detections,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else 0.0,
            "mean_ms": {stage: round(spent / count, 3) for stage, spent in self.spent_ms.items()},
            "outputs": [str(path) for path in self.outputs],
            "failed": self.failed,
            "left_out": {reason: list(map(str, paths)) for reason, paths in self.left_out.items()},
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


def select_classes(config: YolactConfig, names: Sequence[str] | None) -> frozenset[int] | None:
    """Class indices of the names; None (all) without names.

    Raises:
        InputError: a name that is not a class of the model.
    """
    if not names:
        return None
    for name in names:
        if name not in config.class_names:
            near = difflib.get_close_matches(name, config.class_names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            known = ", ".join(config.class_names)
            raise InputError(f"--class: the model has no class {name!r}: {hint}Its classes are {known}")
    return frozenset(config.class_names.index(name) for name in names)


class PredictionJob:
    """One run of a model over sources.

    Args:
        folder: output folder
        formats: any of "overlay", "json", "coco"
        labels: class indices to keep, None for all
        progress: counts pictures and frames
        max_frames: of each video, None for all
        overwrite: replace files that no earlier run wrote
        reading: how to read streams
    """

    def __init__(
        self,
        model: Predictor,
        folder: Path,
        formats: Sequence[str],
        labels: frozenset[int] | None = None,
        *,
        progress: Progress = SILENT,
        max_frames: int | None = None,
        overwrite: bool = False,
        reading: ReadOptions | None = None,
    ) -> None:
        self.reading = reading or ReadOptions()
        self.model = model
        self.folder = folder
        self.formats = formats
        self.labels = labels
        self.progress = progress
        self.max_frames = max_frames
        self.overwrite = overwrite
        self.summary = Summary()
        self._names = UniqueNames(_COCO if "coco" in formats else ())

    def run(self, sources: Sources) -> Summary:
        """Process all sources.

        A source that cannot be read, or whose outputs cannot be written, is reported and skipped, unless it is the only
        one. Ctrl-C and SIGTERM end the run after the picture or frame at work, and keep what is done.

        Raises:
            InputError: the only source cannot be read.
            OutputError, BackendError: writing or the network failed.
        """
        alone = len(sources.pictures) + len(sources.streams) == 1
        start = time.perf_counter()
        self.summary.left_out = dict(sources.left_out)
        if sources.pictures:
            self._run_pictures(sources.pictures, alone)
        for video in sources.streams:
            if not self.summary.interrupted:
                with self._reported(video, alone):
                    self._run_video(video)
        self.summary.seconds = time.perf_counter() - start
        return self.summary

    # -- pictures ---------------------------------------------------------------------------------------------------

    def _run_pictures(self, pictures: Sequence[Picture], alone: bool) -> None:
        coco = _CocoOutputs() if "coco" in self.formats else None
        if coco is not None:
            self._require_own(*_COCO)
        made_up = image_ids([picture.path for picture in pictures])
        ids = [made if p.image_id is None else p.image_id for p, made in zip(pictures, made_up, strict=True)]
        names = [self._names(picture.folder / picture.path.stem) for picture in pictures]
        work = list(map(_Work, pictures, ids, names))
        try:
            with _interrupt_stops() as stopped:
                self._run_batches(work, coco, stopped, alone)
        finally:  # also of an interrupted or failed run
            if coco is not None and (coco.images or not alone):
                self._write_json("detections.images.json", {"images": coco.images})
                self._write(self.folder / "detections.coco.json", coco.results)

    def _run_batches(
        self, work: Sequence[_Work], coco: _CocoOutputs | None, stopped: threading.Event, alone: bool
    ) -> None:
        batch: list[tuple[_Work, Image]] = []
        for index, one in enumerate(self.progress.track(work, "predict"), start=1):
            with self._reported(one.path, alone), self._timed("decode"):
                self._require_own(*self._picture_files(one).values())
                batch.append((one, read_image(one.path)))
            ends = index == len(work) or stopped.is_set()
            if batch and (ends or len(batch) == self.model.backend.max_batch):
                for (done, image), detections in zip(batch, self._detect([b[1] for b in batch]), strict=True):
                    if coco is not None:
                        coco.add(done, detections, self.model.config.category_ids)
                    with self._reported(done.path, alone):
                        self._write_picture(done, image, detections)
                batch = []
            if stopped.is_set():
                self._interrupt(f"{len(work) - index} of {len(work)} pictures are left")
                return

    def _picture_files(self, work: _Work) -> dict[str, str]:
        """Names of the outputs of a picture, by format."""
        suffix = ".png" if work.path.suffix.lower() in _LOSSLESS else ".jpg"
        files = {"overlay": f"{work.name}_overlay{suffix}", "json": f"{work.name}.json"}
        return {kind: name for kind, name in files.items() if kind in self.formats}

    def _write_picture(self, work: _Work, image: Image, detections: Detections) -> None:
        names = self._picture_files(work)
        if "overlay" in names:
            with self._timed("draw"):
                drawn = draw_detections(image, detections)
            with self._timed("write"):
                self._write_image(names["overlay"], drawn)
        if "json" in names:
            with self._timed("write"):
                self._write_json(names["json"], {"image": str(work.path), **detections.to_json()})

    def _require_own(self, *names: str) -> None:
        """Raise :class:`OutputError` if an output would replace a file that no run of this command wrote."""
        # COCO results are a list of detections and nothing else: the file beside them has the mark.
        marked = {_COCO[0]: _COCO[1]}
        for name in names:
            target = self.folder / name
            if self.overwrite or not os.path.lexists(target) or is_marked(self.folder / marked.get(name, name)):
                continue
            raise OutputError(
                f"{target} exists, and no earlier run wrote it: choose another folder with -o, or replace it with "
                "--overwrite"
            )

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

    # -- videos -----------------------------------------------------------------------------------------------------

    def _run_video(self, source: NamedStream) -> None:
        name = self._names(source.folder / source.stem)
        self._require_own(*_VideoOutputs.files(name, self.formats))
        with read_timed(source.name, options=self.reading) as frames, contextlib.ExitStack() as stack:
            info = None if frames.live else frames.info
            first = next(frames)
            fps = info.fps if info else self._camera_fps(first.image)
            audio = source.name if source.is_file and self.reading.stride == 1 else None
            outputs = _VideoOutputs(stack, self.folder, name, self.formats, fps, first.image, audio, self.reading.start)
            stopped = stack.enter_context(_interrupt_stops())
            total = min(filter(None, (info.frames if info else None, self.max_frames)), default=None)
            wanted = itertools.islice(itertools.chain([first], frames), self.max_frames)
            failure = self._run_frames(self.progress.track(wanted, "predict", total, "frames"), outputs, stopped)
            if stopped.is_set() and info is not None:
                self._interrupt(f"{source} ends after {outputs.count} frames")
        self.summary.outputs += outputs.paths
        if outputs.varies and info is not None and not has_av():
            _log.warning(
                "%s: the time between frames varies; the overlay plays at a constant %.4g frames/s", source, fps
            )
        if failure is not None:
            raise failure

    def _run_frames(
        self, frames: Iterable[TimedFrame], outputs: _VideoOutputs, stopped: threading.Event
    ) -> YolactDeployError | None:
        """Detect and write until the end or a request to stop; the error that ended it after some frames."""
        try:
            for frame in frames:
                (detections,) = self._detect([frame.image])
                outputs.write_line(frame.seconds, detections)
                if outputs.video is not None:
                    with self._timed("draw"):
                        drawn = draw_detections(frame.image, detections)
                    with self._timed("write"):
                        outputs.video.write(drawn, frame.seconds - self.reading.start)
                if stopped.is_set():
                    break
        except (InputError, BackendError) as error:
            if not outputs.count:
                raise
            return error  # what is done is kept
        return None

    def _camera_fps(self, frame: Image) -> float:
        """The frame rate that the model reaches, so that the recording plays at about the right speed."""
        self.model([frame])
        start = time.perf_counter()
        draw_detections(frame, self.model([frame])[0])
        return min(DEFAULT_FPS, 1 / (time.perf_counter() - start))

    # -- both -------------------------------------------------------------------------------------------------------

    def _detect(self, images: list[Image]) -> list[Detections]:
        results = self.model(images)
        for stage, spent in self.model.timings.items():
            if stage != "decode":  # done before and timed there
                self.summary.spent_ms[stage] += spent
        if self.labels is not None:
            results = [result[np.isin(result.labels, list(self.labels))] for result in results]
        self.summary.images += len(images)
        self.summary.detections += sum(map(len, results))
        return results

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


class _VideoOutputs:
    """The output files of one video; they appear under their names when ``stack`` exits without an error."""

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, name: str, formats: Sequence[str], fps: float, first: Image,
        audio: str | None = None, audio_start: float = 0.0,
    ) -> None:  # fmt: skip
        self.paths = [folder / file for file in self.files(name, formats)]
        self.video: VideoWriter | None = None
        self.count = 0
        #: whether frames are shown more than a frame's time off those of the overlay
        self.varies = False
        self._lines: TextIO | None = None
        self._fps = fps
        if "overlay" in formats:
            self.video = stack.enter_context(
                VideoWriter(self.paths[0], fps, first.shape[1::-1], audio=audio, audio_start=audio_start)
            )
        if "json" in formats:
            temporary = stack.enter_context(atomic_write(self.paths[-1]))
            self._lines = stack.enter_context(temporary.open("w", encoding="utf-8"))

    @staticmethod
    def files(name: str, formats: Sequence[str]) -> list[str]:
        """Names of the files for the formats."""
        files = {"overlay": f"{name}_overlay.mp4", "json": f"{name}.jsonl"}
        return [file for kind, file in files.items() if kind in formats]

    def write_line(self, seconds: float, detections: Detections) -> None:
        """Write one line of JSON per frame; ``time`` is in seconds from the start of the video."""
        if self._lines is not None:
            line = {**JSON_MARK, "frame": self.count, "time": round(seconds, 4), **detections.to_json()}
            self._lines.write(json.dumps(line) + "\n")
        self.varies |= self.video is not None and abs(seconds - self.count / self._fps) > 1.5 / self._fps
        self.count += 1


@contextlib.contextmanager
def _interrupt_stops() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, as a request to end and keep what is done.

    The second one interrupts as usual.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        stopped.set()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    handled = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, stop) for number in handled}
    try:
        yield stopped
    finally:
        restore()

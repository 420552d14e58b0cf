"""The work of ``yolact-deploy predict``: run a model over sources and write each output file atomically."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write, write_bytes, write_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections
from yolact_deploy.errors import InputError, OutputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.progress import SILENT, Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.streams.sources import Sources, UniqueNames, image_ids
from yolact_deploy.streams.video import DEFAULT_FPS, VideoWriter, probe_video, read_ahead

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

#: lossless formats; overlays of such pictures are written lossless as well
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


@dataclass
class Summary:
    """Counts and outputs; ``spent_ms`` is the sum over all images."""

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    spent_ms: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    outputs: list[Path] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

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
    ) -> None:
        self.model = model
        self.folder = folder
        self.formats = formats
        self.labels = labels
        self.progress = progress
        self.max_frames = max_frames
        self.summary = Summary()
        self._names = UniqueNames()

    def run(self, sources: Sources) -> Summary:
        """Process all sources.

        A picture or video that cannot be read is reported and skipped, unless it is the only source.

        Raises:
            InputError: the only source cannot be read.
            OutputError, BackendError: writing or the network failed.
        """
        alone = len(sources.pictures) + len(sources.videos) == 1
        start = time.perf_counter()
        if sources.pictures:
            self._run_pictures(sources.pictures, alone)
        for video in sources.videos:
            with self._reported(video, alone):
                self._run_video(video)
        self.summary.seconds = time.perf_counter() - start
        return self.summary

    # -- pictures ---------------------------------------------------------------------------------------------------

    def _run_pictures(self, pictures: Sequence[Path], alone: bool) -> None:
        results: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        work = list(zip(pictures, image_ids(pictures), strict=True))
        batch: list[tuple[Path, int, Image]] = []
        for index, (path, image_id) in enumerate(self.progress.track(work, "predict"), start=1):
            with self._reported(path, alone), self._timed("decode"):
                batch.append((path, image_id, read_image(path)))
            if batch and (len(batch) == self.model.backend.max_batch or index == len(work)):
                for (done, done_id, image), detections in zip(batch, self._detect([b[2] for b in batch]), strict=True):
                    self._write_picture(done, image, detections)
                    if "coco" in self.formats:
                        results += detections.to_coco(done_id, self.model.config.category_ids)
                        size = {"width": detections.width, "height": detections.height}
                        images.append({"id": done_id, "file_name": str(done), **size})
                batch = []
        if "coco" in self.formats:
            self._write_json("detections.coco.json", results)
            self._write_json("detections.images.json", {"images": images})

    def _write_picture(self, path: Path, image: Image, detections: Detections) -> None:
        name = self._names(path.stem)
        if "overlay" in self.formats:
            suffix = ".png" if path.suffix.lower() in _LOSSLESS else ".jpg"
            with self._timed("draw"):
                drawn = draw_detections(image, detections)
            with self._timed("write"):
                self._write_image(f"{name}_overlay{suffix}", drawn)
        if "json" in self.formats:
            with self._timed("write"):
                self._write_json(f"{name}.json", {"image": str(path), **detections.to_json()})

    def _write_image(self, name: str, image: Image) -> None:
        target = self.folder / name
        ok, data = cv2.imencode(target.suffix, image)
        if not ok:
            raise OutputError(
                f"cannot encode {target}: the picture is probably larger than the {target.suffix} format allows"
            )
        write_bytes(target, data.tobytes())
        self.summary.outputs.append(target)

    def _write_json(self, name: str, value: object) -> None:
        target = self.folder / name
        write_json(target, value)
        self.summary.outputs.append(target)

    # -- videos -----------------------------------------------------------------------------------------------------

    def _run_video(self, source: Path | int) -> None:
        info = None if isinstance(source, int) else probe_video(source)
        total = min(filter(None, (info.frames if info else None, self.max_frames)), default=None)
        name = self._names(f"camera{source}" if isinstance(source, int) else source.stem)
        with contextlib.closing(read_ahead(source)) as frames, contextlib.ExitStack() as stack:
            first = next(frames)
            fps = info.fps if info else self._camera_fps(first)
            outputs = _VideoOutputs(stack, self.folder / name, self.formats, fps, first)
            stopped = stack.enter_context(_interrupt_stops()) if info is None else threading.Event()
            wanted = itertools.islice(itertools.chain([first], frames), self.max_frames)
            for number, frame in enumerate(self.progress.track(wanted, "predict", total, "frames")):
                (detections,) = self._detect([frame])
                outputs.write_line(number, detections)
                if outputs.video is not None:
                    with self._timed("draw"):
                        drawn = draw_detections(frame, detections)
                    with self._timed("write"):
                        outputs.video.write(drawn)
                if stopped.is_set():
                    break
        self.summary.outputs += outputs.paths

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
    def _reported(self, source: Path | int, alone: bool) -> Iterator[None]:
        """Report a source that cannot be read and continue, unless it is the only one."""
        try:
            yield
        except InputError as error:
            if alone:
                raise
            _log.error("%s", error)
            self.summary.failed.append({"source": str(source), "error": str(error)})

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.summary.spent_ms[stage] += (time.perf_counter() - start) * 1e3


class _VideoOutputs:
    """The output files of one video; they appear under their names when ``stack`` exits without an error."""

    def __init__(
        self, stack: contextlib.ExitStack, stem: Path, formats: Sequence[str], fps: float, first: Image
    ) -> None:
        self.paths: list[Path] = []
        self.video: VideoWriter | None = None
        self._lines: TextIO | None = None
        self._fps = fps
        if "overlay" in formats:
            self.paths.append(stem.with_name(f"{stem.name}_overlay.mp4"))
            self.video = stack.enter_context(VideoWriter(self.paths[-1], fps, (first.shape[1], first.shape[0])))
        if "json" in formats:
            self.paths.append(stem.with_name(f"{stem.name}.jsonl"))
            temporary = stack.enter_context(atomic_write(self.paths[-1]))
            self._lines = stack.enter_context(temporary.open("w", encoding="utf-8"))

    def write_line(self, number: int, detections: Detections) -> None:
        """Write one line of JSON per frame; ``time`` is in seconds from the start of the video."""
        if self._lines is not None:
            line = {"frame": number, "time": round(number / self._fps, 4), **detections.to_json()}
            self._lines.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def _interrupt_stops() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets: it ends a camera stream and keeps the recording.

    The second Ctrl-C interrupts as usual.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stopped.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, previous)

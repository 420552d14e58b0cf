"""The work of ``yolact-deploy predict``: run a model over sources and write what it finds, file by file, atomically."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolact_deploy.artifact import atomic_write, write_bytes, write_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.console import progress
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections
from yolact_deploy.errors import InputError, OutputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.video import DEFAULT_FPS, VideoWriter, probe_video, read_ahead
from yolact_deploy.sources import Sources, UniqueNames, image_ids

_log = logging.getLogger(__name__)

Image = NDArray[np.uint8]

#: pictures of these kinds lose nothing when they are written, so neither do their overlays
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


@dataclass
class Summary:
    """What was done; times in milliseconds are added up over all images."""

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    spent_ms: Counter[str] = field(default_factory=Counter)
    outputs: list[Path] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the mean milliseconds of each stage for one image."""
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
    """Make a folder and check that it can be written; on failure remove it again where it is new and empty.

    Raises:
        OutputError: it cannot be made or written.
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
    """Class indices of the names; None, which means all, where no name is given.

    Raises:
        InputError: a name that the model does not know.
    """
    if not names:
        return None
    for name in names:
        if name not in config.class_names:
            near = difflib.get_close_matches(name, config.class_names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"the model knows no class {name!r}: {hint}Known are {', '.join(config.class_names)}")
    return frozenset(config.class_names.index(name) for name in names)


class Job:
    """One run of a model over sources.

    Args:
        folder: where outputs go
        formats: of "overlay", "json", "coco"
        labels: class indices to keep, None for all
        quiet: no progress
        max_frames: of each video, None for all
    """

    def __init__(
        self,
        model: Predictor,
        folder: Path,
        formats: Sequence[str],
        labels: frozenset[int] | None = None,
        *,
        quiet: bool = False,
        max_frames: int | None = None,
    ) -> None:
        self.model = model
        self.folder = folder
        self.formats = formats
        self.labels = labels
        self.quiet = quiet
        self.max_frames = max_frames
        self.summary = Summary()
        self._names = UniqueNames()

    def run(self, sources: Sources) -> Summary:
        """Work through all sources.

        A picture or video that cannot be read is reported and left out, unless it is the only source.

        Raises:
            InputError: the only source cannot be read.
            OutputError, BackendError: writing or the network failed.
        """
        alone = len(sources.pictures) + len(sources.videos) == 1
        start = time.perf_counter()
        if sources.pictures:
            self._run_pictures(sources.pictures, alone)
        for video in sources.videos:
            try:
                self._run_video(video)
            except InputError as error:
                if alone:
                    raise
                self._report(video, error)
        self.summary.seconds = time.perf_counter() - start
        return self.summary

    # -- pictures ---------------------------------------------------------------------------------------------------

    def _run_pictures(self, pictures: Sequence[Path], alone: bool) -> None:
        results: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        work = list(zip(pictures, image_ids(pictures), strict=True))
        batch: list[tuple[Path, int, Image]] = []
        for index, (path, image_id) in enumerate(progress(work, "predict", quiet=self.quiet), start=1):
            try:
                with self._timed("decode"):
                    batch.append((path, image_id, read_image(path)))
            except InputError as error:
                if alone:
                    raise
                self._report(path, error)
            if batch and (len(batch) == self.model.backend.max_batch or index == len(work)):
                for (done, done_id, image), found in zip(batch, self._detect([b[2] for b in batch]), strict=True):
                    self._write_picture(done, image, found)
                    if "coco" in self.formats:
                        results += found.to_coco(done_id, self.model.config.category_ids)
                        images.append({"id": done_id, "file_name": str(done), "width": found.width, "height": found.height})
                batch = []
        if "coco" in self.formats:
            self._write_json("detections.coco.json", results)
            self._write_json("detections.images.json", {"images": images})

    def _write_picture(self, path: Path, image: Image, found: Detections) -> None:
        name = self._names(path.stem)
        if "overlay" in self.formats:
            suffix = ".png" if path.suffix.lower() in _LOSSLESS else ".jpg"
            with self._timed("draw"):
                drawn = draw_detections(image, found)
            with self._timed("write"):
                self._write_image(f"{name}_overlay{suffix}", drawn)
        if "json" in self.formats:
            with self._timed("write"):
                self._write_json(f"{name}.json", {"image": str(path), **found.to_json()})

    def _write_image(self, name: str, image: Image) -> None:
        target = self.folder / name
        ok, data = cv2.imencode(target.suffix, image)
        if not ok:
            raise OutputError(f"cannot encode {target}: is the picture larger than {target.suffix} files may be?")
        write_bytes(target, data.tobytes())
        self.summary.outputs.append(target)

    def _write_json(self, name: str, value: object) -> None:
        target = self.folder / name
        write_json(target, value)
        self.summary.outputs.append(target)

    # -- videos -----------------------------------------------------------------------------------------------------

    def _run_video(self, source: Path | int) -> None:
        camera = isinstance(source, int)
        info = None if isinstance(source, int) else probe_video(source)
        fps = info.fps if info else DEFAULT_FPS
        total = min(filter(None, (info.frames if info else None, self.max_frames)), default=None)
        name = self._names(f"camera{source}" if isinstance(source, int) else source.stem)
        frames = read_ahead(source)
        with contextlib.ExitStack() as stack:
            stack.callback(frames.close)  # type: ignore[attr-defined]  # a generator, which ends its thread
            first = next(frames)
            lines = self._open_lines(stack, f"{name}.jsonl") if "json" in self.formats else None
            writer = self._open_video(stack, f"{name}_overlay.mp4", fps, first) if "overlay" in self.formats else None
            shown = progress(
                self._until_interrupt(itertools.islice(itertools.chain([first], frames), self.max_frames), camera),
                "predict",
                total,
                self.quiet,
                "frames",
            )
            for number, frame in enumerate(shown):
                (found,) = self._detect([frame])
                if lines is not None:
                    line = {"frame": number, "time": round(number / fps, 4), **found.to_json()}
                    lines.write(json.dumps(line) + "\n")
                if writer is not None:
                    with self._timed("draw"):
                        drawn = draw_detections(frame, found)
                    with self._timed("write"):
                        writer.write(drawn)

    def _open_lines(self, stack: contextlib.ExitStack, name: str) -> Any:
        target = self.folder / name
        temporary = stack.enter_context(atomic_write(target))
        self.summary.outputs.append(target)
        return stack.enter_context(open(temporary, "w", encoding="utf-8"))

    def _open_video(self, stack: contextlib.ExitStack, name: str, fps: float, first: Image) -> VideoWriter:
        target = self.folder / name
        writer = stack.enter_context(VideoWriter(target, fps, (first.shape[1], first.shape[0])))
        self.summary.outputs.append(target)
        return writer

    @staticmethod
    def _until_interrupt(frames: Iterable[Image], camera: bool) -> Iterator[Image]:
        """A camera has no end but Ctrl-C, which so is no failure: what was recorded is kept."""
        try:
            yield from frames
        except KeyboardInterrupt:
            if not camera:
                raise

    # -- both -------------------------------------------------------------------------------------------------------

    def _detect(self, images: list[Image]) -> list[Detections]:
        found = self.model(images)
        self.summary.spent_ms.update({k: v for k, v in self.model.timings.items() if k != "decode"})
        if self.labels is not None:
            found = [one[np.isin(one.labels, list(self.labels))] for one in found]
        self.summary.images += len(images)
        self.summary.detections += sum(map(len, found))
        return found

    def _report(self, source: Path | int, error: InputError) -> None:
        _log.error("%s", error)
        self.summary.failed.append({"source": str(source), "error": str(error)})

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.summary.spent_ms[stage] += (time.perf_counter() - start) * 1e3

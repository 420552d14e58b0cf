"""`Predictor`: images in, detections out, over any backend.

Thread-safe: a lock lets one image batch at a time through the network. Several predictors can live in one process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.postprocess import NMS_VARIANTS
from yolact_deploy.preprocess import check_image, read_image, resize_image
from yolact_deploy.runtime.backend import Backend, DetectSettings, Outputs

Image = NDArray[np.uint8]
Source = Image | str | os.PathLike[str]

STAGES = ("decode", "preprocess", "network", "detect", "paste")


class Predictor:
    """A loaded model.

    >>> model = yolact_deploy.load("yolact.onnx")          # doctest: +SKIP
    >>> detections = model(cv2.imread("street.jpg"))       # doctest: +SKIP

    Args:
        backend: the network
        score_threshold: detections that score lower are left out; 0 keeps all (as evaluation wants)
        nms: variant for graphs that end in heads: "fast", "cross-class", "traditional"; default as exported
        lazy_masks: False pastes the masks inside the call, so that :attr:`timings` covers them
    """

    def __init__(
        self, backend: Backend, *, score_threshold: float = 0.15, nms: str | None = None, lazy_masks: bool = True
    ) -> None:
        if nms is not None and nms not in NMS_VARIANTS:
            raise InputError(f"nms: expected one of {', '.join(NMS_VARIANTS)}, got {nms!r}")
        if not 0 <= score_threshold < 1:
            raise InputError(f"score_threshold: expected 0 <= value < 1, got {score_threshold}")
        self.backend = backend
        self.score_threshold = score_threshold
        self.nms = nms or ("cross-class" if backend.metadata.cross_class else "fast")
        self.lazy_masks = lazy_masks
        #: milliseconds of each of :data:`STAGES` in the last call; "paste" is 0 while masks are lazy
        self.timings: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def config(self) -> YolactConfig:
        return self.backend.metadata.config

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @overload
    def __call__(self, images: Source) -> Detections: ...  # type: ignore[overload-overlap]  # str is a Sequence too
    @overload
    def __call__(self, images: Sequence[Source]) -> list[Detections]: ...
    def __call__(self, images: Source | Sequence[Source]) -> Detections | list[Detections]:
        """Detect in one image or a list of them; each a uint8 BGR array [H, W, 3] or the path of a picture.

        Raises:
            InputError: an image that cannot be read or has another shape or dtype.
            BackendError: the runtime failed.
        """
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            return self._predict([images])[0]
        return self._predict(list(images))

    def _predict(self, sources: list[Source]) -> list[Detections]:
        timer = _StageTimer()
        results: list[Detections] = []
        step = self.backend.max_batch
        for first in range(0, len(sources), step):
            with timer.stage("decode"):
                images = [_image(source) for source in sources[first : first + step]]
            with timer.stage("preprocess"):
                inputs = self.preprocess(images)
            with self._lock:
                if self._closed:
                    raise BackendError("this predictor is closed: load the model again")
                with timer.stage("network"):
                    outputs = self.backend.run(inputs)
            for index, image in enumerate(images):
                with timer.stage("detect"):
                    found = self.postprocess(outputs, index, image.shape)
                if not self.lazy_masks:
                    with timer.stage("paste"):
                        _ = found.crops
                results.append(found)
        self.timings = timer.spent
        return results

    def preprocess(self, images: Sequence[Image]) -> NDArray[Any]:
        """BGR images to the network's input [N, S, S, 3], filled up with zeros where the batch is fixed."""
        size, dtype = self.config.image_size, self.backend.metadata.input_dtype
        if len(images) == 1 and (self.backend.max_batch == 1 or not self.backend.fixed_batch):
            return resize_image(images[0], size, dtype)[None]
        count = self.backend.max_batch if self.backend.fixed_batch else len(images)
        batch = np.zeros((count, size, size, 3), dtype=dtype)
        for slot, image in zip(batch, images, strict=False):
            slot[...] = resize_image(image, size, dtype)
        return batch

    def postprocess(self, outputs: Outputs, index: int, shape: Sequence[int]) -> Detections:
        """Detections of image ``index`` of a batch, for an image of ``shape`` (H, W, ...)."""
        found = self.backend.detect(outputs, index, DetectSettings(self.score_threshold, self.nms))
        return Detections.from_normalized(
            found.boxes,
            found.scores,
            found.labels,
            found.masks,
            class_names=self.config.class_names,
            height=shape[0],
            width=shape[1],
            paste=self.backend.paste,
        )

    def stream(self, source: str | os.PathLike[str] | int | Iterable[Image]) -> Iterator[tuple[Image, Detections]]:
        """Yield (frame, detections) of a video file, a camera number or an iterable of BGR frames.

        Frames are decoded in a thread of their own, a few ahead, while the network works.
        """
        from yolact_deploy.runtime.video import read_ahead

        for frame in read_ahead(source):
            yield frame, self(frame)

    def warm_up(self, times: int = 1) -> None:
        """Run an empty image, so that the first real one is not slowed by start-up work."""
        size = self.config.image_size
        for _ in range(times):
            self(np.zeros((size, size, 3), np.uint8))

    def close(self) -> None:
        """Free the network; the predictor cannot be used afterwards."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.backend.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _StageTimer:
    """Adds up the milliseconds spent in each stage of one call."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spent[name] += (time.perf_counter() - start) * 1e3


def _image(source: Source) -> Image:
    return read_image(source) if isinstance(source, (str, os.PathLike)) else check_image(source)

"""`Predictor`: images in, detections out, over any backend.

A backend that takes frames as they are (`FrameHook`) gets them, and gives masks that are pasted; for the others images
are resized here, and their masks pasted when they are asked for.

Thread-safe: one image batch at a time goes through the network. Several predictors can live in one process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import MaskWindows
from yolact_deploy.preprocess import check_image, read_image, resize_image
from yolact_deploy.runtime.backend import Backend, FrameHook, FrameTicket
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import DetectSettings, ImageDetections, Outputs
from yolact_deploy.vocabulary import NMS_VARIANTS, check_word

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections

Image = NDArray[np.uint8]


class DlpackArray(Protocol):
    """An array of torch, CuPy and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...


class CudaArray(Protocol):
    """An array on an NVIDIA GPU of pycuda, Numba and others."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


#: a BGR image, the path of a picture, or where the backend takes it an image in device memory
Source = Image | str | os.PathLike[str] | DlpackArray | CudaArray

_Item = TypeVar("_Item")
_Started = TypeVar("_Started")


class Predictor:
    """A loaded model.

    >>> model = yolact_deploy.load("yolact.onnx")          # doctest: +SKIP
    >>> detections = model(cv2.imread("street.jpg"))       # doctest: +SKIP

    Args:
        backend: the network
        score_threshold: detections that score lower are left out; 0 keeps all (as evaluation wants)
        nms: variant for graphs that end in heads: "fast", "cross-class", "traditional"; default as exported
        lazy_masks: False pastes the masks inside the call, so that :attr:`timings` covers them; a backend with a frame
            hook always does so
    """

    def __init__(
        self, backend: Backend, *, score_threshold: float = 0.15, nms: str | None = None, lazy_masks: bool = True
    ) -> None:
        if nms is not None:
            check_word("nms", nms, NMS_VARIANTS)
        if not 0 <= score_threshold < 1:
            raise InputError(f"score_threshold: expected 0 <= value < 1, got {score_threshold}")
        self.backend = backend
        self.score_threshold = score_threshold
        self.nms = nms or ("cross-class" if backend.metadata.cross_class else "fast")
        self.lazy_masks = lazy_masks
        #: milliseconds of each of :attr:`stages` in the last call; "paste" is 0 while masks are lazy
        self.timings: dict[str, float] = dict.fromkeys(self.stages, 0.0)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def config(self) -> YolactConfig:
        return self.backend.metadata.config

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def stages(self) -> tuple[str, ...]:
        """The keys of :attr:`timings`, in order; :data:`~yolact_deploy.runtime.stage_timer.PARTS` explains them.

        decode, preprocess, network, nms, assembly, detect and paste where the network gives heads to the host. Several
        at once are one stage with all their names: network+nms+assembly where the graph goes on to detections. On a
        GPU also copy, upload and download; there the last stage is detect, and paste, which writes the packed masks
        straight into host memory, leaves only boxes, scores and labels to download.
        """
        hook = self._hook
        if hook is not None:
            return ("decode", *hook.stages, "detect")
        return ("decode", "preprocess", *self.backend.run_stages, *self.backend.tail.stages, "detect", "paste")

    @property
    def _settings(self) -> DetectSettings:
        return DetectSettings(self.score_threshold, self.nms)

    @property
    def _hook(self) -> FrameHook | None:
        """The backend's frame hook, where it has one that serves the present settings."""
        hook = self.backend.frames
        return hook if hook is not None and hook.serves(self._settings) else None

    @overload
    def __call__(self, images: Source) -> Detections: ...  # type: ignore[overload-overlap]  # str is a Sequence too
    @overload
    def __call__(self, images: Sequence[Source]) -> list[Detections]: ...
    def __call__(self, images: Source | Sequence[Source]) -> Detections | list[Detections]:
        """Detect in one image or a list of them; each a uint8 BGR array [H, W, 3] or the path of a picture.

        A backend on a GPU also takes arrays in the GPU's memory (torch, CuPy, pycuda and whatever else has
        ``__cuda_array_interface__`` or DLPack), which must not be written to before the call returns. Lists longer than
        a batch overlap there: one batch is put together while the one ahead is on the GPU.

        Raises:
            InputError: an image that cannot be read or has another shape or dtype.
            BackendError: the runtime failed.
        """
        sources, single = self._sources(images)
        found = self._predict(sources)
        return found[0] if single else found

    def _sources(self, images: Source | Sequence[Source]) -> tuple[list[Source], bool]:
        """The images as a list, and whether there was but one and no list."""
        if isinstance(images, (str, os.PathLike, np.ndarray)):
            return [images], True
        if self.backend.frames is not None and self.backend.frames.is_device_array(images):
            return [cast("Source", images)], True
        return list(cast("Sequence[Source]", images)), False

    def _predict(self, sources: list[Source]) -> list[Detections]:
        hook, step = self._hook, self.backend.max_batch
        batches = (sources[first : first + step] for first in range(0, len(sources), step))
        timer = StageTimer(self.stages)
        if hook is None:
            results = [found for batch in batches for found in self._run(batch, timer)]
        else:
            tickets = _ahead(batches, lambda batch: self._submit(hook, batch, timer), hook.depth)
            results = [found for ticket in tickets for found in self._collect(ticket, timer)]
        self.timings = timer.spent
        return results

    def _run(self, sources: list[Source], timer: StageTimer) -> list[Detections]:
        """Detections of one batch by the stages of this module."""
        with timer.stage("decode"):
            images = [self._host_image(source) for source in sources]
        with timer.stage("preprocess"):
            inputs = self.preprocess(images)
        with self._lock:
            self._check_open()
            outputs = self.backend.run_timed(inputs, timer)
        return [
            self.postprocess(outputs, index, image.shape, timer, lazy_masks=self.lazy_masks)
            for index, image in enumerate(images)
        ]

    def _host_image(self, source: Source) -> Image:
        if self.backend.frames is not None and self.backend.frames.is_device_array(source):
            raise InputError(
                f"nms={self.nms!r} runs on the host and takes images in host memory, got one on the GPU: leave nms at "
                "its default, or give NumPy arrays"
            )
        return _image(source)

    def _submit(self, hook: FrameHook, sources: Sequence[Source], timer: StageTimer) -> FrameTicket:
        """Start on one batch."""
        with timer.stage("decode"):
            frames = [source if hook.is_device_array(source) else _image(source) for source in sources]
        self._check_open()
        return hook.submit(frames, self._settings)

    def _collect(self, ticket: FrameTicket, timer: StageTimer) -> list[Detections]:
        """Detections of one batch that was submitted."""
        pasted = ticket.result()
        with timer.stage("detect"):
            results = [self._detections(image, image.masks.height, image.masks.width) for image in pasted]
        timer.add(ticket.timings)
        return results

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this predictor is closed: load the model again")

    @overload
    def on_device(self, images: Source) -> DeviceDetections: ...  # type: ignore[overload-overlap]
    @overload
    def on_device(self, images: Sequence[Source]) -> list[DeviceDetections]: ...
    def on_device(self, images: Source | Sequence[Source]) -> DeviceDetections | list[DeviceDetections]:
        """Detect in one image or a batch of them, and leave what is found on the GPU, without waiting for it.

        The arrays are those of :class:`~yolact_deploy.runtime.cuda.results.DeviceDetections`. They are overwritten by
        the second call after this one: use or copy them before.

        Args:
            images: as for a call of the predictor; at most ``backend.max_batch``

        Raises:
            BackendError: the backend does not run on a GPU.
            InputError: too many images, or one that cannot be used.
        """
        hook = self._hook
        if hook is None:
            raise BackendError(
                f"backend {self.backend.name!r} leaves no results on a GPU with nms={self.nms!r}: load a TensorRT "
                "engine and leave nms at its default, or call the predictor for results in host memory"
            )
        sources, single = self._sources(images)
        if len(sources) > self.backend.max_batch:
            raise InputError(
                f"expected at most {self.backend.max_batch} images at once for results on the device, "
                f"got {len(sources)}: call for fewer, or export with a larger --batch"
            )
        frames = [source if hook.is_device_array(source) else _image(source) for source in sources]
        self._check_open()
        found = hook.submit(frames, self._settings, for_device=True).device_result()
        return found[0] if single else found

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

    def postprocess(
        self,
        outputs: Outputs,
        index: int,
        shape: Sequence[int],
        timer: StageTimer | None = None,
        *,
        lazy_masks: bool = True,
    ) -> Detections:
        """Detections of image ``index`` of a batch, for an image of ``shape`` (H, W, ...).

        Args:
            timer: receives the time of each stage
            lazy_masks: False pastes the masks here, the way of the backend
        """
        timer = timer or StageTimer()
        height, width, *_ = shape
        detected = self.backend.tail.detect(outputs, index, self._settings, timer)
        if not lazy_masks and isinstance(detected.masks, MaskWindows):
            with timer.stage("paste"):
                detected = detected._replace(masks=self.backend.tail.paste(detected.masks, height, width))
        with timer.stage("detect"):
            return self._detections(detected, height, width)

    def _detections(self, detected: ImageDetections, height: int, width: int) -> Detections:
        return Detections.from_normalized(*detected, class_names=self.class_names, height=height, width=width)

    def stream(
        self, source: str | os.PathLike[str] | int | Iterable[Image], *, overlap: bool | None = None
    ) -> Iterator[tuple[Image, Detections]]:
        """Yield (frame, detections) of a video file, a camera number or an iterable of BGR frames.

        Frames are decoded in a thread of their own, a few ahead, while the network works.

        Args:
            overlap: where the backend has a frame hook, hand a frame out only when the next one is under way: more
                frames a second, each a frame later. By default of all sources but cameras
        """
        from yolact_deploy.streams.video import is_camera, read_ahead

        frames, hook = read_ahead(source), self._hook
        if hook is None or (is_camera(source) if overlap is None else not overlap):
            for frame in frames:
                yield frame, self(frame)
            return

        def start(frame: Image) -> tuple[Image, FrameTicket, StageTimer]:
            timer = StageTimer(self.stages)
            return frame, self._submit(hook, [frame], timer), timer

        with contextlib.closing(frames):
            for frame, ticket, timer in _ahead(frames, start, hook.depth):
                (found,) = self._collect(ticket, timer)
                self.timings = timer.spent
                yield frame, found

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


def _ahead(items: Iterable[_Item], start: Callable[[_Item], _Started], depth: int) -> Iterator[_Started]:
    """What ``start`` makes of each item, handed out when ``depth`` of them are under way or no more come."""
    under_way: deque[_Started] = deque()
    for item in items:
        under_way.append(start(item))
        if len(under_way) == depth:
            yield under_way.popleft()
    yield from under_way


def _image(source: Source) -> Image:
    return read_image(source) if isinstance(source, (str, os.PathLike)) else check_image(source)

"""`Predictor`: images in, detections out, over any backend.

A backend with a frame hook receives frames as they are and returns pasted masks. For all others, images are resized
here and masks are pasted on first use.

Thread-safe: one batch at a time goes through the network. One process can have several predictors.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast, overload

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import MaskWindows
from yolact_deploy.preprocess import check_image, fit_image
from yolact_deploy.priors import place
from yolact_deploy.runtime.any_image import as_image, is_single
from yolact_deploy.runtime.backend import Backend, FrameHook, FrameTicket
from yolact_deploy.runtime.selection import SCORE_THRESHOLD, ScoreThreshold, Selection
from yolact_deploy.runtime.slicing import Slicing
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.streaming import StreamFrame, ahead, check_multiframe, detect_stages, in_lists, through_hook
from yolact_deploy.runtime.tails import (
    DetectionOutputs,
    DetectSettings,
    HeadOutputs,
    ImageDetections,
    Outputs,
    require_shapes,
)
from yolact_deploy.streams.threaded_stages import Pipeline
from yolact_deploy.vocabulary import NMS_VARIANTS, check_word

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections
    from yolact_deploy.streams.byte_track import TrackOptions
    from yolact_deploy.streams.timed_frames import ReadOptions

Image = NDArray[np.uint8]


class DlpackArray(Protocol):
    """An array of torch, CuPy and others."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...


class PilImage(Protocol):
    """An image of PIL."""

    mode: str

    def getexif(self) -> Any: ...


class CudaArray(Protocol):
    """An array on an NVIDIA GPU of pycuda, Numba and others."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


#: a BGR image, the path or bytes of an image file, an image of PIL or torch, or one in device memory if the backend
#: takes it
Source = Image | str | os.PathLike[str] | bytes | PilImage | DlpackArray | CudaArray


class Closeable(Protocol):
    """Something with ``close()``."""

    def close(self) -> None: ...


class Predictor:
    """A loaded model.

    Examples:
        >>> model = yolact_deploy.load("yolact.onnx")
        >>> detections = model(cv2.imread("street.jpg"))

    Args:
        backend: the network and its tail
        score_threshold: only detections that score above it are returned; 0 returns all, as evaluation requires. One
            number, or one for some classes: ``{"*": 0.3, "person": 0.5}`` or "0.3,person=0.5"
        nms: variant for graphs that end in heads: "fast", "cross-class", "traditional"; default as exported
        lazy_masks: False pastes the masks inside the call, so that :attr:`timings` includes them; a backend with a
            frame hook always does so
        classes: names of the classes to return; all by default
        max_detections: return the best so many of each image at most
    """

    #: tiles of large pictures, in a :class:`~yolact_deploy.runtime.sliced_predictor.SlicedPredictor`
    slicing: Slicing | None = None

    def __init__(
        self,
        backend: Backend,
        *,
        score_threshold: ScoreThreshold = SCORE_THRESHOLD,
        nms: str | None = None,
        lazy_masks: bool = True,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
    ) -> None:
        if nms is not None:
            check_word("nms", nms, NMS_VARIANTS)
        if nms == "traditional" and backend.metadata.sizes is not None:
            raise InputError(
                "nms='traditional' works on boxes in pixels of one input, and this file takes a range of sizes: choose "
                "one with image_size"
            )
        self.backend = backend
        self.selection = Selection.of(self.class_names, score_threshold, classes, max_detections)
        #: the lowest threshold of a class
        self.score_threshold = self.selection.floor
        self.nms = nms or ("cross-class" if backend.metadata.cross_class else "fast")
        self.lazy_masks = lazy_masks
        #: milliseconds of each of :attr:`stages` in the last call; "paste" is 0 if masks are lazy
        self.timings: dict[str, float] = dict.fromkeys(self.stages, 0.0)
        self._lock = threading.Lock()
        self._closed = False
        self._several: Backend | None = None
        self._proven = False  # a hook's network has detected something, so its outputs are finite

    @property
    def config(self) -> YolactConfig:
        """The network, at its usual input if it takes a range of sizes; see :meth:`config_for`."""
        return self.backend.metadata.config

    def config_for(self, shape: Sequence[int]) -> YolactConfig:
        """The network at the input that a picture of ``shape`` (H, W, ...) gets."""
        return self.backend.metadata.config_for(*shape[:2])

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def stages(self) -> tuple[str, ...]:
        """The keys of :attr:`timings`, in order; :data:`~yolact_deploy.runtime.stage_timer.PARTS` explains them.

        They are decode, preprocess, network, nms, assembly, detect and paste for a network whose tail runs on the host.
        Work that cannot be separated is one stage with all its names, such as network+nms+assembly for a graph that
        ends in detections. A GPU adds copy, upload and download. On the CUDA frame path, paste writes all results
        straight into host memory; its stages are timed if :attr:`stage_times` is set, otherwise those of the host.
        """
        return self._stages(self._hook)

    def _stages(self, hook: FrameHook | None) -> tuple[str, ...]:
        if hook is not None:
            return ("decode", *hook.stages, "detect")
        return ("decode", "preprocess", *self.backend.run_stages, *self.backend.tail.stages, "detect", "paste")

    @property
    def stage_times(self) -> bool:
        """Whether :attr:`timings` has the stages on the GPU, by marks in its stream; set it to switch them on or off.

        Off by default on the CUDA frame path: the marks take time on the GPU, and batches that overlap have no stages
        of their own. :attr:`timings` then has the times of the host, "launch" and "wait" among them.
        """
        return self.backend.frames is None or self.backend.frames.stage_times

    @stage_times.setter
    def stage_times(self, on: bool) -> None:
        if self.backend.frames is not None:
            self.backend.frames.stage_times = on
            self.timings = dict.fromkeys(self.stages, 0.0)

    @property
    def _settings(self) -> DetectSettings:
        return DetectSettings(self.score_threshold, self.nms)

    @property
    def _hook(self) -> FrameHook | None:
        """The backend's frame hook, if it has one that serves the present settings."""
        hook = self.backend.frames
        return hook if hook is not None and hook.serves(self._settings) else None

    @overload
    def __call__(self, images: Source) -> Detections: ...  # type: ignore[overload-overlap]  # str is a Sequence too
    @overload
    def __call__(self, images: Sequence[Source]) -> list[Detections]: ...
    def __call__(self, images: Source | Sequence[Source]) -> Detections | list[Detections]:
        """Detect objects in one image or in each of a list.

        A backend on a GPU also takes arrays in the GPU's memory (torch, CuPy, pycuda and everything else with
        ``__cuda_array_interface__`` or DLPack), which must not be written to before the call returns. Batches of a
        long list overlap there: the host prepares one while the GPU works on the one before.

        Args:
            images: uint8 BGR arrays [H, W, 3], paths of image files, or what else
                :func:`~yolact_deploy.runtime.any_image.as_image` takes: bytes of a file, addresses, PIL images, gray
                and BGRA arrays, 16 bits, torch tensors on the CPU

        Raises:
            InputError: an image that cannot be read or has another shape or dtype.
            BackendError: the runtime failed.
        """
        sources, single = self._sources(images)
        detections = self._predict(sources)
        return detections[0] if single else detections

    def _sources(self, images: Source | Sequence[Source]) -> tuple[list[Source], bool]:
        """The images as a list, and whether a single image was given."""
        hook = self.backend.frames
        if hook is not None and hook.is_device_array(images):
            return [cast("Source", images)], True
        if is_single(images):
            return [cast("Source", images)], True
        if not isinstance(images, Iterable) or isinstance(images, Mapping):
            return [check_image(images)], True  # raises
        return list(images), False

    def _predict(self, sources: list[Source]) -> list[Detections]:
        hook, step = self._hook, self.backend.max_batch
        batches = (sources[first : first + step] for first in range(0, len(sources), step))
        timer = StageTimer(self._stages(hook))
        if hook is None:
            results = [image for batch in batches for image in self._run(batch, timer)]
        elif len(sources) <= step:
            results = self._collect(self._submit(hook, sources, timer), timer)
        else:
            tickets = ahead(batches, lambda batch: self._submit(hook, batch, timer), hook.depth)
            results = [image for ticket in tickets for image in self._collect(ticket, timer)]
        self.timings = timer.spent
        return results

    def _run(self, sources: list[Source], timer: StageTimer) -> list[Detections]:
        """Detections of one batch through :meth:`preprocess`, the network and :meth:`postprocess`."""
        with timer.stage("decode"):
            images = [self._host_image(source) for source in sources]
        found: dict[int, Detections] = {}
        for group in self.of_one_input(images):
            with timer.stage("preprocess"):
                inputs = self.preprocess([images[index] for index in group])
            outputs = self.run_prepared(inputs, timer)
            for slot, index in enumerate(group):
                shape = images[index].shape
                found[index] = self.postprocess(outputs, slot, shape, timer, lazy_masks=self.lazy_masks)
        return [found[index] for index in range(len(images))]

    def of_one_input(self, images: Sequence[Image]) -> list[list[int]]:
        """The indices of images in groups that the network can take at once; one group, if its input has one size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(self.config_for(image.shape).input_shape, []).append(index)
        return list(groups.values())

    def run_prepared(self, inputs: NDArray[Any], timer: StageTimer, backend: Backend | None = None) -> Outputs:
        """The network's outputs for what :meth:`preprocess` returned.

        Args:
            backend: the same network for several threads at once, in place of the own one

        Raises:
            BackendError: the runtime failed, or the outputs are not finite.
        """
        with self._lock if backend is None else contextlib.nullcontext():
            self._check_open()
            outputs = (backend or self.backend).run_timed(inputs, timer)
        self._require_finite(outputs)
        return outputs

    def several(self, most: int) -> Backend | None:
        """The network for several threads that call it at once, loaded once; see :meth:`Backend.for_callers`."""
        with self._lock:
            self._check_open()
            if self._several is None:
                self._several = self.backend.for_callers(most)
            return self._several

    @property
    def has_several(self) -> bool:
        """Whether :meth:`several` has loaded its network."""
        return self._several is not None

    def _host_image(self, source: Source) -> Image:
        if self.backend.frames is not None and self.backend.frames.is_device_array(source):
            raise InputError(
                f"nms={self.nms!r} runs on the host and requires images in host memory, got one on the GPU: leave nms "
                "at its default, or pass NumPy arrays"
            )
        return _image(source)

    def _submit(
        self, hook: FrameHook, sources: Sequence[Source], timer: StageTimer, *, for_device: bool = False
    ) -> FrameTicket:
        """Start one batch."""
        with timer.stage("decode"):
            frames = [_frame(source, hook) for source in sources]
        self._check_open()
        return hook.submit(frames, self._settings, for_device=for_device)

    def _collect(self, ticket: FrameTicket, timer: StageTimer) -> list[Detections]:
        """Wait for the detections of a batch that was submitted."""
        images = ticket.result()
        self._proven = self._proven or any(len(image.scores) for image in images)
        if not self._proven:
            # Values that are not finite end in no detections, without an error.
            metadata = self.backend.metadata
            count = self.backend.max_batch if self.backend.fixed_batch else 1
            with self._lock:
                self._check_open()
                outputs = self.backend.run(np.zeros((count, *self.config.input_shape, 3), metadata.input_dtype))
            self._require_finite(outputs)
            self._proven = True
        with timer.stage("detect"):
            results = [self._detections(self._selected(i), i.masks.height, i.masks.width) for i in images]
        timer.add(ticket.timings)
        return results

    def _require_finite(self, outputs: Outputs) -> None:
        """Raise :class:`BackendError` if the network's outputs are not finite: then nothing would be detected."""
        require_shapes(outputs, self.backend.name)
        if isinstance(outputs, HeadOutputs) and outputs.scores.shape[2] != self.config.num_classes:
            raise BackendError(
                f"{self.backend.name} has scores of {outputs.scores.shape[2]} classes, and the metadata of the file "
                f"names {self.config.num_classes}: the file was changed. Export it again"
            )
        checked = outputs._asdict()
        if isinstance(outputs, DetectionOutputs):  # the other masks are zero
            checked["masks"] = outputs.masks[:, : outputs.num_detections.max(initial=0)]
        for name, values in checked.items():
            most = values.max(initial=0) if values is not None else 0  # NaN if any value is
            if np.isnan(most) or (np.isinf(most) and name != "boxes"):  # a single box may well be infinite
                raise BackendError(
                    f"{name} of {self.backend.name} are not finite: the weights are damaged, or a layer overflows in "
                    f"{self.backend.precision}. Export again from good weights, or in another precision"
                )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("this predictor is closed: load the model again")

    @overload
    def on_device(self, images: Source) -> DeviceDetections: ...  # type: ignore[overload-overlap]
    @overload
    def on_device(self, images: Sequence[Source]) -> list[DeviceDetections]: ...
    def on_device(self, images: Source | Sequence[Source]) -> DeviceDetections | list[DeviceDetections]:
        """Detect objects in one image or a batch, and leave the results on the GPU without waiting for them.

        The second call after this one overwrites the arrays of the results: use or copy them before.

        Args:
            images: as for a call of the predictor; at most ``backend.max_batch``

        Raises:
            BackendError: the backend does not run on a GPU.
            InputError: too many images, or one that cannot be used.
        """
        hook = self._hook
        if hook is None:
            raise BackendError(
                f"backend {self.backend.name!r} cannot leave results on a GPU with nms={self.nms!r}: load a TensorRT "
                "engine and leave nms at its default, or call the predictor for results in host memory"
            )
        if self.selection.narrows:
            raise InputError(
                "results on the device are not selected by class, by thresholds of classes or by number: load the "
                "model with one score_threshold, or call the predictor for results in host memory"
            )
        sources, single = self._sources(images)
        if len(sources) > self.backend.max_batch:
            raise InputError(
                f"expected at most {self.backend.max_batch} images at once for results on the device, "
                f"got {len(sources)}: pass fewer, or export with a larger --batch"
            )
        results = self._submit(hook, sources, StageTimer(), for_device=True).device_result()
        return results[0] if single else results

    def preprocess(self, images: Sequence[Image]) -> NDArray[Any]:
        """BGR images to the network's input [N, h, w, 3]; a fixed batch is filled up with zeros.

        Raises:
            InputError: a file that takes a range of sizes has different inputs for them, see :meth:`of_one_input`.
        """
        config, dtype = self.config_for(images[0].shape) if images else self.config, self.backend.metadata.input_dtype
        if len(images) > 1 and len(self.of_one_input(images)) > 1:
            raise InputError("these images have different inputs and cannot be one batch: call the predictor with them")
        if len(images) == 1 and (self.backend.max_batch == 1 or not self.backend.fixed_batch):
            return fit_image(images[0], config, dtype)[None]
        count = self.backend.max_batch if self.backend.fixed_batch else len(images)
        batch = np.zeros((count, *config.input_shape, 3), dtype=dtype)
        for slot, image in zip(batch, images, strict=False):
            slot[...] = fit_image(image, config, dtype)
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
            lazy_masks: False pastes the masks here, as the backend's tail does it
        """
        timer = timer or StageTimer()
        height, width, *_ = shape
        detected = self._selected(self.backend.tail.detect(outputs, index, self._settings, timer))
        if not lazy_masks and isinstance(detected.masks, MaskWindows):
            with timer.stage("paste"):
                masks = detected.masks.placed(place(height, width, self.config_for(shape)))
                detected = detected._replace(masks=self.backend.tail.paste(masks, height, width))
        with timer.stage("detect"):
            return self._detections(detected, height, width)

    def _selected(self, detected: ImageDetections) -> ImageDetections:
        labels, classes = detected.labels, len(self.class_names)
        # As unsigned numbers, negative ones are too large as well.
        if len(labels) and np.maximum.reduce(labels.view(np.uint64)) >= classes:
            raise BackendError(
                f"{self.backend.name} detects class number {labels.max()}, and the metadata of the file has {classes} "
                "classes, from 0: the file was changed. Export it again"
            )
        if not self.selection.narrows:
            return detected
        return detected.select(self.selection.rows(detected.scores, detected.labels))

    def _detections(self, detected: ImageDetections, height: int, width: int) -> Detections:
        return Detections.from_normalized(
            *detected,
            class_names=self.class_names,
            height=height,
            width=width,
            placement=place(height, width, self.config_for((height, width))),
        )

    def stream(
        self,
        source: str | os.PathLike[str] | int | Iterable[Image],
        *,
        overlap: bool | None = None,
        multiframe: int | None = None,
        options: ReadOptions | None = None,
    ) -> Iterator[tuple[Image, Detections]]:
        """Yield (frame, detections) of a video file, a camera, an address or an iterable of BGR frames, in order.

        Decoding, preparing, the network and the pasting of masks overlap in threads. The caller owns each frame:
        nothing here writes to it again. Leaving the loop ends the threads.

        Args:
            source: path of a video, number of a camera, an address such as ``rtsp://camera/1``, or frames
            overlap: yield a frame only when later ones are in flight: more frames per second, each some frames later.
                The default for all sources but live ones
            multiframe: frames in one batch; None is one, or as many as a fixed batch has
            options: how the source is read

        Raises:
            InputError: the source cannot be read, or the model takes no such batches.
        """
        from yolact_deploy.streams.video import FrameStream, read_ahead, read_timed

        batch = check_multiframe(self, multiframe)
        stream = read_timed(source, options=options) if isinstance(source, (str, os.PathLike, int)) else None
        frames: FrameStream | Generator[Image, None, None] = stream or read_ahead(source)
        images = (frame.image for frame in stream) if stream is not None else frames
        overlap = not (stream is not None and stream.live) if overlap is None else overlap
        return self._streamed(frames, cast("Iterable[Image]", images), overlap, batch)

    def _streamed(
        self, source: Closeable, images: Iterable[Image], overlap: bool, batch: int
    ) -> Iterator[tuple[Image, Detections]]:
        with contextlib.closing(source):
            if not overlap:
                for frame in images:
                    yield frame, self(frame)
            elif self._hook is not None and self.slicing is None:
                for job in through_hook(self, self._hook, in_lists((StreamFrame(image) for image in images), batch)):
                    self.timings = job.spent or self.timings
                    assert job.detections is not None
                    yield job.image, job.detections
            else:
                jobs = (StreamFrame(image) for image in images)
                with Pipeline[StreamFrame](jobs, *detect_stages(self, batch), name="stream") as done:
                    for job in done:
                        self.timings = job.spent or self.timings
                        assert job.detections is not None
                        yield job.image, job.detections

    def track(
        self,
        source: str | os.PathLike[str] | int | Iterable[Image],
        *,
        tracking: TrackOptions | None = None,
        fps: float | None = None,
        **reading: Any,
    ) -> Iterator[tuple[Image, Detections]]:
        """:meth:`stream`, with ``track_ids`` in the detections: objects keep their ids from frame to frame.

        Args:
            tracking: how objects are tracked
            fps: frames per second, for how long lost objects are remembered; None is that of a video file, else 30
            reading: as for :meth:`stream`

        Raises:
            InputError: as :meth:`stream`.
            MissingDependencyError: lap is not installed.
        """
        from yolact_deploy.streams.byte_track import ByteTracker
        from yolact_deploy.streams.video import probe_video

        is_file = isinstance(source, (str, os.PathLike)) and Path(source).is_file()
        if fps is None and is_file:
            fps = probe_video(cast("str", source)).fps
        tracker = ByteTracker(tracking, fps=fps or 30.0)
        return ((frame, tracker.track(found)) for frame, found in self.stream(source, **reading))

    def warm_up(self, times: int = 1) -> None:
        """Run an empty image, so that start-up work does not slow down the first real one."""
        for _ in range(times):
            self(np.zeros((*self.config.input_shape, 3), np.uint8))

    def close(self) -> None:
        """Free the network; the predictor cannot be used afterwards."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.backend.close()
                if self._several is not None:
                    self._several.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _frame(source: Source, hook: FrameHook) -> Any:
    """An image in host memory or on the device."""
    if isinstance(source, np.ndarray):  # first, as it is nearly always one
        return _image(source)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        frame = hook.read(source)
        if frame is not None:
            return frame
    return source if hook.is_device_array(source) else _image(source)


def _image(source: Source) -> Image:
    return as_image(source)

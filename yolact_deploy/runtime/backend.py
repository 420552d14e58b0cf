"""What a backend is: a network in some runtime, the tail that makes detections of its outputs, and maybe a frame hook.

Adding a runtime takes one file with a subclass of `Backend`, or of `DeviceNetwork` where tensors stay on a GPU.

Legend: N images, S input side.
"""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL, StageTimer
from yolact_deploy.runtime.tails import DetectSettings, ImageDetections, Outputs, Tail, numpy_tail

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections


class Network(abc.ABC):
    """A network loaded into a runtime, wherever its tensors are."""

    #: "onnxruntime", "openvino", "tensorrt", "torch", ...
    name: str
    #: the precision the trunk computes in, for reports
    precision: str
    metadata: Metadata

    @cached_property
    def max_batch(self) -> int:
        """Largest batch of one call."""
        return self.metadata.batch[2]

    @cached_property
    def fixed_batch(self) -> bool:
        """Whether smaller batches must be padded to the largest one."""
        return self.metadata.batch[0] == self.metadata.batch[2]

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-ready facts about the runtime: versions, threads, device, bytes."""

    def close(self) -> None:  # noqa: B027  # most runtimes leave it to the garbage collector
        """Free the runtime's memory."""


class FrameTicket(abc.ABC):
    """A batch of frames in flight."""

    #: milliseconds of each of the hook's ``stages`` once the result is there, for all frames together
    timings: dict[str, float]

    @abc.abstractmethod
    def result(self, *, copy: bool = True) -> list[ImageDetections]:
        """Wait for the detections of each frame, with pasted masks; later calls return the same.

        Args:
            copy: False leaves the masks in the hook's own memory, which is overwritten once ``depth`` further batches
                have been submitted
        """

    @abc.abstractmethod
    def device_result(self) -> list[DeviceDetections]:
        """The detections of each frame as arrays on the device, without waiting for them."""


class FrameHook(abc.ABC):
    """Takes frames of any size as they are, in host memory or on the device. Several threads may use it at once."""

    #: keys of :attr:`FrameTicket.timings`
    stages: tuple[str, ...]
    #: measure each stage on the GPU; False times only what the host does, where measuring costs the GPU time
    stage_times: bool = True
    #: how many batches can be in flight before submitting another one waits
    depth: int

    @abc.abstractmethod
    def serves(self, settings: DetectSettings) -> bool:
        """Whether the hook supports these settings; otherwise the backend and its tail serve them."""

    @abc.abstractmethod
    def is_device_array(self, value: object) -> bool:
        """Whether this is an array on a device; does not check its shape and dtype."""

    def read(self, path: str | os.PathLike[str]) -> Any | None:
        """An image file as a frame on the device; None if the host is to decode it."""
        return None

    @abc.abstractmethod
    def submit(self, frames: Sequence[Any], settings: DetectSettings, *, for_device: bool = False) -> FrameTicket:
        """Start on up to ``max_batch`` frames and return at once.

        Args:
            frames: uint8 BGR [H, W, 3], NumPy arrays or arrays on the device. The latter must not be written to before
                the result is there
            for_device: leave the result on the device

        Raises:
            InputError: a frame of another shape, dtype or memory layout.
            BackendError: the GPU failed, or the backend is closed.
        """


class Backend(Network):
    """A network that takes resized images and returns its outputs as NumPy arrays, and what detects with it."""

    #: takes frames as they are, if the backend can
    frames: FrameHook | None = None
    #: threads that may call :meth:`run` at once
    callers: int = 1

    @cached_property
    def tail(self) -> Tail:
        """Makes detections of the outputs of :meth:`run`."""
        return numpy_tail(self.metadata.config, heads=self.metadata.tail == "heads")

    def set_nms(self, config: YolactConfig) -> None:
        """Run NMS with the settings of another configuration of the same network; only where the tail runs it."""
        self.tail = self.tail.with_config(config)
        self.metadata = dataclasses.replace(self.metadata, config=config)

    @abc.abstractmethod
    def run(self, images: NDArray[Any]) -> Outputs:
        """Run BGR images [N, S, S, 3] of ``metadata.input_dtype``; called by :attr:`callers` threads at a time.

        Returns:
            outputs of the type that :attr:`tail` takes
        """

    def for_callers(self, most: int) -> Backend | None:
        """The same network once more, for several threads that call :meth:`run` at once and share the cores.

        A CPU computes more pictures a second like this, each with fewer threads and so with a longer delay.

        Args:
            most: threads that may call

        Returns:
            None where the runtime has no such form, or one core alone to share
        """
        return None

    @property
    def run_stages(self) -> tuple[str, ...]:
        """Stages of :meth:`run`, as :mod:`~yolact_deploy.runtime.stage_timer` names them."""
        return ("network" if self.tail.stages else NETWORK_WITH_TAIL,)

    def run_timed(self, images: NDArray[Any], timer: StageTimer) -> Outputs:
        """:meth:`run`, with the time of each of :attr:`run_stages` added to ``timer``."""
        (stage,) = self.run_stages
        with timer.stage(stage):
            return self.run(images)

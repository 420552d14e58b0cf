"""A network on the GPU as a backend: frames go through the pipeline, resized images straight to the network.

Legend: N images, S input side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.cuda.frame_pipeline import FramePipeline
from yolact_deploy.runtime.cuda.jpeg import JpegDecoder
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import Outputs


class CudaBackend(Backend):
    """A network whose tensors are in device memory, with our kernels around it.

    Args:
        network: closed together with the backend, and if the constructor fails
        device: where the network is
        graphs: False uses no CUDA graphs, for comparison and debugging
        in_place, jpeg: see :class:`FramePipeline`

    Raises:
        BackendError: too little memory, or a failure of CUDA.
    """

    def __init__(
        self,
        network: DeviceNetwork,
        device: Device,
        *,
        graphs: bool = True,
        in_place: bool | None = None,
        jpeg: JpegDecoder | None = None,
    ) -> None:
        self.network, self.device = network, device
        self.name, self.precision, self.metadata = network.name, network.precision, network.metadata
        self.max_batch, self.fixed_batch = network.max_batch, network.fixed_batch
        try:
            self.frames: FramePipeline = FramePipeline(device, network, graphs=graphs, in_place=in_place, jpeg=jpeg)
        except BaseException:
            network.close()
            raise

    @property
    def run_stages(self) -> tuple[str, ...]:
        return self.frames.infer_stages

    def run(self, images: NDArray[Any]) -> Outputs:
        return self.run_timed(images, StageTimer())

    def run_timed(self, images: NDArray[Any], timer: StageTimer) -> Outputs:
        outputs = self.frames.infer(self._checked(images), timer)
        values = (outputs[name] for name in self.metadata.outputs)
        if self.metadata.tail == "heads":
            values = (value.astype(np.float32, copy=False) for value in values)
        return self.tail.outputs(*values)

    def _checked(self, images: NDArray[Any]) -> NDArray[Any]:
        most, *shape = self.network.input.shape
        fits = len(images) == most if self.fixed_batch else 1 <= len(images) <= most
        if not fits or list(images.shape[1:]) != shape or images.dtype != self.network.input.dtype:
            batch = most if self.fixed_batch else f"1..{most}"
            raise InputError(
                f"expected images {self.network.input.dtype} [{batch}, {', '.join(map(str, shape))}], "
                f"got {images.dtype} {list(images.shape)}"
            )
        return np.ascontiguousarray(images)

    def describe(self) -> dict[str, Any]:
        major, minor = self.device.compute_capability
        return {
            "backend": self.name,
            **self.network.describe(),
            "device": f"cuda:{self.device.index}",
            "gpu": self.device.name,
            "compute_capability": f"{major}.{minor}",
            **self.frames.describe(),
        }

    def close(self) -> None:
        self.frames.close()

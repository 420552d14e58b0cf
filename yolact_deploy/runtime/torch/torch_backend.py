"""The PyTorch model as a backend: eager in FP32, the reference to which every engine is compared.

It detects and pastes as the original does, with the functions of `torch_ops`, and shares only the resized images with
the other backends. On a GPU the whole way from frame to masks runs there, as in the original; see `frames`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.errors import BackendError
from yolact_deploy.mask_iou import HostMaskIouNet
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import HeadOutputs, HostTail, Outputs
from yolact_deploy.runtime.torch.frames import Clock, EagerFrames
from yolact_deploy.runtime.torch.torch_network import (
    GPU_MAX_BATCH,
    MAX_BATCH,
    HeadsModule,
    Trunk,
    compiled,
    on,
    on_host,
    place,
    products_in,
    rescorer,
    translated,
)
from yolact_deploy.runtime.torch.torch_tail import TorchTail


class TorchBackend(Backend):
    """A YOLACT model in PyTorch.

    Args:
        model: put into evaluation mode, and moved to the device and precision, in place
        threads: of this process; by default PyTorch's choice
        input_dtype: "uint8" resizes as the exported graphs do, "float32" without rounding
        tail: "host" detects and pastes in NumPy instead of PyTorch
        precision: of the trunk: "fp32", "fp16", "bf16", or "tf32", which is how PyTorch multiplies FP32 on a GPU by
            default
        device: ordinal of a GPU; None is the CPU
        compile: compile the network

    Raises:
        BackendError: PyTorch cannot use the GPU.
    """

    name = "torch"

    def __init__(
        self,
        model: Trunk,
        *,
        threads: int | None = None,
        input_dtype: str = "uint8",
        tail: str = "auto",
        precision: str = "fp32",
        device: int | None = None,
        compile: bool = False,
        weights_sha256: str = "",
    ) -> None:
        self.metadata = Metadata(
            config=model.config,
            precision=precision,
            tail="heads",
            input_dtype=input_dtype,
            batch=(1, 1, MAX_BATCH if device is None else GPU_MAX_BATCH),
            weights_sha256=weights_sha256,
        )
        self.precision, self._compile = precision, compile
        self._place, self._on_gpu = place(device), device is not None
        with translated():
            # Before the model is converted: masks are rescored in FP32 whatever the trunk computes in.
            mask_iou = rescorer(model, self._place)
            module = HeadsModule(model, precision=precision, device=self._place)
        self._channels_last = module.channels_last
        self._heads: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = compiled(module) if compile else module
        if threads is not None:
            torch.set_num_threads(threads)
        if tail == "host":
            self.tail = HostTail(model.config, None if mask_iou is None else _numpy_mask_iou(mask_iou))
            return
        self.tail = TorchTail(model.config, mask_iou, self._place)
        if self._on_gpu:
            self.frames = EagerFrames(self.heads, self.metadata, self._place, mask_iou)

    @torch.inference_mode()
    def heads(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network's outputs for images [N, S, S, 3] on its device; all stays there."""
        with translated(), products_in(self.precision):
            return self._heads(images)

    def run(self, images: NDArray[Any]) -> HeadOutputs:
        return _to_host(self.heads(on_host(images).to(self._place)))

    @property
    def run_stages(self) -> tuple[str, ...]:
        return ("upload", "network", "download") if self._on_gpu else super().run_stages

    def run_timed(self, images: NDArray[Any], timer: StageTimer) -> Outputs:
        if not self._on_gpu:
            return super().run_timed(images, timer)
        with on(self._place):
            clock = Clock(self._place)
            uploaded = on_host(images).to(self._place)
            clock.mark("upload")
            outputs = self.heads(uploaded)
            clock.mark("network")
            heads = _to_host(outputs)
            clock.mark("download")
            timer.add(clock.spent())
        return heads

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self._place,
            "precision": self.precision,
            "channels_last": self._channels_last,
            "compiled": self._compile,
            "tail": self.tail.name,
        }

    def close(self) -> None:
        # Other threads may be in the middle of a call, so what they use stays.
        self.frames, self._heads = None, _closed


def _closed(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    raise BackendError("this predictor is closed: load the model again")


def _to_host(outputs: tuple[torch.Tensor, ...]) -> HeadOutputs:
    return HeadOutputs(*(output.cpu().numpy() for output in outputs))


def _numpy_mask_iou(network: torch.nn.Module) -> HostMaskIouNet:
    return HostMaskIouNet({f"maskiou_net.{key}": value.cpu().numpy() for key, value in network.state_dict().items()})

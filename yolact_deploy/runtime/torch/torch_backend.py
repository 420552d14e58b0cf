"""The PyTorch model as a backend: eager in FP32, the reference to which every engine is compared.

It detects and pastes as the original does, with the torch functions of `ops`, so that nothing but the resized images is
shared with the other backends. On a GPU the whole way from the frame to the masks is done there, as the original does
it; see `frames`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.artifact import Metadata
from yolact_deploy.mask_forms import MaskCrops, MaskWindows
from yolact_deploy.mask_iou import HostMaskIouNet
from yolact_deploy.model import torch_ops as ops
from yolact_deploy.runtime.backend import Backend, DetectSettings, HeadOutputs, ImageDetections, Outputs
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.torch.frames import Clock, EagerFrames, detect_image
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


class TorchBackend(Backend):
    """A YOLACT model in PyTorch.

    Args:
        model: in evaluation mode afterwards, and moved to the device and precision
        threads: of this process; by default PyTorch's choice
        input_dtype: "uint8" resizes as the exported graphs do, "float32" without rounding
        tail: "host" detects and pastes in NumPy instead of PyTorch
        precision: of the trunk: "fp32"; "fp16", "bf16"; "tf32" is FP32 as PyTorch multiplies it on a GPU by default
        device: number of a GPU; None is the CPU
        compile: compile the network

    Raises:
        BackendError: PyTorch cannot use the GPU.
    """

    name = "torch"
    fixed_batch = False

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
        self.max_batch = MAX_BATCH if device is None else GPU_MAX_BATCH
        self.metadata = Metadata(
            config=model.config,
            precision=precision,
            tail="heads",
            input_dtype=input_dtype,
            batch=(1, 1, self.max_batch),
            weights_sha256=weights_sha256,
        )
        self.precision, self._compile, self._on_host = precision, compile, tail == "host"
        self._place, self._on_gpu = place(device), device is not None
        with translated():
            # Before the model is converted: masks are rescored in FP32 whatever the trunk computes in.
            self._rescorer = rescorer(model, self._place)
            if self._rescorer is not None and self._on_host:
                weights = self._rescorer.state_dict()
                self.mask_iou = HostMaskIouNet({f"maskiou_net.{key}": value.cpu() for key, value in weights.items()})
            module = HeadsModule(model, precision=precision, device=self._place)
        self._channels_last = module.channels_last
        self._heads: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = compiled(module) if compile else module
        if threads is not None:
            torch.set_num_threads(threads)
        if device is not None and not self._on_host:
            self.frames = EagerFrames(self.heads, self.metadata, self._place, self._rescorer)

    @torch.inference_mode()
    def heads(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The network's outputs for images [N, S, S, 3] on its device; all stays there."""
        with translated(), products_in(self.precision):
            return self._heads(images)

    def run(self, images: NDArray[Any]) -> Outputs:
        outputs = self.heads(on_host(images).to(self._place))
        return HeadOutputs(*(output.cpu().numpy() for output in outputs))

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
            found = HeadOutputs(*(output.cpu().numpy() for output in outputs))
            clock.mark("download")
            timer.add(clock.spent())
        return found

    @torch.inference_mode()
    def detect(
        self, outputs: Outputs, index: int, settings: DetectSettings, timer: StageTimer | None = None
    ) -> ImageDetections:
        assert isinstance(outputs, HeadOutputs)  # the only kind that run() gives
        if self._on_host:
            return super().detect(outputs, index, settings, timer)
        timer = timer or StageTimer()
        boxes, scores, coeff, proto = (torch.from_numpy(output[index]) for output in outputs)
        with timer.stage("nms"):
            kept = detect_image(boxes, scores, coeff, self.metadata.config, settings)
        with timer.stage("assembly"):
            masks = ops.assemble_masks(proto, kept.coeff, kept.boxes)
            height, width = masks.shape[1:]
            whole = MaskWindows(height, width, False, np.zeros((len(masks), 2), np.int64), tuple(masks.numpy()))
            mask_scores = None
            if self._rescorer is not None:
                device_masks, scores, labels = (v.to(self._place) for v in (masks, kept.scores, kept.labels))
                mask_scores = ops.rescore_masks(self._rescorer, device_masks, scores, labels).cpu().numpy()
        return ImageDetections(kept.boxes.numpy(), kept.scores.numpy(), kept.labels.numpy(), whole, mask_scores)

    @torch.inference_mode()
    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        if self._on_host:
            return super().paste(masks, height, width)
        pasted = ops.paste_masks_full(torch.from_numpy(masks.dense()), height, width).numpy()
        return MaskCrops(height, width, np.zeros((len(pasted), 2), np.int64), tuple(pasted))

    def describe(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self._place,
            "precision": self.precision,
            "channels_last": self._channels_last,
            "compiled": self._compile,
            "tail": "host" if self._on_host else "torch",
        }

    def close(self) -> None:
        self.frames = None
        del self._heads, self._rescorer

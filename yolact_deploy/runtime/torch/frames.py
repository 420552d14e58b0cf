"""The original's way on a GPU: eager PyTorch uploads, resizes, detects and pastes.

This is the baseline of the GPU benchmarks. It pastes whole masks, as the original does, and packs them into bits on the
GPU before they are copied to the host, so that both sides of a comparison end with the same result.

Legend: n detections, H x W the frame, h x w of [h, w, 3] the network's input, K mask coefficients, h x w prototypes.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import PackedMasks
from yolact_deploy.model import torch_ops as ops
from yolact_deploy.preprocess import check_image, padding_color
from yolact_deploy.priors import place
from yolact_deploy.runtime.backend import FrameHook, FrameTicket
from yolact_deploy.runtime.cuda.arrays import is_device_array
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import DetectSettings, ImageDetections
from yolact_deploy.runtime.torch.torch_network import on, on_host
from yolact_deploy.runtime.torch.torch_tail import detect_image

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections

STAGES = ("upload", "preprocess", "network", "nms", "assembly", "paste", "download")
_WORD = 32


def resize(frame: Tensor, config: YolactConfig, *, rounded: bool) -> Tensor:
    """A frame [H, W, 3] in the network's input, float32 [h, w, 3], as ``config.fit`` says.

    Bilinear without antialiasing; ``rounded`` to whole gray levels.
    """
    where = place(frame.shape[0], frame.shape[1], config)
    pixels = frame.float()
    if where.is_padded:
        color = padding_color(config, "uint8" if rounded else "float32")
        canvas = pixels.new_tensor(color).repeat(where.canvas_height, where.canvas_width, 1)
        canvas[where.top : where.top + where.height, where.left : where.left + where.width] = pixels
        pixels = canvas
    planes = pixels.permute(2, 0, 1)[None]
    small = interpolate(planes, config.input_shape, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return small.round() if rounded else small


def pack(masks: Tensor) -> Tensor:
    """Masks bool [n, H, W] as bits, uint8 [n, H, 4 x words per row], the first pixel in the highest bit of a byte."""
    padded = pad(masks, (0, -masks.shape[-1] % _WORD)).to(torch.uint8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 8, 8)
    return (groups * weights).sum(dim=-1, dtype=torch.uint8)


class EagerFrames(FrameHook):
    """The frame hook of `TorchBackend` on a GPU.

    Args:
        heads: the network, from images [N, h, w, 3] on the device to boxes, scores, coeff and proto on the device
        place: torch's name of the device
        rescorer: of a YOLACT++, from masks [n, 1, h, w] to their IoUs [n, C]
    """

    stages = STAGES
    depth = 1

    def __init__(
        self,
        heads: Callable[[Tensor], tuple[Tensor, ...]],
        metadata: Metadata,
        place: str,
        rescorer: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._heads, self._metadata, self._place, self._rescorer = heads, metadata, place, rescorer
        self._lock = threading.Lock()

    def serves(self, settings: DetectSettings) -> bool:
        return True

    def is_device_array(self, value: object) -> bool:
        return is_device_array(value)

    @torch.inference_mode()
    def submit(self, frames: Sequence[Any], settings: DetectSettings, *, for_device: bool = False) -> FrameTicket:
        if for_device:
            raise BackendError("eager PyTorch cannot leave results on the GPU: use an engine, or call the predictor")
        with self._lock, on(self._place):
            clock = Clock(self._place)
            images = [self._upload(frame) for frame in frames]
            clock.mark("upload")
            config, rounded = self._metadata.config, self._metadata.input_dtype == "uint8"
            inputs = torch.stack([resize(image, config, rounded=rounded) for image in images])
            clock.mark("preprocess")
            outputs = self._heads(inputs)
            clock.mark("network")
            detected = []
            for boxes, scores, coeff, proto in zip(*outputs, strict=True):
                kept = detect_image(boxes, scores, coeff, config, settings)
                clock.mark("nms")
                masks = ops.assemble_masks(proto, kept.coeff, kept.boxes)
                detected.append((kept, masks, self._mask_scores(kept, masks)))
                clock.mark("assembly")
            results = []
            for (kept, masks, mask_scores), image in zip(detected, images, strict=True):
                height, width, _ = image.shape
                bits = pack(ops.paste_masks_full(masks, height, width, place(height, width, config)))
                clock.mark("paste")
                results.append(_to_host(kept, bits, mask_scores, height, width))
                clock.mark("download")
            return _Finished(results, clock.spent())

    def _mask_scores(self, kept: ops.TorchDetected, masks: Tensor) -> Tensor | None:
        if self._rescorer is None:
            return None
        return ops.rescore_masks(self._rescorer, masks, kept.scores, kept.labels)

    def _upload(self, frame: Any) -> Tensor:
        """A frame [H, W, 3] uint8 on the device."""
        if not self.is_device_array(frame):
            return on_host(check_image(frame)).to(self._place)
        image = frame if isinstance(frame, Tensor) else torch.utils.dlpack.from_dlpack(frame)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"expected a frame uint8 BGR [H, W, 3] on the GPU, got {image.dtype} {list(image.shape)}")
        return image


def _to_host(
    kept: ops.TorchDetected, packed: Tensor, mask_scores: Tensor | None, height: int, width: int
) -> ImageDetections:
    """Detections of a frame of this size, with masks as packed bits [n, height, bytes per row]."""
    bits = packed.cpu().numpy()
    words = bits.shape[-1] * 8 // _WORD
    windows = np.zeros((len(bits), 6), np.int32)
    windows[:, 2:5] = width, height, words
    windows[:, 5] = np.arange(len(bits)) * height * words
    masks = PackedMasks(windows, np.ascontiguousarray(bits).reshape(-1).view(np.uint32), height, width)
    boxes, scores, labels = (values.cpu().numpy() for values in (kept.boxes, kept.scores, kept.labels))
    return ImageDetections(boxes, scores, labels, masks, None if mask_scores is None else mask_scores.cpu().numpy())


class _Finished(FrameTicket):
    """Frames that are finished: eager detection waits for the GPU anyway."""

    def __init__(self, results: list[ImageDetections], timings: dict[str, float]) -> None:
        self._results, self.timings = results, timings

    def result(self, *, copy: bool = True) -> list[ImageDetections]:
        return self._results

    def device_result(self) -> list[DeviceDetections]:
        raise BackendError("eager PyTorch cannot leave results on the GPU")


class Clock:
    """Milliseconds between marks, from the GPU's own events, so that measuring does not wait.

    Args:
        place: torch's name of the device; a GPU must be the current one
    """

    def __init__(self, place: str) -> None:
        self._cuda = place.startswith("cuda")
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def mark(self, stage: str) -> None:
        """The end of a stage; the same stage may be marked several times."""
        self._marks.append((stage, self._now()))

    def spent(self) -> dict[str, float]:
        """Milliseconds of each stage."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        timer = StageTimer()
        for (_, start), (stage, end) in itertools.pairwise(self._marks):
            timer.add({stage: self._between(start, end)})
        return timer.spent

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self._cuda else (end - start) * 1e3

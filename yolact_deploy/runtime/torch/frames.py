"""The original's way on a GPU: frames are uploaded, resized, run, detected and pasted by eager PyTorch operations.

This is the baseline of the GPU benchmarks. Masks are pasted whole, as the original does, and packed into bits on the
GPU before they come to the host, so that both sides of a comparison end in the same place.

Legend: n detections, H x W the frame, S input side, K mask coefficients, h x w prototypes.
"""

from __future__ import annotations

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
from yolact_deploy.detections import PackedMasks
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.preprocess import check_image
from yolact_deploy.runtime.backend import DetectSettings, FrameHook, FrameTicket, PastedDetections
from yolact_deploy.runtime.cuda.arrays import is_device_array
from yolact_deploy.runtime.torch import ops
from yolact_deploy.runtime.torch.network import on, on_host

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.results import DeviceDetections

STAGES = ("preprocess", "network", "postprocess", "paste")
_WORD = 32


def detect_image(
    heads: Sequence[Tensor], config: YolactConfig, settings: DetectSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes [n, 4], scores [n], labels [n] and masks [n, h, w] at prototype resolution of one image.

    Args:
        heads: its boxes [P, 4], scores [P, C], coeff [P, K] and proto [h, w, K]
    """
    boxes, scores, coeff, proto = heads
    found = ops.detect(
        boxes,
        scores,
        coeff,
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        top_k=config.top_k,
        max_detections=config.max_detections,
        nms=settings.nms,
        image_size=config.image_size,
    )
    keep = found.scores > settings.score_threshold
    boxes, scores, labels, coeff = (values[keep] for values in found)
    return boxes, scores, labels, ops.assemble_masks(proto, coeff, boxes)


def resize(frame: Tensor, size: int, *, rounded: bool) -> Tensor:
    """A frame [H, W, 3] as float32 [S, S, 3], bilinear without antialiasing; ``rounded`` to whole grey levels."""
    planes = frame.permute(2, 0, 1)[None].float()
    small = interpolate(planes, (size, size), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    return small.round() if rounded else small


def pack(masks: Tensor) -> Tensor:
    """Masks bool [n, H, W] as bits, uint8 [n, H, 4 x words of a row], the first pixel in the highest bit of a byte."""
    padded = pad(masks, (0, -masks.shape[-1] % _WORD)).to(torch.uint8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    groups = padded.reshape(*padded.shape[:-1], padded.shape[-1] // 8, 8)
    return (groups * weights).sum(dim=-1, dtype=torch.uint8)


class EagerFrames(FrameHook):
    """The frame hook of `TorchBackend` on a GPU.

    Args:
        heads: the network, from [N, S, S, 3] on the device to boxes, scores, coeff and proto there
        place: torch's name of the device
    """

    stages = STAGES
    depth = 1

    def __init__(self, heads: Callable[[Tensor], tuple[Tensor, ...]], metadata: Metadata, place: str) -> None:
        self._heads, self._metadata, self._place = heads, metadata, place
        self._lock = threading.Lock()

    def serves(self, settings: DetectSettings) -> bool:
        return True

    def is_device_array(self, value: object) -> bool:
        return is_device_array(value)

    @torch.inference_mode()
    def submit(self, frames: Sequence[Any], settings: DetectSettings, *, for_device: bool = False) -> FrameTicket:
        if for_device:
            raise BackendError("eager PyTorch leaves no results on the GPU: use an engine, or call the predictor")
        with self._lock, on(self._place):
            clock = _Clock(self._place)
            images = [self._upload(frame) for frame in frames]
            size, rounded = self._metadata.config.image_size, self._metadata.input_dtype == "uint8"
            inputs = torch.stack([resize(image, size, rounded=rounded) for image in images])
            clock.mark("preprocess")
            outputs = self._heads(inputs)
            clock.mark("network")
            heads = [[output[index] for output in outputs] for index in range(len(images))]
            found = [detect_image(one, self._metadata.config, settings) for one in heads]
            clock.mark("postprocess")
            results = [
                _to_host(*one, height=image.shape[0], width=image.shape[1])
                for one, image in zip(found, images, strict=True)
            ]
            clock.mark("paste")
            return _Finished(results, clock.spent())

    def _upload(self, frame: Any) -> Tensor:
        """A frame [H, W, 3] uint8 on the device."""
        if not self.is_device_array(frame):
            return on_host(check_image(frame)).to(self._place)
        image = frame if isinstance(frame, Tensor) else torch.utils.dlpack.from_dlpack(frame)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"expected a frame uint8 BGR [H, W, 3] on the GPU, got {image.dtype} {list(image.shape)}")
        return image


def _to_host(
    boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor, *, height: int, width: int
) -> PastedDetections:
    bits = pack(ops.paste_masks_full(masks, height, width)).cpu().numpy()
    words = bits.shape[-1] * 8 // _WORD
    windows = np.zeros((len(bits), 6), np.int32)
    windows[:, 2:5] = width, height, words
    windows[:, 5] = np.arange(len(bits)) * height * words
    packed = PackedMasks(windows, np.ascontiguousarray(bits).reshape(-1).view(np.uint32), height, width)
    return PastedDetections(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy(), packed)


class _Finished(FrameTicket):
    """Frames that are done: eager detection waits for the GPU anyway."""

    def __init__(self, results: list[PastedDetections], timings: dict[str, float]) -> None:
        self._results, self.timings = results, timings

    def result(self, *, copy: bool = True) -> list[PastedDetections]:
        return self._results

    def device_result(self) -> list[DeviceDetections]:
        raise BackendError("eager PyTorch leaves no results on the GPU")


class _Clock:
    """Milliseconds between marks, by the GPU's own events, so that measuring waits for nothing."""

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
        """The end of a stage."""
        self._marks.append((stage, self._now()))

    def spent(self) -> dict[str, float]:
        """Milliseconds of each stage."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return {stage: self._between(start, end) for (_, start), (stage, end) in pairs}

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self._cuda else (end - start) * 1e3

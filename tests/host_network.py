"""A network in NumPy on the "device" memory of the fake driver, and the same network as a CPU backend.

Its detections depend only on the brightness of the image, so that a resize that differs by one gray level changes
nothing.

Legend: N images, P priors, C classes, K coefficients, D detection slots, h x w prototypes, S input side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError
from yolact_deploy.postprocess import assemble_masks, detect
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork, DeviceTensor
from yolact_deploy.runtime.cuda.driver import Device, DeviceBuffer, Stream
from yolact_deploy.runtime.tails import DetectionOutputs, HeadOutputs, Outputs

SIZE, PRIORS, CLASSES, COEFFICIENTS, SIDE, SLOTS = 64, 40, 3, 4, 16, 6
CONFIG = YolactConfig(image_size=SIZE, num_classes=CLASSES, class_names=("a", "b", "c"), top_k=12, max_detections=SLOTS)


@lru_cache
def heads(brightness: int) -> tuple[Any, ...]:
    """Boxes [P, 4], scores [P, C], coeff [P, K] and proto [h, w, K] of an image."""
    rng = np.random.default_rng(brightness)
    corners = rng.random((PRIORS, 4), np.float32)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1)
    scores = (rng.random((PRIORS, CLASSES)) ** 6).astype(np.float32)
    coeff = rng.standard_normal((PRIORS, COEFFICIENTS)).astype(np.float32)
    # Smooth, as prototypes are.
    y, x = np.mgrid[0:SIDE, 0:SIDE] / np.float32(SIDE)
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.random((COEFFICIENTS, 3))]
    return boxes, scores, coeff, np.stack(waves, axis=2).astype(np.float32)


def outputs_of(image: Any, tail: str, *, mask_iou: bool = False) -> dict[str, Any]:
    """Outputs for a resized image; with ``mask_iou`` also mask scores, in another order than the scores."""
    boxes, scores, coeff, proto = heads(round(float(image.mean()) / 16))
    if tail == "heads":
        return {"boxes": boxes, "scores": scores, "coeff": coeff, "proto": proto}
    detected = detect(
        boxes, scores, coeff, score_threshold=CONFIG.nms_score_threshold, top_k=CONFIG.top_k, max_detections=SLOTS
    )
    num = len(detected.scores)
    masks = np.zeros((SLOTS, SIDE, SIDE), np.float32)
    masks[:num] = assemble_masks(proto, detected.coeff, detected.boxes)

    def padded(values: Any) -> Any:
        out = np.zeros((SLOTS, *values.shape[1:]), values.dtype)
        out[:num] = values
        return out

    outputs = {
        "num_detections": np.int32(num),
        "boxes": padded(detected.boxes),
        "scores": padded(detected.scores),
        "labels": padded(detected.labels),
        "masks": masks,
    }
    return outputs | {"mask_scores": padded(detected.scores[::-1] / 2)} if mask_iou else outputs


class CpuBackend(Backend):
    """The network for the CPU path, which is the reference."""

    name, precision = "cpu", "fp32"

    def __init__(self, tail: str = "heads", *, config: YolactConfig = CONFIG) -> None:
        self.metadata = Metadata(config=config, tail=tail)
        self._tail = tail

    def run(self, images: Any) -> Outputs:
        outputs = [outputs_of(image, self._tail, mask_iou=self.metadata.config.mask_iou) for image in images]
        values = [np.stack([one[name] for one in outputs]) for name in self.metadata.outputs]
        return HeadOutputs(*values) if self._tail == "heads" else DetectionOutputs(*values)

    def describe(self) -> dict[str, Any]:
        return {}


def at(pointer: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """Device memory as an array."""
    dtype = np.dtype(dtype)
    memory = (ctypes.c_char * (int(np.prod(shape)) * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(memory, dtype).reshape(shape)


class HostNetwork(DeviceNetwork):
    """The network for the GPU path.

    Args:
        max_batch, fixed_batch, bindable, capturable: see ``DeviceNetwork``
        uncapturable: it claims to be capturable but is not
    """

    name, precision = "host", "fp32"

    def __init__(
        self,
        device: Device,
        tail: str = "heads",
        *,
        max_batch: int = 1,
        fixed_batch: bool = False,
        bindable: bool = True,
        capturable: bool = True,
        uncapturable: bool = False,
        mask_dtype: str = "float32",
        config: YolactConfig = CONFIG,
    ) -> None:
        self.metadata = Metadata(config=config, tail=tail, batch=(1, 1, max_batch))
        self.max_batch, self.fixed_batch, self.bindable = max_batch, fixed_batch, bindable
        self.capturable, self._uncapturable = capturable, uncapturable
        self.seen: list[Any] = []
        self.closed = 0
        self._buffers: list[DeviceBuffer] = []
        self._device = device
        self.input = self._tensor((*config.input_shape, 3), "uint8", True)
        dtypes = {"masks": mask_dtype, "proto": mask_dtype, "labels": "int32"}
        self.outputs = {
            name: self._tensor(value.shape, dtypes.get(name, value.dtype.name), not bindable)
            for name, value in outputs_of(np.zeros((SIZE, SIZE, 3)), tail, mask_iou=config.mask_iou).items()
        }
        self._pointers = {name: tensor.pointer for name, tensor in self.outputs.items()}

    def _tensor(self, shape: tuple[int, ...], dtype: str, own: bool) -> DeviceTensor:
        shape = (self.max_batch, *shape)
        pointer = 0
        if own:
            self._buffers.append(self._device.allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize, "network"))
            pointer = self._buffers[-1].pointer
        return DeviceTensor(pointer, shape, np.dtype(dtype))

    def bind_outputs(self, pointers: Mapping[str, int]) -> None:
        assert self.bindable
        self._pointers = {name: pointers[name] for name in self.outputs}

    def enqueue(self, stream: Stream, batch: int) -> None:
        assert batch == self.max_batch if self.fixed_batch else 1 <= batch <= self.max_batch
        if stream.capturing and (self._uncapturable or not self.capturable):
            raise BackendError("it waits for the GPU")
        pointers = dict(self._pointers)
        fake_cuda.control().host_function(stream.handle, lambda: self._run(batch, pointers))

    def _run(self, batch: int, pointers: Mapping[str, int]) -> None:
        images = at(self.input.pointer, self.input.shape, self.input.dtype)[:batch].copy()
        self.seen.append(images)
        for index, image in enumerate(images):
            mask_iou = self.metadata.config.mask_iou
            for name, value in outputs_of(image, self.metadata.tail, mask_iou=mask_iou).items():
                tensor = self.outputs[name]
                at(pointers[name], tensor.shape, tensor.dtype)[index] = value

    def describe(self) -> dict[str, Any]:
        return {"tail": self.metadata.tail}

    def close(self) -> None:
        self.closed += 1
        for buffer in self._buffers:
            buffer.free()


def compile_for_emulator(source: str, arch: str, defines: Any = ()) -> bytes:
    """Replaces :func:`yolact_deploy.runtime.cuda.nvrtc.compile_source`."""
    return fake_cuda.image_of(Path(emulate.compile_source(source, tuple(defines))))


def emulate_kernels() -> None:
    """Let the emulator run the kernels of this process from now on."""
    nvrtc.compile_source = compile_for_emulator


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator runs the kernels of this test."""
    monkeypatch.setattr(nvrtc, "compile_source", compile_for_emulator)

"""An exported ONNX file in ONNX Runtime as a network of the CUDA frame path: device memory in, device memory out.

Inputs and outputs are bound to fixed addresses once per batch size, and a run does not wait for the GPU. ONNX Runtime
needs its stream when the session is created, so the network owns one, and events order it with the caller's stream.

Legend: N images, S input side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_deploy.config import Size
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.graph.onnx_graph import load_graph
from yolact_deploy.runtime.cuda.device_network import DeviceNetwork, DeviceTensor
from yolact_deploy.runtime.onnxruntime_gpu import first_line, open_session

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import Device, DeviceBuffer, Stream

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int32)": np.dtype(np.int32),
}


class OnnxRuntimeNetwork(DeviceNetwork):
    """One ONNX file in a GPU provider of ONNX Runtime.

    Args:
        path: the ONNX file
        device: where it runs
        provider: "cuda", "tensorrt" or "rtx"
        tail: "heads" cuts off NMS and masks, which the CUDA kernels then compute; "functions" keeps them in the graph,
            as networks with mask scores always do
        max_batch: largest batch to allocate; that of the file by default
        tf32, provider_options: as for :func:`~yolact_deploy.runtime.onnxruntime_gpu.open_session`
        size: the input of a file that takes a range of sizes; the usual one by default

    Raises:
        As :func:`~yolact_deploy.runtime.onnxruntime_gpu.open_session`.
    """

    name = "onnxruntime"
    #: its kernels may allocate memory while they run
    capturable = False

    def __init__(
        self,
        path: Path,
        device: Device,
        *,
        provider: str = "cuda",
        tail: str = "heads",
        max_batch: int | None = None,
        tf32: bool = False,
        provider_options: Mapping[str, object] | None = None,
        size: Size | None = None,
    ) -> None:
        graph = load_graph(path, "host" if tail == "heads" else "graph", gpu=True)
        if graph.mask_iou is not None:  # only the graph gives mask scores
            graph = load_graph(path, "graph", gpu=True)
        metadata, on_host = graph.metadata.at_size(size, path), graph.on_host
        self.metadata = dataclasses.replace(metadata, tail="heads") if on_host else metadata
        self.precision = "tf32" if tf32 else metadata.precision
        low, _, high = metadata.batch
        self.fixed_batch = low == high
        self.max_batch = _batch(max_batch, low, high)
        self._device, self._stream = device, device.stream()
        where: dict[str, Any] = {"provider": provider, "device": device.index, "stream": self._stream.handle}
        at_size = dataclasses.replace(graph.metadata, config=metadata.config)
        self._opened = open_session(graph.data, at_size, tf32=tf32, provider_options=provider_options, **where)
        self._buffers: list[DeviceBuffer] = []
        session, names = self._opened.session, self.metadata.outputs
        outputs = session.get_outputs()
        self.input = self._allocate("images", session.get_inputs()[0], [*metadata.config.input_shape, 3])
        shapes = {name: shape for name, _, shape in self.metadata.output_shapes}
        self.outputs = {
            name: self._allocate(name, value, shapes[name]) for name, value in zip(names, outputs, strict=True)
        }
        self._graph_names = [value.name for value in outputs]
        self._bindings: dict[int, Any] = {}
        self._options = _run_options()
        self._before, self._after = device.event(timing=False), device.event(timing=False)

    def enqueue(self, stream: Stream, batch: int) -> None:
        """Enqueue the network for the first ``batch`` images of :attr:`input` on ``stream``, without waiting.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        if batch not in self._bindings:
            self._bindings[batch] = self._bind(batch)
        stream.record(self._before)
        self._stream.wait(self._before)
        try:
            self._opened.session.run_with_iobinding(self._bindings[batch], self._options)
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"ONNX Runtime failed: {first_line(error)}") from error
        self._stream.record(self._after)
        stream.wait(self._after)

    def describe(self) -> dict[str, Any]:
        """JSON-ready facts."""
        return {**self._opened.describe(), "tail": self.metadata.tail, "max_batch": self.max_batch}

    def close(self) -> None:
        """Free the session and the buffers."""
        self._stream.synchronize()
        self._bindings.clear()
        del self._opened
        for buffer in self._buffers:
            buffer.free()
        self._buffers.clear()

    def _allocate(self, name: str, value: Any, known: Sequence[int]) -> DeviceTensor:
        """Allocate one input or output for the largest batch.

        Args:
            known: its sides behind the batch, for those that the graph leaves open
        """
        dtype = _DTYPES[value.type]
        sides = [side if isinstance(side, int) else own for side, own in zip(value.shape[1:], known, strict=True)]
        shape = (self.max_batch, *sides)
        buffer = self._device.allocate(int(np.prod(shape)) * dtype.itemsize, f"onnxruntime {name}")
        self._buffers.append(buffer)
        return DeviceTensor(buffer.pointer, shape, dtype)

    def _bind(self, batch: int) -> Any:
        if not 1 <= batch <= self.max_batch or (self.fixed_batch and batch != self.max_batch):
            raise InputError(f"batch of {batch}: this network takes {_range(self.fixed_batch, self.max_batch)}")
        binding = self._opened.session.io_binding()
        place = ("cuda", self._device.index)
        shape = [batch, *self.input.shape[1:]]
        binding.bind_input("images", *place, self.input.dtype.type, shape, self.input.pointer)
        for name, tensor in zip(self._graph_names, self.outputs.values(), strict=True):
            binding.bind_output(name, *place, tensor.dtype.type, [batch, *tensor.shape[1:]], tensor.pointer)
        return binding


def _run_options() -> Any:
    """Options of a run that returns once everything is enqueued."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _batch(wanted: int | None, low: int, high: int) -> int:
    if wanted is None:
        return high
    if not low <= wanted <= high:
        raise InputError(f"max_batch {wanted}: the file takes {low} to {high} images")
    return wanted


def _range(fixed: bool, most: int) -> str:
    return f"{most} only" if fixed else f"1 to {most}"

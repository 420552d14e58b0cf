"""A GPU through the CUDA driver: devices, memory, streams, events, modules, captured graphs.

Thin objects over ``cuda.bindings.driver`` (cuda-python 12.6 or later). They use the device's primary context, like
torch, CuPy, TensorRT and the CUDA runtime, so pointers and streams can be passed between them. All objects are freed
when nothing refers to them any more, or at exit in reverse order of creation; :meth:`close` or ``free`` do so earlier.

Sizes are in bytes, pointers are plain ints, times are in milliseconds.
"""

from __future__ import annotations

from yolact_deploy.runtime.cuda.driver.calls import CudaError
from yolact_deploy.runtime.cuda.driver.capture import Graph
from yolact_deploy.runtime.cuda.driver.device import Device
from yolact_deploy.runtime.cuda.driver.memory import DeviceBuffer, PinnedBuffer
from yolact_deploy.runtime.cuda.driver.module import Arguments, Function, Module
from yolact_deploy.runtime.cuda.driver.stream import Event, KernelQueue, Stream

__all__ = [
    "Arguments",
    "CudaError",
    "Device",
    "DeviceBuffer",
    "Event",
    "Function",
    "Graph",
    "KernelQueue",
    "Module",
    "PinnedBuffer",
    "Stream",
]

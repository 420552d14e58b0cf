"""A GPU through the CUDA driver: devices, memory, streams, events, modules, captured graphs.

Thin objects over ``cuda.bindings.driver`` (cuda-python 12.6 and later). The device's primary context is used, which is
the one that torch, CuPy, TensorRT and the CUDA runtime use, so pointers and streams can be passed between them. All
objects free themselves when nothing holds them any more, or at the end of the program in the reverse order of creation;
:meth:`close` or ``free`` do so earlier.

Sizes are in bytes, pointers are plain ints, times are in milliseconds.
"""

from __future__ import annotations

from yolact_deploy.runtime.cuda.driver.calls import CudaError
from yolact_deploy.runtime.cuda.driver.capture import Graph
from yolact_deploy.runtime.cuda.driver.device import Device
from yolact_deploy.runtime.cuda.driver.memory import DeviceBuffer, PinnedBuffer
from yolact_deploy.runtime.cuda.driver.module import Arguments, Function, Module
from yolact_deploy.runtime.cuda.driver.stream import Event, Stream

__all__ = [
    "Arguments",
    "CudaError",
    "Device",
    "DeviceBuffer",
    "Event",
    "Function",
    "Graph",
    "Module",
    "PinnedBuffer",
    "Stream",
]

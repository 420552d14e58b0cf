"""A GPU and its primary context."""

from __future__ import annotations

import threading
from typing import Any

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import calls
from yolact_deploy.runtime.cuda.driver.memory import DeviceBuffer, Ledger, PinnedBuffer
from yolact_deploy.runtime.cuda.driver.module import Module
from yolact_deploy.runtime.cuda.driver.stream import Event, Stream

#: name in Device.attributes -> name of the CUdevice_attribute
ATTRIBUTES = {
    "multiprocessors": "MULTIPROCESSOR_COUNT",
    "integrated": "INTEGRATED",
    "clock_khz": "CLOCK_RATE",
    "memory_clock_khz": "MEMORY_CLOCK_RATE",
    "memory_bus_bits": "GLOBAL_MEMORY_BUS_WIDTH",
    "l2_cache_bytes": "L2_CACHE_SIZE",
    "shared_bytes_of_block": "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
    "shared_bytes_of_multiprocessor": "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
    "threads_of_multiprocessor": "MAX_THREADS_PER_MULTIPROCESSOR",
    "copy_engines": "ASYNC_ENGINE_COUNT",
}


class Device:
    """One GPU through its primary context, which torch, CuPy, TensorRT and the CUDA runtime share.

    ``with device:`` makes it current in this thread and restores the previous one; :meth:`use` leaves it current.

    Attributes:
        index: ordinal, as in "cuda:0"
        name: the driver's name of the GPU
        compute_capability: such as (8, 7)
        integrated: whether GPU and CPU share memory (Jetson): the GPU reads pinned memory without a copy
        multiprocessors: number of multiprocessors
        attributes: the values of ATTRIBUTES; 0 if the driver does not tell one
        context: the CUcontext
    """

    _opened: dict[int, Device] = {}  # noqa: RUF012  # of the class
    _lock = threading.Lock()

    def __init__(self, index: int) -> None:
        """Use :meth:`open`."""
        raw = calls.call("cuDeviceGet", index)
        kinds = calls.start().CUdevice_attribute

        def attribute(name: str) -> int:
            return int(calls.call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), raw))

        def optional(name: str) -> int:
            try:
                return attribute(name)
            except (calls.CudaError, AttributeError):  # of another generation of drivers or of cuda-python
                return 0

        self.index = index
        self.name = device_name(index)
        self.compute_capability = attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")
        self.attributes = {name: optional(kind) for name, kind in ATTRIBUTES.items()}
        self.integrated = bool(self.attributes["integrated"])
        self.multiprocessors = self.attributes["multiprocessors"]
        self.ledger = Ledger()
        self.pinned_ledger = Ledger()
        # Retained until the process ends: other libraries may use it, and freeing our allocations needs it.
        self.context: Any = calls.call("cuDevicePrimaryCtxRetain", raw)
        bindings = calls.start()
        self._set_current = bindings.cuCtxSetCurrent
        self._push, self._pop = bindings.cuCtxPushCurrent, bindings.cuCtxPopCurrent

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """The device with this ordinal. The same object every time; threads can share it.

        Raises:
            BackendError: no such device, no driver or one that is too old, or a forked child.
        """
        calls.start()
        with cls._lock:
            if index not in cls._opened:
                cls._opened[index] = cls(_checked(index))
            return cls._opened[index]

    def use(self) -> None:
        """Make the device current in this thread, in case other libraries changed it; takes less than 1 us."""
        calls.check("cuCtxSetCurrent", self._set_current, self.context)

    def __enter__(self) -> Device:
        calls.check("cuCtxPushCurrent", self._push, self.context)
        return self

    def __exit__(self, *exception: object) -> None:
        error, _ = self._pop()
        if error:
            raise calls.failure("cuCtxPopCurrent", error)

    def __repr__(self) -> str:
        return f"<cuda:{self.index} {self.name}>"

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of device memory."""
        with self:
            free, total = calls.call("cuMemGetInfo")
        return int(free), int(total)

    def usage(self) -> dict[str, int]:
        """Bytes of device memory held through :meth:`allocate`, by label, the largest first."""
        return self.ledger.usage()

    def pinned_usage(self) -> dict[str, int]:
        """Bytes of pinned host memory held through :meth:`pinned`, by label, the largest first."""
        return self.pinned_ledger.usage()

    def allocate(self, nbytes: int, label: str) -> DeviceBuffer:
        """Uninitialized device memory, accounted under a label.

        Raises:
            CudaError: out of memory; the message says how much is free and which labels hold how much.
        """
        return DeviceBuffer(self, nbytes, label)

    def pinned(self, nbytes: int, label: str) -> PinnedBuffer:
        """Uninitialized page-locked host memory that every GPU can address, accounted under a label."""
        return PinnedBuffer(self, nbytes, label)

    def stream(self, high_priority: bool = True) -> Stream:
        """A new stream that does not synchronize with the default stream."""
        return Stream(self, high_priority)

    def event(self, timing: bool = True, blocking: bool = False) -> Event:
        """A new event.

        Args:
            timing: allow elapsed_since(); an event without timing costs less
            blocking: sleep instead of spinning while waiting for it: frees a CPU core but adds some microseconds
        """
        return Event(self, timing, blocking)

    def load_module(self, image: bytes, name: str = "kernels") -> Module:
        """Load a cubin or PTX; ``name`` is for messages."""
        return Module(self, image, name)


def device_count() -> int:
    """The number of GPUs visible to this process."""
    return int(calls.call("cuDeviceGetCount"))


def device_name(index: int) -> str:
    """The driver's name of a GPU."""
    name: bytes = calls.call("cuDeviceGetName", 256, calls.call("cuDeviceGet", index))
    return name.split(b"\0")[0].decode(errors="replace")


def _checked(index: int) -> int:
    count = device_count()
    if not 0 <= index < count:
        there = ", ".join(f"cuda:{each} ({device_name(each)})" for each in range(count)) or "none"
        raise BackendError(
            f"there is no GPU cuda:{index}. Visible to this process: {there}. Choose one of these"
            + ("; CUDA_VISIBLE_DEVICES may hide others" if count else "")
        )
    return index

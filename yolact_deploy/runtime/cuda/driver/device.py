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
    """One GPU through its primary context, which torch, CuPy, TensorRT and the CUDA runtime use as well.

    ``with device:`` makes it current in this thread, and afterwards puts back what was; :meth:`use` leaves it current.

    Attributes:
        index: ordinal, as in "cuda:0"
        name: as the driver calls it
        compute_capability: (8, 7)
        integrated: whether GPU and CPU share one memory (Jetson): the GPU reads pinned memory without a copy
        multiprocessors: how many
        attributes: those of ATTRIBUTES
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

        self.index = index
        self.name = device_name(index)
        self.compute_capability = attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")
        self.attributes = {name: attribute(kind) for name, kind in ATTRIBUTES.items()}
        self.integrated = bool(self.attributes["integrated"])
        self.multiprocessors = self.attributes["multiprocessors"]
        self.ledger = Ledger()
        self.pinned_ledger = Ledger()
        # Retained to the end of the process: others may use it, and freeing what we allocated needs it.
        self.context: Any = calls.call("cuDevicePrimaryCtxRetain", raw)
        self._set_current = calls.start().cuCtxSetCurrent

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """The device of an ordinal: the same object every time, to be shared between threads.

        Raises:
            BackendError: no driver, one that is too old, or no such device; in a forked child; with the cure
        """
        calls.start()
        with cls._lock:
            if index not in cls._opened:
                cls._opened[index] = cls(_checked(index))
            return cls._opened[index]

    def use(self) -> None:
        """Make the device current in this thread, which costs less than a microsecond; others may have changed it."""
        (error,) = self._set_current(self.context)
        if error:
            raise calls.failure("cuCtxSetCurrent", error)

    def __enter__(self) -> Device:
        calls.call("cuCtxPushCurrent", self.context)
        return self

    def __exit__(self, *exception: object) -> None:
        calls.call("cuCtxPopCurrent")

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
        """Device memory, uninitialised, booked under a label.

        Raises:
            CudaError: not so much is free; says how much is, and who holds how much of what this process took
        """
        return DeviceBuffer(self, nbytes, label)

    def pinned(self, nbytes: int, label: str) -> PinnedBuffer:
        """Page-locked host memory that every GPU can also address, uninitialised, booked under a label."""
        return PinnedBuffer(self, nbytes, label)

    def stream(self, high_priority: bool = True) -> Stream:
        """A new stream, which does not synchronise with the default stream."""
        return Stream(self, high_priority)

    def event(self, timing: bool = True, blocking: bool = False) -> Event:
        """A new event.

        Args:
            timing: whether elapsed_since() is wanted; without, an event costs less
            blocking: sleep while waiting for it, instead of spinning: frees a CPU core, for some microseconds
        """
        return Event(self, timing, blocking)

    def load_module(self, image: bytes, name: str = "kernels") -> Module:
        """Load a cubin or PTX; ``name`` is for messages."""
        return Module(self, image, name)


def device_count() -> int:
    """How many GPUs the driver lets this process see."""
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
            f"there is no GPU cuda:{index} here. The driver shows this process: {there}. Choose one of these"
            + ("; CUDA_VISIBLE_DEVICES may hide others" if count else "")
        )
    return index

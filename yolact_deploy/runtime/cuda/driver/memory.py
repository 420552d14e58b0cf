"""Device memory and pinned host memory, with an account of which label holds how much."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from yolact_deploy.runtime.cuda.driver import calls

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver.device import Device


class Ledger:
    """Bytes held per label; thread-safe."""

    def __init__(self) -> None:
        # Reentrant, because a finalizer may run in a thread that is inside add().
        self._lock = threading.RLock()
        self._bytes: Counter[str] = Counter()

    def add(self, label: str, nbytes: int) -> None:
        """Add ``nbytes`` to a label; negative when memory is freed."""
        with self._lock:
            self._bytes[label] += nbytes

    def usage(self) -> dict[str, int]:
        """Bytes by label, the largest first, without labels that hold nothing."""
        with self._lock:
            return {label: nbytes for label, nbytes in self._bytes.most_common() if nbytes}


class DeviceBuffer:
    """Device memory, freed when nothing refers to the object any more, or by :meth:`free`.

    Attributes:
        pointer: device address; a multiple of 256
        nbytes: as requested
        device: the device it belongs to
    """

    def __init__(self, device: Device, nbytes: int, label: str) -> None:
        """Use :meth:`Device.allocate`."""
        self.device = device
        self.nbytes = nbytes
        self.label = label
        with device:
            try:
                self.pointer = int(calls.call("cuMemAlloc", max(nbytes, 1)))
            except calls.CudaError as error:
                raise _refused(device, error, nbytes, label) from error
        self._free = _book(self, device, device.ledger, "cuMemFree", self.pointer, nbytes, label)

    def free(self) -> None:
        """Free the memory now, after waiting for work that uses it."""
        self._free()


class PinnedBuffer:
    """Page-locked host memory, which the GPU can copy from and to at full speed and can also address directly.

    Attributes:
        host_pointer: address for the CPU
        pointer: address of the same memory for the GPU
        nbytes: as requested
    """

    def __init__(self, device: Device, nbytes: int, label: str) -> None:
        """Use :meth:`Device.pinned`."""
        bindings = calls.start()
        self.nbytes = nbytes
        self.label = label
        flags = bindings.CU_MEMHOSTALLOC_PORTABLE | bindings.CU_MEMHOSTALLOC_DEVICEMAP
        with device:
            try:
                self.host_pointer = int(calls.call("cuMemHostAlloc", max(nbytes, 1), flags))
            except calls.CudaError as error:
                raise _refused(device, error, nbytes, label) from error
            # Arrays refer to this object, not to the buffer, so the memory lives as long as any array.
            self._memory: Any = (ctypes.c_ubyte * nbytes).from_address(self.host_pointer)
            _book(self._memory, device, device.pinned_ledger, "cuMemFreeHost", self.host_pointer, nbytes, label)
            self.pointer = int(calls.call("cuMemHostGetDevicePointer", self.host_pointer, 0))

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """The memory from byte ``offset`` on as an array, which keeps it allocated."""
        if self._memory is None:
            raise ValueError(f"the pinned buffer '{self.label}' was freed")
        count = math.prod(shape)
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape) if count else np.empty(shape, dtype)

    def free(self) -> None:
        """Free the memory as soon as no array uses it."""
        self._memory = None


def _book(
    owner: Any, device: Device, ledger: Ledger, free: str, pointer: int, nbytes: int, label: str
) -> weakref.finalize[Any, Any]:
    """Account for an allocation, and free it when ``owner`` is collected."""
    ledger.add(label, nbytes)
    return weakref.finalize(owner, _give_back, device.context, free, pointer, ledger, label, nbytes)


def _give_back(context: Any, free: str, pointer: int, ledger: Ledger, label: str, nbytes: int) -> None:
    calls.release(context, free, pointer)
    ledger.add(label, -nbytes)


def _refused(device: Device, error: calls.CudaError, nbytes: int, label: str) -> calls.CudaError:
    """The error of a failed allocation: how much was requested, how much is free, and which labels hold how much."""
    if error.code_name != "CUDA_ERROR_OUT_OF_MEMORY":
        return error.during(f"cannot allocate {size_text(nbytes)} for {label}")
    pinned = error.call == "cuMemHostAlloc"
    free, total = device.memory()
    usage = device.pinned_usage() if pinned else device.usage()
    holders = ", ".join(f"{name} {size_text(size)}" for name, size in usage.items()) or "nothing"
    where = "pinned host memory" if pinned else f"memory on cuda:{device.index} ({device.name})"
    available = "" if pinned else f" {size_text(free)} of {size_text(total)} are free."
    return calls.CudaError(
        f"out of {where}: {size_text(nbytes)} were requested for {label}.{available} This process holds: {holders}. "
        "Close unused models, use a smaller batch, half precision or a smaller model, and check with nvidia-smi what "
        "other programs hold",
        error.call,
        error.code,
        error.code_name,
    )


def size_text(nbytes: int) -> str:
    """
    >>> size_text(800), size_text(126 * 2**20), size_text(3 * 2**30)
    ('800 bytes', '126.0 MiB', '3.0 GiB')
    """
    if nbytes < 2**20:
        return f"{nbytes} bytes"
    return f"{nbytes / 2**20:.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"

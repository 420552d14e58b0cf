"""Device memory and pinned host memory, and the account of who holds how much."""

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
    """How many bytes are held under which label; several threads may use it."""

    def __init__(self) -> None:
        # A finalizer may run in a thread that is inside add(): the lock must let it in.
        self._lock = threading.RLock()
        self._bytes: Counter[str] = Counter()

    def add(self, label: str, nbytes: int) -> None:
        """Book ``nbytes``, which are negative when memory is given back."""
        with self._lock:
            self._bytes[label] += nbytes

    def usage(self) -> dict[str, int]:
        """Bytes by label, the largest first; labels that hold nothing are left out."""
        with self._lock:
            return {label: nbytes for label, nbytes in self._bytes.most_common() if nbytes}


class DeviceBuffer:
    """Device memory, freed when nothing refers to the object any more, or by :meth:`free`.

    Attributes:
        pointer: device address; a multiple of 256
        nbytes: as asked for
        device: where it lies
    """

    def __init__(self, device: Device, nbytes: int, label: str) -> None:
        """Use :meth:`Device.allocate`."""
        self.device = device
        self.nbytes = nbytes
        self.label = label
        with device:
            error, pointer = calls.start().cuMemAlloc(max(nbytes, 1))
            if error:
                raise _refused(device, "cuMemAlloc", error, nbytes, label)
        self.pointer = int(pointer)
        self._free = _book(self, device, device.ledger, "cuMemFree", self.pointer, nbytes, label)

    def free(self) -> None:
        """Give the memory back now; work that uses it is waited for."""
        self._free()


class PinnedBuffer:
    """Page-locked host memory, which the GPU copies from and to at full speed and can also address directly.

    Attributes:
        host_pointer: address for the CPU
        pointer: address of the same memory for the GPU
        nbytes: as asked for
    """

    def __init__(self, device: Device, nbytes: int, label: str) -> None:
        """Use :meth:`Device.pinned`."""
        bindings = calls.start()
        self.nbytes = nbytes
        self.label = label
        flags = bindings.CU_MEMHOSTALLOC_PORTABLE | bindings.CU_MEMHOSTALLOC_DEVICEMAP
        with device:
            error, pointer = bindings.cuMemHostAlloc(max(nbytes, 1), flags)
            if error:
                raise _refused(device, "cuMemHostAlloc", error, nbytes, label)
            self.host_pointer = int(pointer)
            # The arrays refer to this object, not to us: the memory stays as long as any of them.
            self._memory: Any = (ctypes.c_ubyte * nbytes).from_address(self.host_pointer)
            _book(self._memory, device, device.pinned_ledger, "cuMemFreeHost", self.host_pointer, nbytes, label)
            self.pointer = int(calls.call("cuMemHostGetDevicePointer", self.host_pointer, 0))

    def array(self, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """The memory from byte ``offset`` on as an array; it stays allocated as long as the array lives."""
        if self._memory is None:
            raise ValueError(f"the pinned buffer '{self.label}' was freed")
        count = math.prod(shape)
        return np.frombuffer(self._memory, dtype, count, offset).reshape(shape) if count else np.empty(shape, dtype)

    def free(self) -> None:
        """Give the memory back, once no array uses it any more."""
        self._memory = None


def _book(
    owner: Any, device: Device, ledger: Ledger, free: str, pointer: int, nbytes: int, label: str
) -> weakref.finalize[Any, Any]:
    """Book an allocation, and free it when ``owner`` goes."""
    ledger.add(label, nbytes)
    return weakref.finalize(owner, _give_back, device.context, free, pointer, ledger, label, nbytes)


def _give_back(context: Any, free: str, pointer: int, ledger: Ledger, label: str, nbytes: int) -> None:
    calls.release(context, free, pointer)
    ledger.add(label, -nbytes)


def _refused(device: Device, call: str, error: Any, nbytes: int, label: str) -> calls.CudaError:
    """The error of an allocation: how much was asked for, what there is, and who of us holds how much."""
    if error.name != "CUDA_ERROR_OUT_OF_MEMORY":
        return calls.failure(call, error, f"cannot allocate {size_text(nbytes)} for {label}")
    pinned = call == "cuMemHostAlloc"
    free, total = device.memory()
    usage = device.pinned_usage() if pinned else device.usage()
    held = ", ".join(f"{name} {size_text(held)}" for name, held in usage.items()) or "nothing"
    where = "pinned host memory" if pinned else f"memory on cuda:{device.index} ({device.name})"
    there = "" if pinned else f" {size_text(free)} of {size_text(total)} are free."
    return calls.CudaError(
        f"out of {where}: {size_text(nbytes)} were asked for, for {label}.{there} This process holds for itself: "
        f"{held}. Cure: close what is not needed, use a smaller batch, half precision or a smaller model, and "
        "see with nvidia-smi what other programs hold",
        call,
        int(error),
        error.name,
    )


def size_text(nbytes: int) -> str:
    """
    >>> size_text(800), size_text(126 * 2**20), size_text(3 * 2**30)
    ('800 bytes', '126.0 MiB', '3.0 GiB')
    """
    if nbytes < 2**20:
        return f"{nbytes} bytes"
    return f"{nbytes / 2**20:.1f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"

"""Kernels on the device: modules, their functions, and arguments packed once."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_deploy.runtime.cuda.driver import calls

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver.device import Device

#: room for one argument: a pointer, or a scalar of up to 8 bytes
_SLOT = 8


class Arguments:
    """Arguments of a kernel, laid out as the driver wants them, so that a launch only passes an address.

    Attributes:
        address: of the array of pointers to the values; valid as long as this object lives
    """

    __slots__ = ("_pointers", "_values", "address")

    def __init__(self, values: Sequence[int | np.generic]) -> None:
        """
        Args:
            values: Python ints are device pointers; NumPy scalars of up to 8 bytes are passed by value
        """
        self._values = (ctypes.c_ubyte * (_SLOT * len(values)))()
        first = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * len(values))(*(first + _SLOT * index for index in range(len(values))))
        self.address = ctypes.addressof(self._pointers)
        for index, value in enumerate(values):
            self.set(index, value)

    def set(self, index: int, value: int | np.generic) -> None:
        """Change one argument for the launches to come; a captured graph keeps what it was captured with."""
        if not 0 <= index < len(self._pointers):
            raise IndexError(f"expected an argument from 0 to {len(self._pointers) - 1}, got {index}")
        if type(value) is int:
            value = np.uint64(value)
        if not isinstance(value, np.generic) or value.itemsize > _SLOT:
            raise TypeError(f"expected a pointer as int or a NumPy scalar of up to {_SLOT} bytes, got {value!r}")
        data = value.tobytes()
        self._values[_SLOT * index : _SLOT * index + len(data)] = list(data)


class Module:
    """Compiled kernels in a device's memory; unloaded when neither it nor one of its functions is referred to."""

    def __init__(self, device: Device, image: bytes, name: str) -> None:
        """See :meth:`Device.load_module`."""
        self.name = name
        with device:
            try:
                self.raw: Any = calls.call("cuModuleLoadData", image)
            except calls.CudaError as error:
                driver = calls.version_text(calls.driver_version())
                raise calls.CudaError(
                    f"cannot load {name} into {device.name} (compute capability "
                    f"{'.'.join(map(str, device.compute_capability))}, driver for CUDA {driver}): {error}",
                    error.call,
                    error.code,
                    error.code_name,
                ) from error
        self.device = device
        self._close = weakref.finalize(self, calls.release, device.context, "cuModuleUnload", self.raw)

    def function(self, name: str) -> Function:
        """The kernel of this (extern "C") name."""
        return Function(self, name)

    def close(self) -> None:
        """Unload now; its functions must not be launched any more."""
        self._close()


class Function:
    """A kernel of a module.

    Attributes:
        name: its extern "C" name
        raw: the CUfunction
    """

    def __init__(self, module: Module, name: str) -> None:
        """See :meth:`Module.function`."""
        self.name = name
        self.module = module  # keeps it loaded
        with module.device:
            error, self.raw = calls.start().cuModuleGetFunction(module.raw, name.encode())
        if error:
            raise calls.failure("cuModuleGetFunction", error, f"{module.name} has no kernel '{name}'")

    def allow_shared(self, nbytes: int) -> None:
        """Let launches use up to this many bytes of dynamic shared memory, where that is more than 48 KiB."""
        attribute = calls.start().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        with self.module.device:
            calls.call("cuFuncSetAttribute", self.raw, attribute, nbytes)

    def resources(self) -> dict[str, int]:
        """``registers`` and ``local_bytes`` (spilled registers, if any) of a thread, ``shared_bytes`` of a block."""
        kinds = calls.start().CUfunction_attribute
        wanted = {
            "registers": kinds.CU_FUNC_ATTRIBUTE_NUM_REGS,
            "local_bytes": kinds.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
            "shared_bytes": kinds.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        }
        with self.module.device:
            return {name: int(calls.call("cuFuncGetAttribute", kind, self.raw)) for name, kind in wanted.items()}

    def blocks_per_multiprocessor(self, threads: int, shared: int = 0) -> int:
        """How many blocks of so many threads and bytes of dynamic shared memory run on a multiprocessor at once."""
        with self.module.device:
            return int(calls.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", self.raw, threads, shared))

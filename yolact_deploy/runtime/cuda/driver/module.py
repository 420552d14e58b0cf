"""Kernels on the device: modules, their functions, and packed arguments."""

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
    """Arguments of a kernel in the driver's layout, so that a launch only passes an address.

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
            scalar = np.uint64(value) if type(value) is int else value
            if not isinstance(scalar, np.generic) or scalar.itemsize > _SLOT:
                raise TypeError(f"expected a pointer as int or a NumPy scalar of up to {_SLOT} bytes, got {value!r}")
            data = scalar.tobytes()
            self._values[_SLOT * index : _SLOT * index + len(data)] = list(data)


class Module:
    """Compiled kernels in a device's memory; unloaded when nothing refers to the module or its functions."""

    def __init__(self, device: Device, image: bytes, name: str) -> None:
        """See :meth:`Device.load_module`."""
        self.name = name
        with device:
            try:
                self.raw: Any = calls.call("cuModuleLoadData", image)
            except calls.CudaError as error:
                driver = calls.version_text(calls.driver_version())
                raise error.during(
                    f"cannot load {name} into {device.name} (compute capability "
                    f"{'.'.join(map(str, device.compute_capability))}, driver for CUDA {driver})"
                ) from error
        self.device = device
        self._close = weakref.finalize(self, calls.release, device.context, "cuModuleUnload", self.raw)

    def function(self, name: str) -> Function:
        """The kernel with this (extern "C") name."""
        return Function(self, name)

    def close(self) -> None:
        """Unload now; its functions must not be launched afterwards."""
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
            try:
                self.raw = calls.call("cuModuleGetFunction", module.raw, name.encode())
            except calls.CudaError as error:
                raise error.during(f"{module.name} has no kernel '{name}'") from error

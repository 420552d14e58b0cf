"""DLPack through ctypes: reads capsules of other libraries and creates our own.

The structures are those of dlpack.h 1.0 (and of the unversioned form before it). The protocol is that of the Python
array API standard: a capsule named "dltensor" or "dltensor_versioned", whose tensor its consumer frees once.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

#: DLDeviceType
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
#: device types that kernels of this package can read
CUDA_KINDS = (CUDA, CUDA_MANAGED)

_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode -> NumPy kind

_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _api(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the Python C API, as a separate object so that setting its types does not affect other users."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _api("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer_of = _api("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)


# -- in -------------------------------------------------------------------------------------------------------------


class Imported:
    """A tensor of another library; this object keeps its memory alive.

    Attributes:
        pointer: address of the first element
        shape: sizes
        strides: in bytes
        dtype: of the elements
        kind: DLDeviceType
        device: ordinal
    """

    def __init__(self, producer: Any, stream: int | None) -> None:
        """
        Args:
            producer: an object with ``__dlpack__``
            stream: handle of the stream that will read the data; the producer synchronizes with it. None: host data

        Raises:
            BufferError: the producer cannot export it, or NumPy has no such element type.
        """
        capsule = _capsule_of(producer, stream)
        tensor = _tensor_of(capsule)
        self.dtype = _dtype_of(tensor)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.strides = (
            tuple(stride * self.dtype.itemsize for stride in tensor.strides[: tensor.ndim])
            if tensor.strides
            else strides_in_c_order(self.shape, self.dtype.itemsize)
        )
        self.pointer = (tensor.data or 0) + tensor.byte_offset
        self.kind, self.device = int(tensor.device_type), int(tensor.device_id)
        # An unconsumed capsule calls its deleter when it is collected, so holding it is enough.
        self._capsule = capsule


def _tensor_of(capsule: Any) -> _Tensor:
    """The tensor in a capsule; it must not outlive the capsule."""
    if _is_valid(capsule, _PLAIN):
        plain: _Tensor = _Managed.from_address(_pointer_of(capsule, _PLAIN)).tensor
        return plain
    if not _is_valid(capsule, _VERSIONED):
        raise BufferError("its capsule has no DLPack tensor, or was consumed before")
    managed = _ManagedVersioned.from_address(_pointer_of(capsule, _VERSIONED))
    if managed.major != 1:
        raise BufferError(f"DLPack {managed.major}.{managed.minor} is not supported")
    versioned: _Tensor = managed.tensor
    return versioned


def _capsule_of(producer: Any, stream: int | None) -> Any:
    arguments: dict[str, Any] = {} if stream is None else {"stream": stream}
    try:
        return producer.__dlpack__(**arguments, max_version=(1, 0))
    except TypeError:  # older than DLPack 1.0
        return producer.__dlpack__(**arguments)


def strides_in_c_order(shape: tuple[int, ...], unit: int) -> tuple[int, ...]:
    """Strides of a contiguous array whose elements occupy ``unit``.

    >>> strides_in_c_order((2, 3, 4), 1)
    (12, 4, 1)
    """
    strides = []
    for size in reversed(shape):
        strides.append(unit)
        unit *= size
    return tuple(reversed(strides))


def _dtype_of(tensor: _Tensor) -> np.dtype[Any]:
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise BufferError(f"its elements (DLPack type {tensor.code}, {tensor.bits} bits) have no NumPy type")
    return np.dtype(f"{kind}{tensor.bits // 8}")


# -- out ------------------------------------------------------------------------------------------------------------


class _Lent:
    """Memory that NumPy may describe but must not access, and the object that owns it."""

    def __init__(self, owner: object, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.owner = owner
        self.__array_interface__ = {"data": (pointer, False), "shape": shape, "typestr": dtype.str, "version": 3}


def export(
    owner: object, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], place: tuple[int, int], versioned: bool
) -> Any:
    """A capsule over our memory, in C order; it keeps ``owner`` alive until its consumer is done.

    NumPy creates the capsule as if this were host memory, and the device is filled in afterwards. The deleter is
    therefore written in C: it may run in any thread, during an exception, and late at interpreter exit.

    Args:
        place: (DLDeviceType, ordinal)
        versioned: use the form of DLPack 1.0, which the consumer must have requested
    """
    array: Any = np.asarray(_Lent(owner, pointer, shape, dtype))
    try:
        capsule = array.__dlpack__(max_version=(1, 0)) if versioned else array.__dlpack__()
    except TypeError:  # NumPy before 2.1; consumers must accept this form as well
        capsule = array.__dlpack__()
    tensor = _tensor_of(capsule)
    tensor.device_type, tensor.device_id = place
    return capsule

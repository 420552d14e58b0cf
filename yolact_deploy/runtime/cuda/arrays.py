"""Device arrays of other libraries in, and ours out: ``__cuda_array_interface__`` and DLPack, without a copy.

This module does not know what other libraries do with a pointer: it cannot detect an array whose memory was freed or
is being written elsewhere.

Legend: N images, H x W image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from yolact_deploy.errors import InputError
from yolact_deploy.runtime.cuda import dlpack
from yolact_deploy.runtime.cuda.driver import calls

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import Device, Stream

Shape = tuple[int, ...]

#: handle of the default stream that synchronizes with the others
LEGACY_STREAM = 1


def is_device_array(value: object) -> bool:
    """Whether this is an array on a CUDA device (torch, CuPy, pycuda, Numba, ours), without touching its data."""
    if isinstance(value, np.ndarray):
        return False
    # DLPack first: torch's other property raises for a tensor that requires a gradient.
    place = getattr(value, "__dlpack_device__", None)
    if place is not None:
        return int(place()[0]) in dlpack.CUDA_KINDS
    return hasattr(value, "__cuda_array_interface__")


class Images(NamedTuple):
    """Frames on a device: uint8 BGR, the pixels of a row without gaps."""

    pointers: tuple[int, ...]  #: device address of each frame
    height: int
    width: int
    pitch: int  #: bytes from one row to the next


@dataclass(frozen=True)
class DeviceArray:
    """An array on a device that belongs to another library."""

    pointer: int  #: address of the first element
    shape: Shape
    strides: Shape  #: bytes from one element to the next, along each axis
    dtype: np.dtype[Any]
    device: int  #: ordinal
    stream: int | None  #: handle of the stream to wait for, if any
    owner: object  #: keeps the memory alive

    @classmethod
    def from_any(cls, value: Any, stream: Stream) -> DeviceArray:
        """Take an array of another library and make ``stream`` wait for the work that writes it.

        Raises:
            InputError: not a device array, on another device, or not shareable; the message says what to do
        """
        interface = _interface(value)
        # Before version 3 the interface does not name the stream that writes the data; DLPack does.
        if interface is not None and (interface.get("version", 0) >= 3 or not hasattr(value, "__dlpack__")):
            array = cls._from_interface(interface, value)
        elif is_device_array(value):
            array = cls._from_dlpack(value, stream)
        else:
            raise InputError(
                f"expected an array on a CUDA device (torch, CuPy, pycuda, Numba), got {_kind(value)}: pass arrays in "
                "host memory as NumPy arrays"
            )
        with stream.device:
            if array.pointer:  # an empty array may have none
                array = replace(array, device=_check_pointer(array, stream.device, _kind(value)))
            if array.stream is not None and array.stream != stream.handle:
                stream.wait_for(array.stream)
        return array

    @classmethod
    def _from_interface(cls, interface: dict[str, Any], value: Any) -> DeviceArray:
        if interface.get("mask") is not None:
            raise InputError("masked device arrays are not supported: pass the plain array")
        dtype = np.dtype(interface["typestr"])
        shape = tuple(int(size) for size in interface["shape"])
        strides = interface.get("strides")
        return cls(
            pointer=int(interface["data"][0] or 0),
            shape=shape,
            strides=dlpack.strides_in_c_order(shape, dtype.itemsize) if strides is None else tuple(map(int, strides)),
            dtype=dtype,
            device=-1,
            stream=_stream_of(interface),
            owner=value,
        )

    @classmethod
    def _from_dlpack(cls, value: Any, stream: Stream) -> DeviceArray:
        try:
            tensor = dlpack.Imported(value, stream.handle)
        except (BufferError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{_kind(value)} cannot be shared by DLPack: {error}") from error
        return cls(tensor.pointer, tensor.shape, tensor.strides, tensor.dtype, tensor.device, None, tensor)

    def as_images(self) -> Images:
        """As frames.

        Raises:
            InputError: not uint8 [H, W, 3] or [N, H, W, 3], or the pixels of a row are not next to each other
        """
        bytes_3d_or_4d = self.dtype == np.uint8 and len(self.shape) in (3, 4)
        if not bytes_3d_or_4d or self.shape[-1] != 3:
            planar = bytes_3d_or_4d and self.shape[-3] == 3
            hint = ". For channels first: tensor.permute(..., 1, 2, 0).contiguous()" if planar else ""
            raise InputError(
                f"expected BGR frames uint8 [H, W, 3] or [N, H, W, 3] on the device, got {self.dtype} "
                f"{list(self.shape)}{hint}"
            )
        batch, step = (self.shape[0], self.strides[0]) if len(self.shape) == 4 else (1, 0)
        height, width = self.shape[-3:-1]
        if 0 in self.shape:
            raise InputError(f"expected frames with pixels, got {list(self.shape)}")
        pitch, pixel, channel = self.strides[-3:]
        # The stride of an axis with one element has no meaning.
        pitch = pitch if height > 1 else 3 * width
        if channel != 1 or (width > 1 and pixel != 3) or pitch < 3 * width:
            raise InputError(
                "expected frames with adjacent pixels in each row (rows may be padded), got "
                f"{list(self.shape)} with strides {list(self.strides)}: call tensor.contiguous() or "
                "cupy.ascontiguousarray(array)"
            )
        return Images(tuple(self.pointer + index * step for index in range(batch)), height, width, pitch)


def _kind(value: object) -> str:
    return f"{type(value).__module__.partition('.')[0]}.{type(value).__qualname__}"


def _interface(value: Any) -> dict[str, Any] | None:
    """``__cuda_array_interface__``, if there is one; libraries raise errors of many kinds if it is not available."""
    try:
        interface: dict[str, Any] | None = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:
        raise InputError(f"{_kind(value)} cannot be shared with other libraries: {error}") from error
    return interface


def _stream_of(interface: dict[str, Any]) -> int | None:
    """The stream to wait for: version 3 names it, with None for none; earlier versions imply the default stream."""
    if interface.get("version", 0) < 3:
        return LEGACY_STREAM
    stream = interface.get("stream")
    return stream if stream is None else int(stream) or LEGACY_STREAM


def _check_pointer(array: DeviceArray, device: Device, kind: str) -> int:
    """The ordinal of the device that the memory is on, if a kernel of ``device`` can read it."""
    bindings = calls.start()
    kinds = bindings.CUpointer_attribute
    try:
        ordinal = calls.call("cuPointerGetAttribute", kinds.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, array.pointer)
    except calls.CudaError as error:
        raise InputError(
            f"{kind} points to {array.pointer:#x}, which is not GPU memory: {error.code_name or error}"
        ) from error
    if ordinal != device.index:
        raise InputError(
            f"the array is on cuda:{ordinal} and the model on cuda:{device.index}: move the array "
            f"(tensor.to('cuda:{device.index}')), or load the model with device=cuda:{ordinal}"
        )
    code, context = bindings.cuPointerGetAttribute(kinds.CU_POINTER_ATTRIBUTE_CONTEXT, array.pointer)
    if not code and int(context) not in (0, int(device.context)):
        raise InputError(
            f"{kind} belongs to a CUDA context of its own, whose memory the model cannot read: with pycuda, use "
            "'import pycuda.autoprimaryctx' instead of 'import pycuda.autoinit'"
        )
    return int(ordinal)


class SharedArray:
    """Our device memory for other libraries, without a copy: ``torch.from_dlpack(shared)``, ``cupy.asarray(shared)``.

    The memory lives as long as this object and everything made from it. Its creator documents how long its *contents*
    stay.

    Attributes:
        pointer: device address
        shape, dtype: contiguous, in C order
        device: where it is
        stream: writes it; a consumer's stream waits for the work that is on it when the consumer takes the array
    """

    def __init__(
        self, owner: object, pointer: int, shape: Shape, dtype: Any, device: Device, stream: Stream, ready: Any = None
    ) -> None:
        """
        Args:
            owner: keeps the memory alive
            ready: an Event after which the data is complete, so that consumers need not wait for later work
        """
        self._owner = owner
        self._ready = ready
        self.pointer = pointer
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.device = device
        self.stream = stream

    def __repr__(self) -> str:
        return f"<{self.dtype} {list(self.shape)} on cuda:{self.device.index}>"

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream.handle,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule.

        Args:
            stream: of the consumer, which waits for ours; None: the legacy default stream; -1: no waiting
        """
        if copy:
            raise BufferError("only shared memory is available: copy it after sharing")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(f"the memory is on cuda:{self.device.index}; copy it there, after sharing it")
        consumer = LEGACY_STREAM if stream is None else int(stream)
        if consumer != -1 and consumer != self.stream.handle:
            with self.device:
                self._let_wait(consumer or LEGACY_STREAM)
        versioned = max_version is not None and max_version[0] >= 1
        place = self.__dlpack_device__()
        return dlpack.export(self._owner, self.pointer, self.shape, self.dtype, place, versioned=versioned)

    def _let_wait(self, consumer: int) -> None:
        if self._ready is None:
            self.stream.let_wait(consumer)
        else:
            calls.call("cuStreamWaitEvent", consumer, self._ready.raw, 0)

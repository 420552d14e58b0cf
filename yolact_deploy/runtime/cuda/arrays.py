"""Device arrays of other libraries in, and ours out: ``__cuda_array_interface__`` and DLPack.

Legend: N images, H x W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import Device, Stream


def is_device_array(value: object) -> bool:
    """Whether this is an array on a CUDA device (torch, CuPy, pycuda, Numba, ours), without touching its data."""
    raise NotImplementedError


@dataclass(frozen=True)
class DeviceArray:
    """An array on a device that belongs to someone else.

    Attributes:
        pointer: address of the first element
        shape: as it is
        strides: bytes between neighbours, for each axis
        dtype: of the elements
        device: ordinal of the device
        stream: handle of the stream whose work must be waited for, or None
        owner: keeps the memory alive
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    stream: int | None
    owner: object

    @classmethod
    def from_any(cls, value: object, stream: Stream) -> DeviceArray:
        """Take an array with ``__cuda_array_interface__`` or DLPack.

        Args:
            stream: on which the array will be read; a DLPack producer makes this stream wait for its data, and
                :meth:`wait_on` does so for the others
        """
        raise NotImplementedError

    def wait_on(self, stream: Stream) -> None:
        """Let ``stream`` wait until the data is there."""
        raise NotImplementedError

    def as_images(self) -> ImageView:
        """As frames: checks uint8 [H, W, 3] or [N, H, W, 3], BGR, rows without gaps between pixels."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageView:
    """Frames on a device.

    Attributes:
        pointers: device address of each image
        height, width: of all of them
        pitch: bytes from one row to the next
    """

    pointers: tuple[int, ...]
    height: int
    width: int
    pitch: int


class SharedArray:
    """Our device memory for other libraries: ``__cuda_array_interface__`` and DLPack, without a copy.

    ``torch.from_dlpack(shared)``, ``cupy.asarray(shared)``. The memory lives as long as this object or any array made
    from it; whether its *contents* change is told by whoever made it.
    """

    def __init__(
        self, owner: object, pointer: int, shape: tuple[int, ...], dtype: Any, device: Device, stream: Stream
    ) -> None:
        """
        Args:
            owner: keeps the memory alive
            stream: whose present work writes the data: a consumer waits for it
        """
        raise NotImplementedError

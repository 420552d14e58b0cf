"""Several arrays in one allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from yolact_deploy.runtime.cuda.driver import PinnedBuffer

#: every array starts at a multiple of this, as cudaMalloc aligns; kernels, TensorRT and copies are fastest then
ALIGNMENT = 256

#: name -> shape and name of the dtype
Arrays = dict[str, tuple[tuple[int, ...], str]]


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to the next offset at which an array may start."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Layout:
    """Offsets of several arrays in one allocation of ``nbytes``.

    >>> Layout({"boxes": ((100, 4), "float32"), "labels": ((100,), "int32")}).pointers(4096)
    {'boxes': 4096, 'labels': 5888}
    """

    def __init__(self, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self._arrays = {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}
        self._offsets: dict[str, int] = {}
        self.nbytes = 0
        for name, (shape, kind) in self._arrays.items():
            self._offsets[name] = self.nbytes
            self.nbytes += aligned(math.prod(shape) * kind.itemsize)

    def pointers(self, base: int) -> dict[str, int]:
        """The address of each array in an allocation that starts at ``base``."""
        return {name: base + offset for name, offset in self._offsets.items()}

    def views(self, buffer: PinnedBuffer) -> dict[str, NDArray[Any]]:
        """Each array as a view of pinned memory."""
        return {name: buffer.array(dtype, shape, self._offsets[name]) for name, (shape, dtype) in self._arrays.items()}

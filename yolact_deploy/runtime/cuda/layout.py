"""Several arrays in one allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolact_deploy.runtime.cuda.driver import PinnedBuffer

#: every array begins at a multiple of this, which is what kernels, TensorRT and copies like best
ALIGNMENT = 256

#: name -> shape and name of the dtype
Arrays = dict[str, tuple[tuple[int, ...], str]]


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to the next place where an array may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Layout:
    """Where each of several arrays stands in one allocation of ``nbytes``.

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
        """The address of each array in an allocation that begins at ``base``."""
        return {name: base + offset for name, offset in self._offsets.items()}

    def views(self, buffer: PinnedBuffer) -> dict[str, NDArray[Any]]:
        """Each array in pinned memory, shared."""
        return {name: buffer.array(dtype, shape, self._offsets[name]) for name, (shape, dtype) in self._arrays.items()}

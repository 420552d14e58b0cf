"""Launch plans: which kernels run, with which grids and arguments. They do not depend on CUDA.

A plan is plain data, computed by the ``plan_*`` modules from sizes alone. It runs elsewhere: in the driver
(`yolact_deploy.runtime.cuda.library`), in a TensorRT plugin, or in the emulator of the tests.

Two conventions of all kernels make that possible. Arguments have the order inputs, scalars, outputs, and scalars are
int32, the only type that TensorRT's ahead-of-time plugins can pass; thresholds are passed as the bits of a float
(`float_bits`). And no kernel needs an initialized buffer, a lock or an answer from the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from yolact_deploy.errors import ConfigError

#: limits of every GPU of compute capability 7.5 or later
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024
#: dynamic shared memory per block that requires no opt-in from the driver
MAX_SHARED_BYTES = 48 * 1024


class Offset(NamedTuple):
    """The address ``bytes`` after the start of a buffer."""

    buffer: str
    bytes: int


#: name of a device buffer, an address inside one, or a scalar passed by value
Argument = str | Offset | np.int32 | np.int64 | np.float32 | np.float64
#: ``-DNAME=VALUE`` of a compilation
Defines = tuple[tuple[str, str | int], ...]

_HALF_OR_SINGLE = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    source: str  #: file in ``kernels/``, such as "fast_nms.cu"
    kernel: str  #: its extern "C" name
    grid: tuple[int, int, int]  #: blocks along x, y, z
    block: tuple[int, int, int]  #: threads per block along x, y, z
    shared_bytes: int  #: dynamic shared memory per block
    arguments: tuple[Argument, ...]
    defines: Defines = ()

    def __post_init__(self) -> None:
        if any(not 1 <= size <= most for size, most in zip(self.grid, MAX_GRID, strict=True)):
            raise ValueError(f"{self.kernel}: expected a grid within {MAX_GRID}, got {self.grid}")
        threads = self.block[0] * self.block[1] * self.block[2]
        if min(self.block) < 1 or threads > MAX_THREADS:
            raise ValueError(f"{self.kernel}: expected 1 to {MAX_THREADS} threads per block, got {self.block}")
        if not 0 <= self.shared_bytes <= MAX_SHARED_BYTES:
            raise ValueError(
                f"{self.kernel}: expected 0 to {MAX_SHARED_BYTES} bytes of shared memory, got {self.shared_bytes}"
            )

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the device buffers among the arguments, each once, in order."""
        names = (a.buffer if isinstance(a, Offset) else a for a in self.arguments if isinstance(a, (str, Offset)))
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class LaunchPlan:
    """Launches that run one after another on one stream."""

    launches: tuple[Launch, ...]
    #: buffers between the launches: name -> bytes. The caller allocates them, uninitialized
    scratch: Mapping[str, int]
    #: least traffic with device memory: every input byte read once, every output byte written once
    bytes_moved: int
    #: arithmetic operations (a fused multiply-add counts as two), for the roofline
    operations: int

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that the caller must provide, each once, in the order of their first use."""
        names = dict.fromkeys(name for launch in self.launches for name in launch.buffers)
        return tuple(name for name in names if name not in self.scratch)


def joined(plans: Iterable[LaunchPlan]) -> LaunchPlan:
    """One plan that runs several in order. Scratch buffers with the same name are shared, at the largest size."""
    plans = tuple(plans)
    scratch: dict[str, int] = {}
    for plan in plans:
        for name, size in plan.scratch.items():
            scratch[name] = max(size, scratch.get(name, 0))
    return LaunchPlan(
        launches=tuple(launch for plan in plans for launch in plan.launches),
        scratch=scratch,
        bytes_moved=sum(plan.bytes_moved for plan in plans),
        operations=sum(plan.operations for plan in plans),
    )


def float_bits(value: float) -> np.int32:
    """The bits of the float32 nearest to ``value``; the kernel reads them with ``__int_as_float``."""
    bits: np.int32 = np.float32(value).view(np.int32)
    return bits


def ceil_div(value: int, unit: int) -> int:
    """``value / unit``, rounded up."""
    return -(-value // unit)


def int32s(*values: int) -> tuple[np.int32, ...]:
    """Integers as scalar arguments; OverflowError if one does not fit an int32."""
    return tuple(np.int32(value) for value in values)


def check_sizes(kernels: str, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Raise :class:`ConfigError` unless each size is between 1 and its limit; ``sizes``: name -> (size, limit)."""
    for name, (size, most) in sizes.items():
        if not 1 <= size <= most:
            raise ConfigError(f"{name}: the CUDA kernels of {kernels} support 1 to {most}, got {size}")


def dtype_bytes(kernels: str, name: str, dtype: str) -> int:
    """Bytes of a "float32" or "float16"; any other dtype is a :class:`ConfigError`."""
    if dtype not in _HALF_OR_SINGLE:
        raise ConfigError(f"{name}: the CUDA kernels of {kernels} support float32 or float16, got {dtype!r}")
    return _HALF_OR_SINGLE[dtype]

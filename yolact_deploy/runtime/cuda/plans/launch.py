"""Launch plans: which kernels run, with which grids and arguments, without anything of CUDA in them.

A plan is plain data, made by the ``plan_*`` modules from sizes alone. What runs it is somebody else's: the driver
(`yolact_deploy.runtime.cuda.library`), a TensorRT plugin, or the emulator of the tests.

Two habits of all kernels make that possible. Arguments stand in the order inputs, scalars, outputs, and every scalar is
an int32, which is what an ahead-of-time plugin of TensorRT can pass: thresholds travel as the bits of a float
(`float_bits`). And no kernel needs an initialised buffer, a lock or an answer from the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: limits that hold on every GPU from compute capability 7.5 on
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024
#: dynamic shared memory that a block has without asking the driver for more
MAX_SHARED_BYTES = 48 * 1024


class Offset(NamedTuple):
    """The address ``bytes`` behind the start of a buffer."""

    buffer: str
    bytes: int


#: name of a device buffer, an address inside one, or a scalar by value
Argument = str | Offset | np.int32 | np.int64 | np.float32 | np.float64


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    source: str  #: file in ``kernels/``, such as "fast_nms.cu"
    kernel: str  #: its extern "C" name
    grid: tuple[int, int, int]  #: blocks along x, y, z
    block: tuple[int, int, int]  #: threads of a block along x, y, z
    shared_bytes: int  #: dynamic shared memory of a block
    arguments: tuple[Argument, ...]
    defines: tuple[tuple[str, str | int], ...] = ()  #: ``-DNAME=VALUE`` of the compilation

    def __post_init__(self) -> None:
        if any(not 1 <= size <= most for size, most in zip(self.grid, MAX_GRID, strict=True)):
            raise ValueError(f"{self.kernel}: expected a grid within {MAX_GRID}, got {self.grid}")
        threads = self.block[0] * self.block[1] * self.block[2]
        if min(self.block) < 1 or threads > MAX_THREADS:
            raise ValueError(f"{self.kernel}: expected 1 to {MAX_THREADS} threads a block, got {self.block}")
        if not 0 <= self.shared_bytes <= MAX_SHARED_BYTES:
            raise ValueError(
                f"{self.kernel}: expected 0 to {MAX_SHARED_BYTES} bytes of shared memory, got {self.shared_bytes}"
            )

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the device buffers among the arguments, each once, in their order."""
        names = (a.buffer if isinstance(a, Offset) else a for a in self.arguments if isinstance(a, (str, Offset)))
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class LaunchPlan:
    """Launches that run one after another on one stream."""

    launches: tuple[Launch, ...]
    #: buffers between the launches: name -> bytes. Whoever runs the plan allocates them; they need no initialisation
    scratch: Mapping[str, int]
    #: least traffic with device memory: every input byte read once, every output byte written once
    bytes_moved: int
    #: arithmetic operations (a fused multiply-add counts as two), for the roofline
    operations: int

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that the plan needs from outside, each once, in the order of their first use."""
        names = dict.fromkeys(name for launch in self.launches for name in launch.buffers)
        return tuple(name for name in names if name not in self.scratch)


def joined(plans: Iterable[LaunchPlan]) -> LaunchPlan:
    """One plan that runs several in their order. Scratch buffers of one name are shared, at the largest size."""
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
    """The float32 nearest to ``value``, its bits as an int32; the kernel turns them back by ``__int_as_float``."""
    bits: np.int32 = np.float32(value).view(np.int32)
    return bits


def ceil_div(value: int, unit: int) -> int:
    """``value / unit``, rounded up."""
    return -(-value // unit)


def int32s(*values: int) -> tuple[np.int32, ...]:
    """Integers as scalar arguments; one that does not fit an int32 is an OverflowError."""
    return tuple(np.int32(value) for value in values)

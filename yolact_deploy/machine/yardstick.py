"""How fast the machine itself was during a run: a fixed piece of work that has nothing to do with any engine.

A virtual machine slows down and speeds up for reasons that it cannot see: other guests on the same cores, the host's
clock. All engines feel it, and two runs of the same engine then differ by much more than the calls of either show. So
the same small workload is timed all along a run, between the calls, and its times are stored; ``bench diff`` compares
them as well, see :mod:`yolact_deploy.benchmarks.machine_change`.

It is of the processor; of a GPU it tells nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from yolact_deploy.machine.cpu_state import usable_cores

#: of the work; times of different versions are not compared
VERSION = 1
#: the part that takes all cores at once
ALL_CORES = "all cores"
#: rounds in a run, at most; each takes about ten milliseconds
_ROUNDS = 60
#: side of the matrices: all three fit into a core's second cache
_SIDE = 128
#: products of each core, where all work at once
_PRODUCTS = 2
#: bytes of each of the two buffers of the copy
_COPY_BYTES = 32 << 20
_DECIMALS = 4


@dataclass(frozen=True)
class YardstickTimes:
    """Milliseconds of every round, by the part of the work: "one core", "all cores", "memory"."""

    version: int
    samples_ms: dict[str, tuple[float, ...]]


class Yardstick:
    """Times the work of a run with so many steps; a context manager, as it has threads of its own.

    - one core: products of small matrices of integers, which NumPy multiplies itself, in one thread (those of floats
      are a BLAS's, whose threads spin where cores are shared, and tell more of the BLAS than of the machine)
    - all cores: the same on each core that this process may use, until the last is done
    - memory: a copy of more than most caches hold
    """

    def __init__(self, steps: int) -> None:
        self._every = max(1, -(-steps // _ROUNDS))
        cores = usable_cores()
        self._factor = np.arange(_SIDE * _SIDE, dtype=np.int32).reshape(_SIDE, _SIDE)
        self._products = [np.empty_like(self._factor) for _ in range(cores)]
        self._source, self._target = np.ones(_COPY_BYTES, np.uint8), np.zeros(_COPY_BYTES, np.uint8)
        self._pool = ThreadPoolExecutor(cores)
        self._samples: dict[str, list[float]] = {name: [] for name in self._parts}

    def __enter__(self) -> Yardstick:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    @property
    def times(self) -> YardstickTimes:
        samples = {name: tuple(round(ms, _DECIMALS) for ms in found) for name, found in self._samples.items()}
        return YardstickTimes(VERSION, samples)

    def after(self, step: int) -> None:
        """Do the work, if it is its turn after this step; each part once untimed, as engines leave caches behind."""
        if step % self._every:
            return
        for name, work in self._parts.items():
            work()
            start = time.perf_counter()
            work()
            self._samples[name].append((time.perf_counter() - start) * 1e3)

    @property
    def _parts(self) -> dict[str, Callable[[], None]]:
        return {"one core": self._multiply, ALL_CORES: self._multiply_everywhere, "memory": self._copy}

    def _multiply(self, core: int = 0) -> None:
        for _ in range(_PRODUCTS):
            np.matmul(self._factor, self._factor, out=self._products[core])

    def _multiply_everywhere(self) -> None:
        for _ in self._pool.map(self._multiply, range(len(self._products))):
            pass

    def _copy(self) -> None:
        np.copyto(self._target, self._source)

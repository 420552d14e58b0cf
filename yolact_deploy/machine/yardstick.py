"""The speed of the machine during a run, measured with a fixed workload that is independent of any engine.

A virtual machine changes its speed for reasons that it cannot see: other guests on the same cores, the clock of the
host. This affects all engines, and two runs of one engine then differ by much more than the calls within a run. So a
small workload is timed between the calls throughout a run, and its times are stored; ``bench diff`` compares them as
well, see :mod:`yolact_deploy.benchmarks.machine_change`.

It measures the processor, not the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from yolact_deploy.machine.cpu_state import usable_cores

#: version of the workload; times of different versions are not compared
VERSION = 1
#: the part that uses all cores at once
ALL_CORES = "all cores"
#: maximum number of rounds in a run; each takes about ten milliseconds
_ROUNDS = 60
#: side of the matrices; all three fit into the L2 cache of a core
_SIDE = 128
#: products per core
_PRODUCTS = 2
#: bytes of each buffer of the copy
_COPY_BYTES = 32 << 20
_DECIMALS = 4


@dataclass(frozen=True)
class YardstickTimes:
    """Milliseconds of every round by part: "one core", "all cores", "memory"."""

    version: int
    samples_ms: dict[str, tuple[float, ...]]


class Yardstick:
    """Times the workload during a run of ``steps`` steps; a context manager, since it owns threads.

    - one core: products of small integer matrices, which NumPy multiplies itself in one thread (float products go to
      a BLAS, whose spinning threads measure the BLAS rather than the machine)
    - all cores: the same on each core that this process may use, until the last one finishes
    - memory: a copy that is larger than most caches
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
        samples = {name: tuple(round(ms, _DECIMALS) for ms in samples_ms) for name, samples_ms in self._samples.items()}
        return YardstickTimes(VERSION, samples)

    def after(self, step: int) -> None:
        """Run the workload if it is due after this step; each part once untimed first, to warm the caches."""
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

"""The conditions of a measurement: clocks and temperatures before and after, and other load on the machine.

Whatever spoils a measurement becomes a warning, a sentence with the cure. No warning means only that nothing shows in
the values that this machine reports; a virtual machine reports neither clocks nor temperatures.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from yolact_deploy.machine import cpu_state
from yolact_deploy.machine.debug_builds import debug_builds
from yolact_deploy.machine.nvml import Nvml, NvmlGpu
from yolact_deploy.machine.sysfiles import ROOT

#: share of the usable cores that other programs may keep busy
QUIET_SHARE = 0.15
#: share of core time that the host may give to other machines; more shows in the latency tail
_STOLEN_SHARE = 0.01
#: share of the time that a GPU may be throttled or a quota may stop the process
_STOPPED_SHARE = 0.01
#: a clock below this share of its first value has fallen; smaller changes are turbo with more active cores
_CLOCK_SHARE = 0.8


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; ``throttle`` lists what holds its clock down."""

    name: str
    clock_mhz: int | None
    max_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    throttle: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """Clocks and temperatures at one moment.

    Attributes:
        cpu_mhz: highest clock among the processors; others may be idle
        temperatures_c: thermal zones and processor sensors
        slowed: devices that the system slows down for cooling
    """

    cpu_mhz: float | None
    temperatures_c: dict[str, float]
    slowed: tuple[str, ...]
    gpus: tuple[GpuState, ...]


@dataclass(frozen=True)
class Conditions:
    """What the machine reported during a measurement; None for unknown values.

    Attributes:
        cores: cores of the machine
        usable_cores: cores that this process may use
        other_cores: average number of cores that other processes kept busy
        stolen_cores: average number of cores that the host gave to other virtual machines
        turbo: whether clocks may rise above the base clock
        clock_limit_mhz: highest clock that the settings allow
        hardware_clock_mhz: highest clock of the hardware
        quota_cores: cores that the container may use
        quota_stopped_s: how long the quota stopped the processes of the container
        thermal_throttles: largest number of thermal throttles of a core or package
        overcurrents: number of throttles of a Jetson for its power supply
        gpu_throttled_s: per GPU, how long each limit held its clock down
        gpu_processes: per GPU, the number of other processes that compute on it
        debug: debug builds and debugging aids
        warnings: what makes figures worse than this machine allows or unstable from run to run, each with the cure
    """

    seconds: float
    before: State
    after: State
    cores: int
    usable_cores: int
    other_cores: float | None
    stolen_cores: float | None
    governor: str | None
    turbo: bool | None
    clock_limit_mhz: float | None
    hardware_clock_mhz: float | None
    quota_cores: float | None
    quota_stopped_s: float
    thermal_throttles: int
    overcurrents: int
    gpu_throttled_s: dict[str, dict[str, float]]
    gpu_processes: dict[str, int]
    debug: tuple[str, ...]
    warnings: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        warnings = (_of_others(self), _of_quota(self), _of_settings(self), _of_heat(self), _of_gpus(self), self.debug)
        object.__setattr__(self, "warnings", tuple(itertools.chain.from_iterable(warnings)))


class ConditionsMeter:
    """Records the conditions of a ``with`` block; ``conditions`` is set afterwards.

    It runs nothing inside the block. Start it after the warm-up.

    Args:
        root: replaces / in tests
        nvml: replaces the module ``pynvml`` in tests
        modules: loaded modules; torch and onnxruntime are checked for debug builds
    """

    conditions: Conditions

    def __init__(self, *, root: Path = ROOT, nvml: Any = None, modules: Mapping[str, Any] = sys.modules) -> None:
        self._root, self._module, self._modules = root, nvml, modules

    def __enter__(self) -> ConditionsMeter:
        self._nvml = Nvml(self._module, root=self._root)
        self._before, self._counts_before = self._state(), self._counts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        first, last, after = self._counts_before, self._counts(), self._state()
        seconds = max(last.time - first.time, 1e-9)
        limit = cpu_state.clock_limit_mhz(self._root)
        other = stolen = None
        if first.cpu is not None and last.cpu is not None:
            # Ticks are 10 ms: over a short time our share may exceed the total.
            other = max(0.0, (last.cpu.busy - first.cpu.busy - (last.own - first.own)) / seconds)
            stolen = (last.cpu.stolen - first.cpu.stolen) / seconds
        self.conditions = Conditions(
            seconds=seconds,
            before=self._before,
            after=after,
            cores=os.cpu_count() or 1,
            usable_cores=cpu_state.usable_cores(),
            other_cores=other,
            stolen_cores=stolen,
            governor=cpu_state.governor(self._root),
            turbo=cpu_state.turbo(self._root),
            clock_limit_mhz=limit[0] if limit else None,
            hardware_clock_mhz=limit[1] if limit else None,
            quota_cores=last.quota.cores,
            quota_stopped_s=last.quota.stopped - first.quota.stopped,
            thermal_throttles=max(_advances(first.throttles, last.throttles).values(), default=0),
            overcurrents=sum(_advances(first.overcurrents, last.overcurrents).values()),
            gpu_throttled_s={name: _advances(first.gpus[name], times) for name, times in last.gpus.items()},
            gpu_processes={gpu.name: _other_processes(gpu) for gpu in self._nvml.gpus},
            debug=debug_builds(self._modules),
        )
        self._nvml.close()

    def _state(self) -> State:
        return State(
            cpu_mhz=max(cpu_state.clocks_mhz(self._root), default=None),
            temperatures_c=cpu_state.temperatures_c(self._root),
            slowed=cpu_state.active_cooling(self._root),
            gpus=tuple(
                GpuState(
                    name=gpu.name,
                    clock_mhz=gpu.clock_mhz(),
                    max_clock_mhz=gpu.max_clock_mhz(),
                    memory_clock_mhz=gpu.memory_clock_mhz(),
                    temperature_c=gpu.temperature_c(),
                    throttle=gpu.throttle_reasons(),
                )
                for gpu in self._nvml.gpus
            ),
        )

    def _counts(self) -> _Counts:
        return _Counts(
            time=time.perf_counter(),
            own=time.process_time(),
            cpu=cpu_state.cpu_times(self._root),
            quota=cpu_state.quota(self._root),
            throttles=cpu_state.thermal_throttles(self._root),
            overcurrents=cpu_state.overcurrents(self._root),
            gpus={gpu.name: gpu.throttled_seconds() for gpu in self._nvml.gpus},
        )


@dataclass(frozen=True)
class _Counts:
    """Counters at one moment; times in seconds. ``own`` is the core time of this process."""

    time: float
    own: float
    cpu: cpu_state.CpuTimes | None
    quota: cpu_state.Quota
    throttles: dict[str, int]
    overcurrents: dict[str, int]
    gpus: dict[str, dict[str, float]]


def _advances(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value - before[name] for name, value in after.items() if name in before}


def _other_processes(gpu: NvmlGpu) -> int:
    """Other processes on a GPU. In a container this process may have another number there."""
    processes = gpu.processes() or frozenset()
    return len(processes - {os.getpid()}) if os.getpid() in processes else max(0, len(processes) - 1)


# -- warnings -------------------------------------------------------------------------------------------------------


def _of_others(c: Conditions) -> Iterator[str]:
    if c.other_cores is not None and c.other_cores > QUIET_SHARE * c.usable_cores:
        yield (
            f"other programs used {c.other_cores:.1f} of {c.cores} cores: times are too long, and ratios to eager "
            "PyTorch, which suffers most, are too good; measure again on a quiet machine"
        )
    if c.stolen_cores is not None and c.stolen_cores > _STOLEN_SHARE * c.cores:
        yield (
            f"the host gave {100 * c.stolen_cores / c.cores:.1f} % of this virtual machine's time to others (steal): "
            "measure on a machine with dedicated cores"
        )


def _of_quota(c: Conditions) -> Iterator[str]:
    if c.quota_stopped_s > _STOPPED_SHARE * c.seconds:
        yield (
            f"the CPU quota of {_cores(c)} stopped the container for {c.quota_stopped_s:.1f} s: raise the quota "
            "(--cpus) or assign whole cores instead (--cpuset-cpus)"
        )
    elif c.quota_cores is not None and c.quota_cores < c.usable_cores:
        yield (
            f"the container may use {_cores(c)} of {c.usable_cores} cores but sees all of them, so runtimes "
            f"start too many threads: set OMP_NUM_THREADS={max(1, int(c.quota_cores))} or assign whole cores "
            "(--cpuset-cpus)"
        )


def _cores(c: Conditions) -> str:
    return "unknown size" if c.quota_cores is None else f"{c.quota_cores:.2g}"


def _of_settings(c: Conditions) -> Iterator[str]:
    if c.governor is not None and c.governor != "performance":
        yield (
            f"the frequency governor is {c.governor}: clocks follow the load with a delay; run "
            "sudo cpupower frequency-set -g performance"
        )
    if c.clock_limit_mhz and c.hardware_clock_mhz and c.clock_limit_mhz < c.hardware_clock_mhz:
        yield (
            f"settings limit the processor to {c.clock_limit_mhz:.0f} of its {c.hardware_clock_mhz:.0f} MHz: raise the "
            "limit with sudo cpupower frequency-set -u (on a Jetson choose a higher power mode with nvpmodel)"
        )


def _of_heat(c: Conditions) -> Iterator[str]:
    if c.thermal_throttles:
        yield f"the processor throttled for heat ({c.thermal_throttles} times): cool it better and measure again"
    if c.after.slowed:
        yield f"the system throttles {', '.join(c.after.slowed)} for heat: cool it better and measure again"
    if c.overcurrents:
        yield (
            f"the board throttled for its power supply ({c.overcurrents} overcurrent or undervoltage events): use a "
            "stronger supply or a lower power mode (nvpmodel)"
        )
    before, after = c.before.cpu_mhz, c.after.cpu_mhz
    if before and after and after < _CLOCK_SHARE * before:
        cure = "turn turbo off to compare runs" if c.turbo else "improve the cooling and warm up before measuring"
        yield f"the processor clock fell from {before:.0f} to {after:.0f} MHz during the measurement: {cure}"


#: cures for a throttled GPU, by the first word of NVML's reasons and counters
_GPU_CURES = {
    "power": "raise the power limit (nvidia-smi -pl) or lock a clock that it can hold (nvidia-smi -lgc)",
    "thermal": "cool it better",
    "hardware": "check its power supply and cooling (nvidia-smi -q -d PERFORMANCE)",
}


def _of_gpus(c: Conditions) -> Iterator[str]:
    for gpu in c.after.gpus:
        times = c.gpu_throttled_s.get(gpu.name, {})
        limits = {name: f"{name} for {s:.1f} s" for name, s in times.items() if s > _STOPPED_SHARE * c.seconds}
        # A counter says more than the state at the end, but not every GPU has one.
        counted = {limit.split()[0] for limit in limits}
        limits.update({reason: reason for reason in gpu.throttle if reason.split()[0] not in counted})
        if limits:
            cures = dict.fromkeys(_GPU_CURES.get(name.split()[0], _GPU_CURES["hardware"]) for name in limits)
            yield f"{gpu.name} was throttled ({', '.join(limits.values())}): {'; '.join(cures)}"
    for name, count in c.gpu_processes.items():
        if count:
            yield f"{count} other processes use {name}: end them or choose another GPU with CUDA_VISIBLE_DEVICES"

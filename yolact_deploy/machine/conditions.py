"""Under which conditions something was measured: clocks and temperatures before and after, who else used the machine.

What spoils a measurement becomes a warning, a sentence with the cure. The absence of a warning says only that nothing
was found in what this machine tells: a virtual machine tells neither its clock nor its heat.
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

#: share of the usable cores that other programs may keep busy in a quiet measurement
QUIET_SHARE = 0.15
#: share of the cores' time that a host may give to other machines; above it the tail of the latency shows it
_STOLEN_SHARE = 0.01
#: share of the time for which a limit may hold a GPU's clock down or a quota stop the process
_STOPPED_SHARE = 0.01
#: a clock below this share of its former height has fallen; less is what turbo does as more cores wake up
_CLOCK_SHARE = 0.8


@dataclass(frozen=True)
class GpuState:
    """One GPU at one moment; ``throttle`` tells what holds its clock down."""

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
        cpu_mhz: highest clock of a processor: the others may be idle
        temperatures_c: thermal zones and the processor's sensors
        slowed: what the system slows down to cool it, as far as it tells
    """

    cpu_mhz: float | None
    temperatures_c: dict[str, float]
    slowed: tuple[str, ...]
    gpus: tuple[GpuState, ...]


@dataclass(frozen=True)
class Conditions:
    """What the machine told while something was measured; None where it did not tell.

    Attributes:
        cores: of the machine
        usable_cores: of these, what this process may use
        other_cores: how many cores other processes kept busy, on average
        stolen_cores: how many cores the host of this virtual machine gave to others, on average
        turbo: whether clocks may rise above the base clock
        clock_limit_mhz: highest clock that the settings allow
        hardware_clock_mhz: highest clock of the hardware
        quota_cores: cores that the container may use
        quota_stopped_s: how long processes of the container waited for its quota, during the measurement
        thermal_throttles: how often a core or package slowed down for heat, at most
        overcurrents: how often a Jetson slowed down for its power supply
        gpu_throttled_s: for each GPU how long each limit held its clock down
        gpu_processes: for each GPU how many other processes compute on it
        debug: debug builds and debugging aids
        warnings: what makes figures worse than this machine can do, or different from run to run, each with the cure
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
    """Watches the conditions of a ``with`` block, after the warm-up; ``conditions`` holds them afterwards.

    Nothing runs inside the block.

    Args:
        root: the folder that stands for /
        nvml: stands for the module ``pynvml``
        modules: loaded modules, of which torch and onnxruntime are asked for debug builds
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
            # Ticks of 10 ms: over a short time a little more of ours than of all may be seen.
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
    """Counters at one moment; times in seconds, ``own`` is core time of this process."""

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
    """Processes on a GPU beside this one, which in a container may go by another number."""
    found = gpu.processes() or frozenset()
    return len(found - {os.getpid()}) if os.getpid() in found else max(0, len(found) - 1)


# -- warnings -------------------------------------------------------------------------------------------------------


def _of_others(c: Conditions) -> Iterator[str]:
    if c.other_cores is not None and c.other_cores > QUIET_SHARE * c.usable_cores:
        yield (
            f"other programs used {c.other_cores:.1f} of {c.cores} cores meanwhile: times are too long, and ratios to "
            "eager PyTorch, which suffers most, too good; measure again on a quiet machine"
        )
    if c.stolen_cores is not None and c.stolen_cores > _STOLEN_SHARE * c.cores:
        yield (
            f"the host gave {100 * c.stolen_cores / c.cores:.1f} % of this virtual machine's time to others (steal): "
            "measure on a machine with cores of its own"
        )


def _of_quota(c: Conditions) -> Iterator[str]:
    if c.quota_stopped_s > _STOPPED_SHARE * c.seconds:
        yield (
            f"the container was stopped for {c.quota_stopped_s:.1f} s because its quota of {_cores(c)} was used up: "
            "raise the quota (--cpus), or give it whole cores instead (--cpuset-cpus)"
        )
    elif c.quota_cores is not None and c.quota_cores < c.usable_cores:
        yield (
            f"the container may use {_cores(c)} of {c.usable_cores} cores but sees all, so runtimes start too many "
            f"threads: set OMP_NUM_THREADS={max(1, int(c.quota_cores))}, or give it whole cores (--cpuset-cpus)"
        )


def _cores(c: Conditions) -> str:
    return "unknown size" if c.quota_cores is None else f"{c.quota_cores:.2g}"


def _of_settings(c: Conditions) -> Iterator[str]:
    if c.governor is not None and c.governor != "performance":
        yield (
            f"the frequency governor is {c.governor}: clocks follow the load with delay; set it with "
            "sudo cpupower frequency-set -g performance"
        )
    if c.clock_limit_mhz and c.hardware_clock_mhz and c.clock_limit_mhz < c.hardware_clock_mhz:
        yield (
            f"settings hold the processor below {c.clock_limit_mhz:.0f} of its {c.hardware_clock_mhz:.0f} MHz: raise "
            "the limit with sudo cpupower frequency-set -u (on a Jetson choose a higher power mode by nvpmodel)"
        )


def _of_heat(c: Conditions) -> Iterator[str]:
    if c.thermal_throttles:
        yield f"the processor slowed down for heat ({c.thermal_throttles} times): cool it better and measure again"
    if c.after.slowed:
        yield f"the system slows down {', '.join(c.after.slowed)} for heat: cool it better and measure again"
    if c.overcurrents:
        yield (
            f"the board slowed down for its power supply ({c.overcurrents} times too much current or too little "
            "voltage): use a stronger supply or a lower power mode (nvpmodel)"
        )
    before, after = c.before.cpu_mhz, c.after.cpu_mhz
    if before and after and after < _CLOCK_SHARE * before:
        cure = "turn turbo off to compare runs" if c.turbo else "cool the processor and warm it up before measuring"
        yield f"the processor's clock fell from {before:.0f} to {after:.0f} MHz while measuring: {cure}"


#: cures of what holds a GPU's clock down, by the first word of NVML's reasons and counters
_GPU_CURES = {
    "power": "raise the limit (nvidia-smi -pl) or lock a clock that it can hold (nvidia-smi -lgc)",
    "thermal": "cool it better",
    "hardware": "look at its power supply and cooling (nvidia-smi -q -d PERFORMANCE)",
}


def _of_gpus(c: Conditions) -> Iterator[str]:
    for gpu in c.after.gpus:
        times = c.gpu_throttled_s.get(gpu.name, {})
        limits = {name: f"{name} for {s:.1f} s" for name, s in times.items() if s > _STOPPED_SHARE * c.seconds}
        # A counter tells more than what holds at the end; not every GPU has one.
        told = {limit.split()[0] for limit in limits}
        limits.update({reason: reason for reason in gpu.throttle if reason.split()[0] not in told})
        if limits:
            cures = dict.fromkeys(_GPU_CURES.get(name.split()[0], _GPU_CURES["hardware"]) for name in limits)
            yield f"{gpu.name} was held below its clock ({', '.join(limits.values())}): {'; '.join(cures)}"
    for name, count in c.gpu_processes.items():
        if count:
            yield f"{count} other processes use {name}: end them, or choose another by CUDA_VISIBLE_DEVICES"

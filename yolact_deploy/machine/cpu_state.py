"""State of the processor under Linux: clocks, governor, turbo, throttling, busy time, and the quota of the container.

Nothing needs root. Values that the kernel hides (most in virtual machines, all on other systems) are None or empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import MissingDependencyError, import_optional
from yolact_deploy.machine.sysfiles import ROOT, first_line_int, read_int, read_text

_CPU = "sys/devices/system/cpu"
#: cooling devices that slow something down; others are fans and the like
_SLOWING = re.compile(r"cpufreq|devfreq|^Processor$", re.IGNORECASE)
#: hwmon sensors inside the processor
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower")
#: degrees Celsius; outside this range a sensor is off or broken
_PLAUSIBLE = (-40, 200)
#: fields of psutil's CPU times; guest time is part of user time
_NOT_BUSY = ("idle", "iowait", "steal", "guest", "guest_nice")


def governor(root: Path = ROOT) -> str | None:
    """The frequency governor of the processors; several if they differ."""
    names = {read_text(path) for path in sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_governor"))} - {None, ""}
    return ", ".join(sorted(map(str, names))) or None


def turbo(root: Path = ROOT) -> bool | None:
    """Whether clocks may rise above the base clock."""
    no_turbo = read_int(root / _CPU / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = read_int(root / _CPU / "cpufreq/boost")
    return None if boost is None else boost == 1


def usable_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def clocks_mhz(root: Path = ROOT) -> list[float]:
    """The current clock of each processor; in a virtual machine often a constant."""
    paths = sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    khz = [value for path in paths if (value := read_int(path))]
    if khz:
        return [value / 1e3 for value in khz]
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    return [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)]


def clock_limit_mhz(root: Path = ROOT) -> tuple[float, float] | None:
    """The highest clock that the settings allow, and the highest of the hardware."""
    pairs = [
        (read_int(path), read_int(path.with_name("cpuinfo_max_freq")))
        for path in (root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_max_freq")
    ]
    known = [(allowed / 1e3, most / 1e3) for allowed, most in pairs if allowed and most]
    return (max(allowed for allowed, _ in known), max(most for _, most in known)) if known else None


def thermal_throttles(root: Path = ROOT) -> dict[str, int]:
    """How often each core and package throttled for heat since boot (Intel)."""
    return _read_counts((root / _CPU).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))


def overcurrents(root: Path = ROOT) -> dict[str, int]:
    """How often a Jetson throttled for low voltage or overcurrent since boot."""
    return _read_counts((root / "sys/class/hwmon").glob("hwmon*/oc[0-9]*_event_cnt"))


def _read_counts(paths: Iterable[Path]) -> dict[str, int]:
    return {str(path): count for path in paths if (count := read_int(path)) is not None}


def active_cooling(root: Path = ROOT) -> tuple[str, ...]:
    """Names of the devices that are being slowed down for cooling."""
    names = set()
    for folder in (root / "sys/class/thermal").glob("cooling_device*"):
        name, state = read_text(folder / "type") or "", read_int(folder / "cur_state")
        if _SLOWING.search(name) and (state or 0) > 0:
            names.add(name)
    return tuple(sorted(names))


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Thermal zones and processor sensors in degrees Celsius; the hottest of each name."""
    hottest: dict[str, float] = {}
    for name, millidegrees in _sensors(root):
        degrees = (millidegrees or 0) / 1e3
        if name and millidegrees is not None and _PLAUSIBLE[0] < degrees < _PLAUSIBLE[1]:
            hottest[name] = max(degrees, hottest.get(name, degrees))
    return dict(sorted(hottest.items()))


def _sensors(root: Path) -> Iterator[tuple[str | None, int | None]]:
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        yield read_text(zone / "type"), read_int(zone / "temp")
    for chip in (root / "sys/class/hwmon").glob("hwmon*"):
        name = read_text(chip / "name")
        if name in _CPU_SENSORS:
            for path in chip.glob("temp[0-9]*_input"):
                yield name, read_int(path)


@dataclass(frozen=True)
class CpuTimes:
    """Core seconds since boot: busy here, and given by the host to other virtual machines (steal)."""

    busy: float
    stolen: float


def cpu_times(root: Path = ROOT) -> CpuTimes | None:
    """Sums over all processors from /proc/stat; on other systems from psutil, which does not report steal."""
    fields = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return _cpu_times_elsewhere() if root == ROOT else None
    # The guest fields that follow are part of user time.
    user, nice, system, _, _, irq, softirq, stolen = map(int, fields[1:9])
    ticks = os.sysconf("SC_CLK_TCK")
    return CpuTimes((user + nice + system + irq + softirq) / ticks, stolen / ticks)


def _cpu_times_elsewhere() -> CpuTimes | None:
    """None without psutil, which comes with an extra."""
    try:
        psutil = import_optional("psutil", "bench", "Measuring the machine's load")
    except MissingDependencyError:
        return None
    spent = psutil.cpu_times()._asdict()
    return CpuTimes(sum(seconds for name, seconds in spent.items() if name not in _NOT_BUSY), 0.0)


@dataclass(frozen=True)
class Quota:
    """CPU quota of the container or service; ``stopped`` is the time in seconds it was throttled so far."""

    cores: float | None
    stopped: float


def quota(root: Path = ROOT) -> Quota:
    """The tightest limit among the control group of this process and its parents (version 1 or 2)."""
    limits, stopped = [], 0.0
    for folder in _control_groups(root):
        limit, period = _limit(folder)
        if limit and period and limit > 0:
            limits.append(limit / period)
        if (microseconds := first_line_int(folder / "cpu.stat", "throttled_usec")) is not None:
            stopped += microseconds / 1e6
        elif (nanoseconds := first_line_int(folder / "cpu.stat", "throttled_time")) is not None:
            stopped += nanoseconds / 1e9
    return Quota(min(limits, default=None), stopped)


def _limit(folder: Path) -> tuple[int | None, int | None]:
    """Microseconds of core time per period, and the period in microseconds."""
    fields = (read_text(folder / "cpu.max") or "").split()
    if len(fields) == 2:
        return (int(fields[0]) if fields[0].isdigit() else None), int(fields[1])
    return read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that account for this process, innermost first."""
    mount = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            base = mount
        elif "cpu" in controllers.split(","):
            base = mount / controllers if (mount / controllers).is_dir() else mount / "cpu"
        else:
            continue
        # A container sees the path on the host, of which its mount has only the end: skip missing folders.
        group = base / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir())

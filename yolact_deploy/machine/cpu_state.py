"""The processor's state as Linux tells it: clocks, governor, turbo, throttling, time spent, and the container's quota.

Nothing needs root; what the kernel does not tell (virtual machines hide most, other systems all) is None or empty.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import MissingDependencyError, import_optional
from yolact_deploy.machine.sysfiles import ROOT, first_line_int, read_int, read_text

_CPU = "sys/devices/system/cpu"
#: cooling devices that slow something down; the others are fans and the like
_SLOWING = re.compile(r"cpufreq|devfreq|^Processor$", re.IGNORECASE)
#: sensors in the processor itself, among those of hwmon
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower")
#: degrees Celsius outside of which a sensor is switched off or broken
_PLAUSIBLE = (-40, 200)
#: of psutil's times of the processors; those of guests are part of user's
_NOT_BUSY = ("idle", "iowait", "steal", "guest", "guest_nice")


def governor(root: Path = ROOT) -> str | None:
    """The frequency governor of the processors; several, if they differ."""
    found = {read_text(path) for path in sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_governor"))} - {None, ""}
    return ", ".join(sorted(map(str, found))) or None


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
    """The clock of each processor at this moment; in a virtual machine often a constant."""
    paths = sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    khz = [value for path in paths if (value := read_int(path))]
    if khz:
        return [value / 1e3 for value in khz]
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    return [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", cpuinfo, re.MULTILINE)]


def clock_limit_mhz(root: Path = ROOT) -> tuple[float, float] | None:
    """The highest clock that the settings allow any processor, and the highest that the hardware does."""
    pairs = [
        (read_int(path), read_int(path.with_name("cpuinfo_max_freq")))
        for path in (root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_max_freq")
    ]
    known = [(allowed / 1e3, most / 1e3) for allowed, most in pairs if allowed and most]
    return (max(allowed for allowed, _ in known), max(most for _, most in known)) if known else None


def thermal_throttles(root: Path = ROOT) -> dict[str, int]:
    """How often each core and package slowed down for heat since the start of the machine (Intel)."""
    found = {}
    for path in (root / _CPU).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"):
        value = read_int(path)
        if value is not None:
            found[str(path)] = value
    return found


def overcurrents(root: Path = ROOT) -> dict[str, int]:
    """How often a Jetson slowed down for its power supply: too little voltage, too much current."""
    found = {}
    for path in (root / "sys/class/hwmon").glob("hwmon*/oc[0-9]*_event_cnt"):
        value = read_int(path)
        if value is not None:
            found[path.name] = value
    return found


def active_cooling(root: Path = ROOT) -> tuple[str, ...]:
    """Names of what is being slowed down at this moment to cool it."""
    found = set()
    for folder in (root / "sys/class/thermal").glob("cooling_device*"):
        name, state = read_text(folder / "type") or "", read_int(folder / "cur_state")
        if _SLOWING.search(name) and (state or 0) > 0:
            found.add(name)
    return tuple(sorted(found))


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Thermal zones and the processor's own sensors in degrees Celsius; of several of one name the hottest."""
    found: dict[str, float] = {}
    for name, millidegrees in _sensors(root):
        degrees = (millidegrees or 0) / 1e3
        if name and millidegrees is not None and _PLAUSIBLE[0] < degrees < _PLAUSIBLE[1]:
            found[name] = max(degrees, found.get(name, degrees))
    return dict(sorted(found.items()))


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
    """Core seconds since the start of the machine: what ran here, and what the host gave to other machines."""

    busy: float
    stolen: float


def cpu_times(root: Path = ROOT) -> CpuTimes | None:
    """The sums of all processors in /proc/stat; elsewhere than on Linux those of psutil, which knows of no host."""
    fields = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return _cpu_times_elsewhere() if root == ROOT else None
    # Time of guests, further behind, is part of user's.
    user, nice, system, _, _, irq, softirq, stolen = map(int, fields[1:9])
    ticks = os.sysconf("SC_CLK_TCK")
    return CpuTimes((user + nice + system + irq + softirq) / ticks, stolen / ticks)


def _cpu_times_elsewhere() -> CpuTimes | None:
    """None where psutil, which belongs to an extra, is not installed."""
    try:
        psutil = import_optional("psutil", "bench", "Measuring the machine's load")
    except MissingDependencyError:
        return None
    spent = psutil.cpu_times()._asdict()
    return CpuTimes(sum(seconds for name, seconds in spent.items() if name not in _NOT_BUSY), 0.0)


@dataclass(frozen=True)
class Quota:
    """What the container or service may use of the processors; ``stopped`` is how long it was made to wait so far."""

    cores: float | None
    stopped: float


def quota(root: Path = ROOT) -> Quota:
    """The tightest limit of the control group of this process and the groups around it (version 1 or 2)."""
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
    """Microseconds of core time that may be used in each period of so many microseconds."""
    fields = (read_text(folder / "cpu.max") or "").split()
    if len(fields) == 2:
        return (int(fields[0]) if fields[0].isdigit() else None), int(fields[1])
    return read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that count this process's core time, inner ones first."""
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
        # A container is told the host's path, of which its own mount shows the end only: missing folders are passed.
        group = base / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir())

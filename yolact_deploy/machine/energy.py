"""Energy of a piece of work, if the machine reports it: GPUs by NVML, processors by RAPL, Jetsons by INA3221.

Each source counts the whole chip or board, with idle time and other programs. A meter at the wall plug shows more:
fans, disks, losses of the power supply. Sources are read before and after; RAPL counters, which wrap around, also in
between. Jetsons report power only, which is sampled ten times a second and integrated. Counters advance in steps:
measure for seconds, not for single images.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from yolact_deploy.machine.nvml import Nvml
from yolact_deploy.machine.sysfiles import ROOT, read_int, read_text

#: seconds between readings of power
_POWER_SECONDS = 0.1
#: seconds between readings of counters; RAPL on servers wraps after two minutes at 500 W (32 bits of 15.3 uJ)
_COUNTER_SECONDS = 10.0
#: rails that carry all current of a Jetson; the others branch off
_INPUT_RAILS = ("VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class EnergySource:
    """What one meter counted.

    Attributes:
        name: such as "package-0", "GPU 0 (NVIDIA H200)", "VDD_IN"
        kind: "rapl", "nvml" or "ina3221"
        in_total: not contained in another source of the total
    """

    name: str
    kind: str
    joules: float
    in_total: bool = True


@dataclass(frozen=True)
class Energy:
    """Energy of a piece of work; without sources nothing was measured, and ``reasons`` says why.

    Attributes:
        images: None if they were not counted
        reasons: why each missing kind of meter cannot be read, with the cure if there is one
        joules: sum of the sources that no other source contains
    """

    seconds: float
    images: int | None
    sources: tuple[EnergySource, ...]
    reasons: tuple[str, ...]
    joules: float | None = field(init=False, default=None)
    watts: float | None = field(init=False, default=None)
    images_per_joule: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        counted = [source.joules for source in self.sources if source.in_total]
        if counted:
            joules = sum(counted)
            object.__setattr__(self, "joules", joules)
            object.__setattr__(self, "watts", joules / self.seconds if self.seconds > 0 else None)
            per_joule = self.images / joules if joules and self.images is not None else None
            object.__setattr__(self, "images_per_joule", per_joule)


class _Meter(Protocol):
    name: str
    kind: str
    in_total: bool
    #: None once a reading failed
    joules: float | None

    def sample(self, now: float) -> None:
        """Read the meter; ``now`` is in seconds."""


class _Counter:
    """Sums the advances of an energy counter; ``wrap`` is the value at which it restarts from 0."""

    in_total = True

    def __init__(self, name: str, kind: str, read: Callable[[], int | None], unit: float, wrap: int | None) -> None:
        self.name, self.kind = name, kind
        self.joules: float | None = 0.0
        self._read, self._unit, self._wrap = read, unit, wrap
        self._last: int | None = None

    def sample(self, now: float) -> None:
        value = self._read()
        if self.joules is None or value is None:
            self.joules = None
            return
        advance = value - (value if self._last is None else self._last)
        if advance < 0:
            if self._wrap is None:
                self.joules = None
                return
            advance += self._wrap
        self.joules += advance * self._unit
        self._last = value


class _Rail:
    """Integrates the power of a rail, linear between two readings."""

    kind = "ina3221"

    def __init__(self, name: str, watts: Callable[[], float | None], in_total: bool) -> None:
        self.name, self.in_total = name, in_total
        self.joules: float | None = 0.0
        self._watts = watts
        self._last: tuple[float, float] | None = None

    def sample(self, now: float) -> None:
        watts = self._watts()
        if self.joules is None or watts is None:
            self.joules = None
            return
        if self._last is not None:
            then, before = self._last
            self.joules += (now - then) * (watts + before) / 2
        self._last = now, watts


class EnergyMeter:
    """Counts the energy of a ``with`` block; call :meth:`energy` afterwards.

    Args:
        root: replaces / in tests
        nvml: replaces the module ``pynvml`` in tests
    """

    def __init__(self, *, root: Path = ROOT, nvml: Any = None) -> None:
        self._root, self._module = root, nvml
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="yolact-energy", daemon=True)
        self._meters: list[_Meter] = []
        self._reasons: list[str] = []
        self._seconds = 0.0

    @property
    def works(self) -> bool:
        """Whether anything is counted; known inside the block."""
        return bool(self._meters)

    def __enter__(self) -> EnergyMeter:
        self._nvml = Nvml(self._module, root=self._root)
        rails, why_no_rails = _rails(self._root)
        domains, why_no_domains = _rapl(self._root)
        counters, why_no_gpus = _gpus(self._nvml)
        for counter in counters:
            counter.in_total = not rails  # a Jetson's rails feed its GPU
        self._meters = [*domains, *counters, *rails]
        self._reasons = [why for why in (why_no_domains, why_no_gpus, why_no_rails) if why]
        self._interval = _POWER_SECONDS if rails else _COUNTER_SECONDS
        self._start = self._sample()
        if self._meters:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._seconds = self._sample() - self._start
        self._nvml.close()

    def energy(self, images: int | None = None) -> Energy:
        """The energy of the block, which processed ``images`` images."""
        lost = [
            f"{meter.name}: its readings failed during the measurement"
            for meter in self._meters
            if meter.joules is None
        ]
        sources = tuple(
            EnergySource(meter.name, meter.kind, meter.joules, meter.in_total)
            for meter in self._meters
            if meter.joules is not None
        )
        return Energy(self._seconds, images, sources, (*self._reasons, *lost))

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> float:
        now = time.perf_counter()
        for meter in self._meters:
            meter.sample(now)
        return now


# -- sources --------------------------------------------------------------------------------------------------------


def _gpus(nvml: Nvml) -> tuple[list[_Counter], str]:
    silent = [gpu.name for gpu in nvml.gpus if gpu.millijoules() is None]
    counters = [_Counter(gpu.name, "nvml", gpu.millijoules, 1e-3, None) for gpu in nvml.gpus if gpu.name not in silent]
    return counters, f"{', '.join(silent)}: does not count energy (GPUs before Volta)" if silent else nvml.reason


def _rapl(root: Path) -> tuple[list[_Counter], str]:
    """Packages and their memory, if counted separately; not their parts, and not ``psys``, their sum."""
    counters: dict[str, _Counter] = {}
    locked = False
    # A package may be listed again as intel-rapl-mmio:0, which sorts last. AMD packages are named intel-rapl as well.
    folders = (root / "sys/class/powercap").glob("intel-rapl*:*")
    for folder in sorted(folders, key=lambda folder: ("mmio" in folder.name, folder.name)):
        name = read_text(folder / "name") or ""
        if name == "dram":
            name = f"dram of {read_text(folder.parent / folder.name.rpartition(':')[0] / 'name')}"
        elif not name.startswith("package"):
            continue
        if name in counters:
            continue
        path = folder / "energy_uj"
        if read_int(path) is None:
            locked = locked or path.exists()
            continue
        counters[name] = _Counter(name, "rapl", partial(read_int, path), 1e-6, read_int(folder / "max_energy_range_uj"))
    if locked:
        return list(counters.values()), (
            "processor (RAPL): only root may read its counters; allow it until the next boot with "
            "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"
        )
    return list(counters.values()), "" if counters else (
        "processor (RAPL): no counters in /sys/class/powercap, as in most virtual machines and on ARM"
    )


def _rails(root: Path) -> tuple[list[_Rail], str]:
    """Power rails of a Jetson, by hwmon (JetPack 5 and later) or iio (JetPack 4)."""
    readers = dict(itertools.chain(_hwmon_rails(root), _iio_rails(root)))
    inputs = [name for name in readers if name in _INPUT_RAILS]
    rails = [_Rail(name, watts, name in inputs or not inputs) for name, watts in sorted(readers.items())]
    if rails or not (root / "etc/nv_tegra_release").exists():
        return rails, ""
    return [], "Jetson: no INA3221 in /sys/class/hwmon; in a container, mount /sys"


def _hwmon_rails(root: Path) -> Iterator[tuple[str, Callable[[], float | None]]]:
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if read_text(chip / "name") != "ina3221":
            continue
        for channel in (1, 2, 3):  # higher ones are sums
            name = read_text(chip / f"in{channel}_label") or "NC"
            volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
            if name != "NC" and read_int(volts) is not None and read_int(amperes) is not None:  # NC: not connected
                yield name, partial(_product, volts, amperes)


def _iio_rails(root: Path) -> Iterator[tuple[str, Callable[[], float | None]]]:
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*/rail_name_*")):
        path = label.with_name(f"in_power{label.name.rpartition('_')[2]}_input")
        if read_int(path) is not None:
            yield read_text(label) or path.name, partial(_scaled, path)


def _product(millivolts: Path, milliamperes: Path) -> float | None:
    u, i = read_int(millivolts), read_int(milliamperes)
    return None if u is None or i is None else u * i / 1e6


def _scaled(milliwatts: Path) -> float | None:
    value = read_int(milliwatts)
    return None if value is None else value / 1e3

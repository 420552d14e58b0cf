"""Conditions of a measurement: what is read, what changes in between, and which sentences follow."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_machine import FakeNvml, gpu, write

from yolact_deploy.machine import cpu_state
from yolact_deploy.machine.conditions import Conditions, ConditionsMeter, GpuState
from yolact_deploy.machine.debug_builds import debug_builds

CPU = "sys/devices/system/cpu"
TICKS = os.sysconf("SC_CLK_TCK")


def watch(root: Path, work: Callable[[], None] = lambda: None, nvml: FakeNvml | None = None) -> Conditions:
    with ConditionsMeter(root=root, nvml=nvml or FakeNvml(), modules={}) as meter:
        work()
    return meter.conditions


def clock(root: Path, cpu: int, mhz: int, *, governor: str = "performance", limit: int = 4000) -> None:
    folder = f"{CPU}/cpu{cpu}/cpufreq"
    files = {"scaling_cur_freq": mhz, "scaling_max_freq": limit, "cpuinfo_max_freq": 4000}
    write(root, {f"{folder}/{name}": value * 1000 for name, value in files.items()})
    write(root, {f"{folder}/scaling_governor": governor})


def times(root: Path, *, busy: float = 0, idle: float = 0, stolen: float = 0) -> None:
    """Seconds; a guest's are told twice."""
    user, rest, steal = (int(seconds * TICKS) for seconds in (busy, idle, stolen))
    write(root, {"proc/stat": f"cpu  {user} 0 0 {rest} 5 0 0 {steal} {user} 0\ncpu0 1 0 0 0 0 0 0 0 0 0\nctxt 3"})


# -- reading --------------------------------------------------------------------------------------------------------


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = watch(tmp_path)
    assert (found.other_cores, found.stolen_cores, found.governor, found.turbo) == (None,) * 4
    assert (found.before.cpu_mhz, found.clock_limit_mhz, found.quota_cores) == (None,) * 3
    assert (found.thermal_throttles, found.overcurrents, found.before.temperatures_c) == (0, 0, {})
    assert found.warnings == found.debug
    json.dumps(dataclasses.asdict(found))


def test_a_quiet_machine_gives_no_warning(tmp_path: Path) -> None:
    clock(tmp_path, 0, 4000)
    clock(tmp_path, 1, 800)
    times(tmp_path)
    found = watch(tmp_path, lambda: times(tmp_path, idle=3))
    assert (found.before.cpu_mhz, found.governor) == (4000, "performance")
    assert (found.other_cores, found.stolen_cores) == (0, 0)
    assert found.warnings == found.debug


def test_clocks_governor_and_turbo(tmp_path: Path) -> None:
    clock(tmp_path, 0, 3600, governor="powersave")
    clock(tmp_path, 10, 2200, governor="schedutil")
    assert cpu_state.clocks_mhz(tmp_path) == [3600, 2200]
    assert cpu_state.governor(tmp_path) == "powersave, schedutil"
    assert cpu_state.clock_limit_mhz(tmp_path) == (4000, 4000)
    write(tmp_path, {f"{CPU}/cpufreq/boost": 0})
    assert cpu_state.turbo(tmp_path) is False
    write(tmp_path, {f"{CPU}/intel_pstate/no_turbo": 0})
    assert cpu_state.turbo(tmp_path) is True


def test_clocks_of_a_virtual_machine(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2596.122\n\nprocessor\t: 1\ncpu MHz\t\t: 2000.000"})
    assert cpu_state.clocks_mhz(tmp_path) == [2596.122, 2000.0]


def test_temperatures(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 51_500,
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone1/temp": -256_000,  # switched off
            "sys/class/thermal/thermal_zone2/type": "gpu-thermal",  # asleep: cannot be read
            "sys/class/hwmon/hwmon0/name": "k10temp",
            "sys/class/hwmon/hwmon0/temp1_input": 61_000,
            "sys/class/hwmon/hwmon0/temp3_input": 66_250,
            "sys/class/hwmon/hwmon1/name": "nvme",
            "sys/class/hwmon/hwmon1/temp1_input": 90_000,
        },
    )
    assert cpu_state.temperatures_c(tmp_path) == {"cpu-thermal": 51.5, "k10temp": 66.25}


def test_load_of_others_and_steal(tmp_path: Path) -> None:
    times(tmp_path)
    found = watch(tmp_path, lambda: times(tmp_path, busy=1000, idle=50, stolen=500))
    # What this process used itself is taken off, which is little.
    assert found.other_cores is not None
    assert found.stolen_cores == pytest.approx(500 / found.seconds)
    assert found.other_cores == pytest.approx(1000 / found.seconds, rel=0.05)


def test_our_own_load_is_not_that_of_others(tmp_path: Path) -> None:
    times(tmp_path, busy=100)
    before = os.times()

    def work() -> None:
        while (now := os.times()).user + now.system - before.user - before.system < 0.3:
            pass
        times(tmp_path, busy=100.2)

    assert watch(tmp_path, work).other_cores == 0


def test_load_is_told_without_proc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    told = cpu_state.cpu_times()
    if told is None:
        pytest.skip("this system has no /proc/stat to compare with")
    monkeypatch.setattr(cpu_state, "read_text", lambda path: None)
    elsewhere = cpu_state.cpu_times()
    assert elsewhere is not None
    assert elsewhere.busy == pytest.approx(told.busy, abs=0.05 * (os.cpu_count() or 1) + 0.1)
    assert elsewhere.stolen == 0
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert cpu_state.cpu_times() is None
    assert cpu_state.cpu_times(Path("/nowhere")) is None, "a root of the tests never tells of this machine"


def test_load_of_a_real_neighbor() -> None:
    """A process that works for a while is seen, as long as it got the processor."""
    code = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass"
    with ConditionsMeter() as watched:
        subprocess.run([sys.executable, "-c", code], check=True)
    found = watched.conditions
    assert found.other_cores is not None
    assert found.other_cores * found.seconds >= 0.55


def test_quota_of_version_2_is_the_tightest_around(tmp_path: Path) -> None:
    group = "sys/fs/cgroup"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b",
            f"{group}/cpu.stat": "usage_usec 7",  # the root has no limit
            f"{group}/a/cpu.max": "150000 100000",
            f"{group}/a/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 250000",
            f"{group}/a/b/cpu.max": "max 100000",
            f"{group}/a/b/cpu.stat": "throttled_usec 0",
        },
    )
    assert cpu_state.quota(tmp_path) == cpu_state.Quota(1.5, 0.25)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1_where_the_container_sees_the_end_of_the_path(tmp_path: Path, mount: str) -> None:
    group = f"sys/fs/cgroup/{mount}"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/x\n3:cpuset:/docker/1\n2:cpu,cpuacct:/docker/1\n0::/",
            f"{group}/cpu.cfs_quota_us": 200_000,
            f"{group}/cpu.cfs_period_us": 100_000,
            f"{group}/cpu.stat": "nr_periods 9\nthrottled_time 1500000000",
        },
    )
    assert cpu_state.quota(tmp_path) == cpu_state.Quota(2.0, 1.5)
    write(tmp_path, {f"{group}/cpu.cfs_quota_us": -1})
    assert cpu_state.quota(tmp_path).cores is None


def test_throttling_in_between_is_counted(tmp_path: Path) -> None:
    def counts(core: int, package: int, oc: int, state: int) -> None:
        throttle = f"{CPU}/cpu0/thermal_throttle"
        write(
            tmp_path,
            {
                f"{throttle}/core_throttle_count": core,
                f"{throttle}/package_throttle_count": package,
                "sys/class/hwmon/hwmon3/oc1_event_cnt": 4,
                "sys/class/hwmon/hwmon3/oc3_event_cnt": oc,
                "sys/class/thermal/cooling_device0/type": "pwm-fan",
                "sys/class/thermal/cooling_device0/cur_state": 3,
                "sys/class/thermal/cooling_device1/type": "cpufreq-cpu4",
                "sys/class/thermal/cooling_device1/cur_state": state,
            },
        )

    counts(7, 70, 2, 0)
    found = watch(tmp_path, lambda: counts(8, 75, 5, 2))
    assert (found.thermal_throttles, found.overcurrents) == (5, 3)
    assert (found.before.slowed, found.after.slowed) == ((), ("cpufreq-cpu4",))
    told = " ".join(found.warnings)
    assert "throttled for heat (5 times)" in told
    assert "cpufreq-cpu4" in told
    assert "pwm-fan" not in told
    assert "power supply (3 overcurrent" in told


def test_gpus(tmp_path: Path) -> None:
    spent = iter([10_000_000_000, 10_500_000_000])

    def violations(policy: int) -> SimpleNamespace:
        return SimpleNamespace(violationTime=next(spent) if policy == 0 else 0)

    answers = gpu(
        ClockInfo=lambda kind: {1: 1590, 2: 5000}[kind],
        Temperature=lambda sensor: 83,
        CurrentClocksEventReasons=0x4 | 0x20,
        ViolationStatus=violations,
        ComputeRunningProcesses=[SimpleNamespace(pid=pid) for pid in (os.getpid(), 1)],
    )
    nvml = FakeNvml(answers)
    found = watch(tmp_path, nvml=nvml)
    assert found.before.gpus == (
        GpuState("GPU 0 (NVIDIA T4)", 1590, None, 5000, 83, ("power cap", "thermal slowdown by the driver")),
    )
    assert found.gpu_throttled_s["GPU 0 (NVIDIA T4)"]["power"] == pytest.approx(0.5)
    held, shared = found.warnings[: len(found.warnings) - len(found.debug)]
    assert held.startswith("GPU 0 (NVIDIA T4) was throttled (power for 0.5 s, thermal slowdown by the driver)")
    assert "nvidia-smi -pl" in held
    assert "cool it better" in held
    assert shared.startswith("1 other processes use GPU 0")
    assert nvml.open == 0


@pytest.mark.parametrize(("pids", "others"), [((), 0), ((1,), 0), ((1, 2), 1)])
def test_other_processes_on_a_gpu_where_a_container_knows_itself_by_another_number(
    tmp_path: Path, pids: tuple[int, ...], others: int
) -> None:
    told = [SimpleNamespace(pid=pid) for pid in pids]
    found = watch(tmp_path, nvml=FakeNvml(gpu(ComputeRunningProcesses=told)))
    assert found.gpu_processes == {"GPU 0 (NVIDIA T4)": others}


# -- sentences ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(tmp_path: Path) -> Conditions:
    found = dataclasses.replace(watch(tmp_path), seconds=10.0, cores=8, usable_cores=8, debug=())
    assert found.warnings == ()
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"other_cores": 1.3}, "1.3 of 8 cores"),
        ({"stolen_cores": 0.4}, "5.0 % of this virtual machine's time"),
        ({"quota_cores": 2.0}, "OMP_NUM_THREADS=2"),
        ({"quota_cores": 0.5}, "OMP_NUM_THREADS=1"),
        ({"quota_cores": 2.0, "quota_stopped_s": 3.0}, "the CPU quota of 2 stopped the container for 3.0 s"),
        ({"governor": "powersave"}, "cpupower frequency-set -g performance"),
        ({"clock_limit_mhz": 1500.0, "hardware_clock_mhz": 2200.0}, "to 1500 of its 2200 MHz"),
        ({"debug": ("torch is a debug build: install a release build",)}, "torch is a debug build"),
    ],
)
def test_each_has_its_sentence(quiet: Conditions, changes: dict[str, Any], words: str) -> None:
    (warning,) = dataclasses.replace(quiet, **changes).warnings
    assert words in warning


@pytest.mark.parametrize(
    "changes",
    [
        {"other_cores": 1.1},
        {"stolen_cores": 0.05},
        {"quota_cores": 8.0},
        {"quota_cores": 8.0, "quota_stopped_s": 0.05},
        {"governor": "performance"},
        {"clock_limit_mhz": 2200.0, "hardware_clock_mhz": 2200.0},
        {"turbo": True},
    ],
)
def test_what_is_as_it_should_be_has_none(quiet: Conditions, changes: dict[str, Any]) -> None:
    assert dataclasses.replace(quiet, **changes).warnings == ()


def test_others_count_against_the_cores_this_process_may_use(quiet: Conditions) -> None:
    assert "1.1 of 8 cores" in dataclasses.replace(quiet, usable_cores=2, other_cores=1.1).warnings[0]


@pytest.mark.parametrize(("turbo", "cure"), [(True, "turn turbo off"), (None, "improve the cooling")])
def test_a_clock_that_fell(quiet: Conditions, turbo: bool | None, cure: str) -> None:
    def at(mhz: float) -> Conditions:
        before = dataclasses.replace(quiet.before, cpu_mhz=4800.0)
        return dataclasses.replace(
            quiet, turbo=turbo, before=before, after=dataclasses.replace(quiet.after, cpu_mhz=mhz)
        )

    (warning,) = at(3000).warnings
    assert "fell from 4800 to 3000 MHz" in warning
    assert cure in warning
    assert at(4000).warnings == (), "turbo alone falls so far as more cores wake up"


# -- debug builds ---------------------------------------------------------------------------------------------------


def torch(
    *, debug: bool = False, settings: str = "BUILD_TYPE=Release, CXX_FLAGS= -DNDEBUG -O2", anomalies: bool = False
) -> SimpleNamespace:
    return SimpleNamespace(
        version=SimpleNamespace(debug=debug),
        __config__=SimpleNamespace(show=lambda: settings),
        is_anomaly_enabled=lambda: anomalies,
    )


def onnxruntime(kind: str) -> SimpleNamespace:
    return SimpleNamespace(get_build_info=lambda: f"ORT Build Info: git-branch=HEAD, build type={kind}")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"torch": torch(debug=True)}, "torch is a debug build"),
        ({"torch": torch(settings="BUILD_TYPE=Debug, CXX_FLAGS= -O0")}, "torch is a debug build"),
        ({"torch": torch(settings="BUILD_TYPE=RelWithAssert, CXX_FLAGS= -O2")}, "assertions enabled"),
        ({"torch": torch(anomalies=True)}, "set_detect_anomaly(False)"),
        ({"onnxruntime": onnxruntime("Debug")}, "onnxruntime is a debug build"),
    ],
)
def test_debug_builds(modules: dict[str, Any], words: str) -> None:
    known = debug_builds({}, {})
    (found,) = debug_builds(modules, {})[len(known) :]
    assert words in found


def test_release_builds_and_modules_that_do_not_tell() -> None:
    release = {"torch": torch(), "onnxruntime": onnxruntime("Release")}
    assert debug_builds(release, {}) == debug_builds({}, {})
    silent = {"torch": SimpleNamespace(), "onnxruntime": SimpleNamespace()}
    assert debug_builds(silent, {"CUDA_LAUNCH_BLOCKING": "0"}) == debug_builds({}, {})


def test_slowing_variables_and_tracers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert debug_builds({}, {"CUDA_LAUNCH_BLOCKING": "1"})[-1] == "CUDA_LAUNCH_BLOCKING=1 slows every call: unset it"
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    assert any("coverage" in sentence for sentence in debug_builds({}, {}))


def test_here() -> None:
    with ConditionsMeter() as meter:
        pass
    json.dumps(dataclasses.asdict(meter.conditions))
    assert meter.conditions.seconds > 0

"""Energy: what each kind of meter counts, what is added up, and what is said where there is none."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_machine import FakeNvml, gpu, write
from scripted import SCRIPT, ScriptedBackend, predictor, write_pictures

from yolact_deploy.benchmarks.model_energy import measure_energy
from yolact_deploy.errors import InputError
from yolact_deploy.machine import energy as energy_module
from yolact_deploy.machine.energy import Energy, EnergyMeter, EnergySource

POWERCAP = "sys/class/powercap"
HWMON = "sys/class/hwmon"


def rapl(root: Path, domain: str, name: str, microjoules: int, wrap: int = 1_000_000_000) -> None:
    folder = f"{POWERCAP}/{domain}"
    write(root, {f"{folder}/name": name, f"{folder}/energy_uj": microjoules, f"{folder}/max_energy_range_uj": wrap})


def rail(root: Path, chip: str, channel: int, label: str, millivolts: int, milliamperes: int) -> None:
    folder = f"{HWMON}/{chip}"
    write(
        root,
        {
            f"{folder}/name": "ina3221",
            f"{folder}/in{channel}_label": label,
            f"{folder}/in{channel}_input": millivolts,
            f"{folder}/curr{channel}_input": milliamperes,
        },
    )


def measure(root: Path, work: Callable[[], None], nvml: FakeNvml | None = None, images: int | None = None) -> Energy:
    with EnergyMeter(root=root, nvml=nvml or FakeNvml()) as meter:
        work()
    return meter.energy(images)


def joules(found: Energy) -> dict[str, float]:
    return {source.name: source.joules for source in found.sources}


def test_packages_and_their_memory_are_counted_once(tmp_path: Path) -> None:
    domains = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",  # part of the package
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",  # sum of the packages
        "intel-rapl-mmio:0": "package-0",  # the same a second time
    }
    for domain, name in domains.items():
        rapl(tmp_path, domain, name, 1_000_000)

    def work() -> None:
        rapl(tmp_path, "intel-rapl:0", "package-0", 31_000_000)
        rapl(tmp_path, "intel-rapl:0:1", "dram", 3_500_000)
        rapl(tmp_path, "intel-rapl:1", "package-1", 11_000_000)
        for domain in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
            rapl(tmp_path, domain, domains[domain], 900_000_000)

    found = measure(tmp_path, work, images=85)
    assert joules(found) == pytest.approx({"package-0": 30, "dram of package-0": 2.5, "package-1": 10})
    assert found.joules == pytest.approx(42.5)
    assert found.images_per_joule == pytest.approx(2)
    assert found.watts == pytest.approx(42.5 / found.seconds)


def test_a_counter_that_wraps_around(tmp_path: Path) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    found = measure(tmp_path, lambda: rapl(tmp_path, "intel-rapl:0", "package-0", 4_000_000))
    assert found.joules == pytest.approx(5)


def test_a_counter_is_read_in_between_so_that_two_wraps_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([900, 900, 300, 700, 100, 900, 200])  # the first to see whether it can be read
    done = threading.Event()

    def read(path: Path) -> int:
        if path.name != "energy_uj":
            return 1_000_000_000
        value = next(told, None)
        if value is None:
            done.set()
        return 1_000_000 * (200 if value is None else value)

    monkeypatch.setattr(energy_module, "read_int", read)
    monkeypatch.setattr(energy_module, "_COUNTER_SECONDS", 0.01)
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    found = measure(tmp_path, lambda: assert_soon(done))
    assert found.joules == pytest.approx(400 + 400 + 400 + 800 + 300)


def assert_soon(done: threading.Event) -> None:
    assert done.wait(60)


def test_counters_that_only_root_may_read_are_told_with_the_cure(tmp_path: Path) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    locked = tmp_path / POWERCAP / "intel-rapl:0/energy_uj"
    locked.unlink()
    locked.mkdir()  # there, but not to be read, even by root
    found = measure(tmp_path, lambda: None, images=3)
    assert (found.sources, found.joules, found.watts, found.images_per_joule) == ((), None, None, None)
    assert any("sudo chmod a+r /sys/class/powercap" in reason for reason in found.reasons)


def test_a_machine_without_meters_says_so(tmp_path: Path) -> None:
    found = measure(tmp_path, lambda: None, images=3)
    assert found.joules is None
    assert found.reasons == (
        "processor (RAPL): no counters in /sys/class/powercap, as in most virtual machines and on ARM",
        "NVIDIA GPUs: this machine has none",
    )
    assert json.loads(json.dumps(asdict(found)))["images_per_joule"] is None


def test_gpus(tmp_path: Path) -> None:
    counts = iter([5_000, 5_000, 65_000])  # asked whether it counts, before, after
    nvml = FakeNvml(gpu("NVIDIA L4", TotalEnergyConsumption=lambda: next(counts)), gpu("Quadro P600", "GPU-b"))
    found = measure(tmp_path, lambda: None, nvml, images=30)
    assert found.sources == (EnergySource("GPU 0 (NVIDIA L4)", "nvml", 60.0),)
    assert found.images_per_joule == pytest.approx(0.5)
    assert "GPU 1 (Quadro P600): does not count energy (GPUs before Volta)" in found.reasons
    assert nvml.open == 0, "NVML is closed again"


def test_a_gpu_counter_that_begins_anew_is_no_figure(tmp_path: Path) -> None:
    counts = iter([5_000, 5_000, 100])
    found = measure(tmp_path, lambda: None, FakeNvml(gpu(TotalEnergyConsumption=lambda: next(counts))))
    assert found.joules is None
    assert "GPU 0 (NVIDIA T4): its readings failed during the measurement" in found.reasons


def test_a_driver_that_does_not_start_is_told(tmp_path: Path) -> None:
    found = measure(tmp_path, lambda: None, FakeNvml(gpu(), starts=False))
    assert any("Driver Not Loaded" in reason and "nvidia-smi" in reason for reason in found.reasons)


def test_power_of_a_jetson_is_summed_up_over_time(tmp_path: Path) -> None:
    rail(tmp_path, "hwmon1", 1, "VDD_IN", 5_000, 2_000)
    rail(tmp_path, "hwmon1", 2, "VDD_CPU_GPU_CV", 5_000, 1_000)
    rail(tmp_path, "hwmon1", 3, "NC", 0, 0)
    write(tmp_path, {f"{HWMON}/hwmon0/name": "pwmfan", f"{HWMON}/hwmon0/in1_input": 12_000})
    found = measure(tmp_path, lambda: time.sleep(0.3), FakeNvml(gpu(TotalEnergyConsumption=5_000)))
    told = joules(found)
    assert told.keys() == {"GPU 0 (NVIDIA T4)", "VDD_CPU_GPU_CV", "VDD_IN"}
    assert told["VDD_IN"] == pytest.approx(10 * found.seconds)
    assert told["VDD_CPU_GPU_CV"] == pytest.approx(told["VDD_IN"] / 2)
    assert found.joules == told["VDD_IN"], "the other rails and the GPU hang on it"
    assert found.watts == pytest.approx(10)


def test_power_is_taken_as_straight_between_two_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail(tmp_path, "hwmon1", 1, "VDD_GPU_SOC", 10_000, 200)
    rail(tmp_path, "hwmon1", 2, "VDD_CPU_CV", 10_000, 100)
    monkeypatch.setattr(energy_module, "_POWER_SECONDS", 3600)
    times = iter([100.0, 104.0])
    monkeypatch.setattr(energy_module, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    found = measure(tmp_path, lambda: rail(tmp_path, "hwmon1", 1, "VDD_GPU_SOC", 10_000, 400))
    assert joules(found) == pytest.approx({"VDD_GPU_SOC": 4 * (2 + 4) / 2, "VDD_CPU_CV": 4})
    assert (found.seconds, found.joules) == (4, pytest.approx(16)), "without a rail for all, their sum"


def test_rails_are_read_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail(tmp_path, "hwmon1", 1, "VDD_IN", 5_000, 100)
    readings = 0
    done = threading.Event()

    def read(path: Path) -> int:
        nonlocal readings
        readings += 1
        if readings > 20:
            done.set()
        return 1

    monkeypatch.setattr(energy_module, "read_int", read)
    with EnergyMeter(root=tmp_path, nvml=FakeNvml()):
        assert_soon(done)


def test_rails_of_jetpack_4(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(
        tmp_path,
        {
            f"{folder}/rail_name_0": "POM_5V_IN",
            f"{folder}/in_power0_input": 4_000,
            f"{folder}/rail_name_1": "POM_5V_GPU",
            f"{folder}/in_power1_input": 1_000,
        },
    )
    found = measure(tmp_path, lambda: time.sleep(0.05))
    assert found.watts == pytest.approx(4)
    assert joules(found).keys() == {"POM_5V_IN", "POM_5V_GPU"}


def test_a_jetson_whose_rails_are_hidden_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"})
    found = measure(tmp_path, lambda: None)
    assert found.reasons[-1] == "Jetson: no INA3221 in /sys/class/hwmon; in a container, mount /sys"


def test_energy_of_a_model(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    backend = ScriptedBackend(SCRIPT)
    counts = iter(range(0, 10_000_000, 5_000))
    nvml = FakeNvml(gpu(TotalEnergyConsumption=lambda: next(counts)))
    found = measure_energy(predictor(backend), paths, seconds=0.3, root=tmp_path, nvml=nvml)
    assert found.seconds >= 0.3
    assert found.images == len(backend.seen) > 0
    assert backend.seen[:4] == [1, 2, 3, 1][: len(backend.seen)], "over and over the pictures"
    assert found.joules == pytest.approx(5)
    assert found.images_per_joule == pytest.approx(len(backend.seen) / 5)


def test_nothing_runs_where_nothing_counts(tmp_path: Path) -> None:
    backend = ScriptedBackend(SCRIPT)
    found = measure_energy(predictor(backend), write_pictures(tmp_path), root=tmp_path / "none", nvml=FakeNvml())
    assert (backend.seen, found.images, found.joules) == ([], 0, None)
    with pytest.raises(InputError, match="at least one image"):
        measure_energy(predictor(backend), [])


def test_here(tmp_path: Path) -> None:
    """Whatever this machine tells: a figure, or a reason."""
    with EnergyMeter() as meter:
        pass
    found = meter.energy(1)
    assert found.joules is not None or found.reasons
    json.dumps(asdict(found))

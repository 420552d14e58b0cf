"""Which GPUs are asked, and what is made of the answers."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_machine import FakeNvml, gpu, memory, write

from yolact_deploy.machine.nvml import Nvml, visible

UUIDS = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]
SAME = ["T4"] * 3
MIXED = ["T4", "L4", "T4"]


@pytest.mark.parametrize(
    ("models", "wanted", "order", "expected"),
    [
        (SAME, None, None, [0, 1, 2]),
        (SAME, "2,0", None, [2, 0]),
        (SAME, "", None, []),
        (SAME, "1,-1,0", None, [1]),
        (SAME, "1,7,0", None, [1]),
        (MIXED, "1", None, [0, 1, 2]),
        (MIXED, "1", "PCI_BUS_ID", [1]),
        (MIXED, "GPU-bb,GPU-aa11", None, [1, 0]),
        (MIXED, "GPU-dd", None, []),
        (SAME, "MIG-123", None, [0, 1, 2]),
    ],
)
def test_cudas_choice_is_followed(
    models: list[str], wanted: str | None, order: str | None, expected: list[int]
) -> None:
    variables = {"CUDA_VISIBLE_DEVICES": wanted, "CUDA_DEVICE_ORDER": order}
    assert visible(UUIDS, models, {name: value for name, value in variables.items() if value is not None}) == expected


def _violations(policy: int) -> SimpleNamespace:
    nanoseconds = {0: 2_500_000_000, 1: 0}
    if policy not in nanoseconds:
        raise FakeNvml.NVMLError("Not Supported")
    return SimpleNamespace(violationTime=nanoseconds[policy])


def test_answers() -> None:
    answers = gpu(
        "NVIDIA L4",
        ClockInfo=lambda kind: {1: 2040, 2: 6251}[kind],
        MaxClockInfo=lambda kind: {1: 2100}[kind],
        TemperatureV=lambda sensor: {0: 61}[sensor],
        EnforcedPowerLimit=72_000,
        MemoryInfo=memory(3 << 30, 24 << 30),
        CudaComputeCapability=[8, 9],
        CurrentClocksThrottleReasons=0x4 | 0x40 | 0x1,
        ViolationStatus=_violations,
        ComputeRunningProcesses=[SimpleNamespace(pid=7), SimpleNamespace(pid=9)],
    )
    module = FakeNvml(answers)
    with Nvml(module, {}) as nvml:
        (found,) = nvml.gpus
        assert (nvml.driver, nvml.reason) == ("570.86.10", "")
        assert found.name == "GPU 0 (NVIDIA L4)"
        assert (found.clock_mhz(), found.memory_clock_mhz(), found.max_clock_mhz()) == (2040, 6251, 2100)
        assert (found.temperature_c(), found.power_limit_w(), found.capability()) == (61, 72.0, (8, 9))
        assert found.memory() == (3 << 30, 24 << 30)
        assert found.throttle_reasons() == ("power cap", "thermal slowdown by the hardware")
        assert found.throttled_seconds() == {"power": 2.5, "thermal": 0.0}
        assert found.processes() == {7, 9}
        assert found.millijoules() is None
    assert module.open == 0


def test_a_gpu_that_tells_nothing() -> None:
    with Nvml(FakeNvml(gpu()), {}) as nvml:
        (found,) = nvml.gpus
        told = (found.clock_mhz(), found.temperature_c(), found.power_limit_w(), found.memory(), found.capability())
        assert told == (None,) * 5
        assert (found.throttle_reasons(), found.throttled_seconds(), found.processes()) == ((), {}, None)


def test_no_gpu_to_be_used() -> None:
    assert Nvml(FakeNvml(gpu()), {"CUDA_VISIBLE_DEVICES": ""}).reason.endswith("(CUDA_VISIBLE_DEVICES)")
    assert Nvml(FakeNvml(), {}).reason == "NVIDIA GPUs: this machine has none"


#: files of a machine with Linux, and of its PCI bus with a GPU
LINUX: dict[str, object] = {"proc/self/stat": "1", "sys/bus/pci/devices/0000:00:02.0/vendor": "0x1af4"}
NVIDIA: dict[str, object] = {**LINUX, "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de"}


@pytest.mark.parametrize("missing", ["package", "driver"])
def test_nvml_is_not_to_be_had(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where there may be a GPU it is worth installing something."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    module = None if missing == "package" else FakeNvml(gpu(), starts=False)
    cure = "yolact-deploy[bench]" if missing == "package" else "check it with nvidia-smi"

    def reason(name: str, files: dict[str, object]) -> str:
        write(tmp_path / name, files)
        nvml = Nvml(module, {}, root=tmp_path / name)
        assert nvml.gpus == ()
        nvml.close()
        return nvml.reason

    assert reason("none", LINUX) == "NVIDIA GPUs: this machine has none"
    assert cure in reason("pci", NVIDIA)
    assert cure in reason("jetson", {**LINUX, "etc/nv_tegra_release": "# R36"})
    assert cure in reason("wsl", {**LINUX, "dev/dxg": ""})
    assert cure in reason("not linux", {"something": "else"})

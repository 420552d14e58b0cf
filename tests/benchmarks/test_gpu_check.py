"""The GPU check, as far as it goes without a GPU: every kernel case in the emulator behind the fake driver."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from host_network import emulated

from yolact_deploy.benchmarks import gpu_check, machine_limits
from yolact_deploy.benchmarks.gpu import gpu_golden, gpu_kernels
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, MissingDependencyError
from yolact_deploy.runtime.cuda.driver import Device

__all__ = ["emulated"]

pytestmark = [pytest.mark.fake_cuda(memory=256 * 2**20), pytest.mark.usefixtures("emulated")]

CONFIG = YolactConfig(
    name="small", backbone="resnet50", image_size=128, num_classes=5, top_k=20, max_detections=15, num_prototypes=8
)
IMAGE_SIZE = (40, 72)


def cases(batch: int = 2) -> list[gpu_kernels.KernelCase]:
    return gpu_kernels.kernel_cases(CONFIG, batch, image_size=IMAGE_SIZE)


@pytest.mark.parametrize("number", range(6))
def test_kernels_are_right(number: int) -> None:
    bench = gpu_kernels.KernelBench(Device.open(0), launches=2, rounds=1)
    case = cases()[number]
    report = gpu_kernels.kernel_report(bench, case, bandwidth=1e9)
    bench.close()
    assert report["wrong"] == ""
    assert report["bytes"] > 0
    assert report["operations"] > 0
    assert report["microseconds"] > 0
    assert report["times_memory_limit"] == pytest.approx(1e3 * report["microseconds"] / report["bytes"])
    assert fake.control().leaks() in ("", "1 primary contexts")


@pytest.mark.parametrize("number", range(6))
def test_wrong_results_are_reported(number: int) -> None:
    """What a check is given is changed a little: it must not be content."""
    bench = gpu_kernels.KernelBench(Device.open(0), launches=2, rounds=1)
    case = cases(1)[number]
    outputs, _ = bench.run(case, timed=False)
    bench.close()
    assert case.check(outputs) == ""
    assert case.check(damaged(outputs)) != ""


def damaged(outputs: dict[str, Any]) -> dict[str, Any]:
    changed = {name: array.copy() for name, array in outputs.items()}
    for name, array in changed.items():
        if name == "bits":
            array ^= np.uint32(0x0F0F0F0F)
        elif name == "out_scores":
            array[0, 0] = np.nextafter(array[0, 0], np.float32(0))
        elif name == "images":
            array[0, 3, 4, 1] ^= 8
        elif name == "masks":
            array[0, 0] += np.array(0.01, array.dtype)
    return changed


GOLDEN_CASES = {case.name: case for case in gpu_golden.golden_cases()}


@pytest.mark.golden
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_kernels_give_what_the_original_gives(name: str) -> None:
    bench = gpu_kernels.KernelBench(Device.open(0))
    case = GOLDEN_CASES[name]
    outputs, _ = bench.run(case, timed=False)
    bench.close()
    assert case.check(outputs) == ""
    changed = {"bits": lambda bits: bits ^ np.uint32(0x0F0F0F0F), "out_labels": lambda labels: labels + 1}
    assert case.check({key: changed.get(key, np.copy)(array) for key, array in outputs.items()}) != ""


def test_golden_cases_are_found() -> None:
    kinds = [name.partition(",")[0] for name in GOLDEN_CASES]
    assert kinds.count("fast_nms") >= 10
    assert kinds.count("masks and paste") >= 4


def test_a_check_that_raises_is_a_result() -> None:
    check = gpu_check.GpuCheck(Device.open(0), quiet=True)

    def missing() -> Any:
        raise MissingDependencyError("no such package")

    def broken() -> Any:
        raise ZeroDivisionError("by zero")

    def refused() -> Any:
        raise BackendError("no such GPU")

    check.run("missing", missing)
    check.run("broken", broken)
    check.run("refused", refused)
    check.run("wrong", lambda: ("it is wrong", "", {"a": 1}))
    assert [c.status for c in check.checks] == ["skipped", "failed", "failed", "failed"]
    assert check.checks[1].detail == "ZeroDivisionError: by zero"
    assert [line.partition(":")[0] for line in gpu_check.problems(check.to_json())] == ["broken", "refused", "wrong"]
    assert check.run("right", lambda: ("", "it is right", {"b": 2})) == {"b": 2}


def test_copy_bandwidth_counts_both_directions() -> None:
    rates = machine_limits.gpu_copy_bandwidth(Device.open(0))
    assert set(rates) == {"device_bytes_per_s", "upload_bytes_per_s", "download_bytes_per_s"}
    assert min(rates.values()) > 0


def test_the_command_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = cases(1)[:2]
    monkeypatch.setattr(machine_limits, "gpu_copy_bandwidth", lambda device: {"device_bytes_per_s": 1e9})
    monkeypatch.setattr(gpu_kernels, "kernel_cases", lambda config, batch: small)
    target = tmp_path / "gpu.json"
    code = gpu_check.main(["--quick", "-o", str(target), "--work", str(tmp_path / "work")])
    result = json.loads(target.read_text())
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["networks"]["status"] == "skipped"
    assert by_name["kernel fast_nms, batch 1"]["status"] == "passed"
    assert code == (1 if any(check["status"] == "failed" for check in result["checks"]) else 0)
    assert result["environment"]["gpu"]["name"]
    assert result["schema"] == gpu_check.SCHEMA_VERSION
    assert "fast_nms" in capsys.readouterr().out


def test_a_wrong_kernel_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [replace(cases(1)[1], check=lambda outputs: "it is wrong")]
    monkeypatch.setattr(gpu_kernels, "kernel_cases", lambda config, batch: wrong)
    monkeypatch.setattr(machine_limits, "gpu_copy_bandwidth", lambda device: {"device_bytes_per_s": 1e9})
    assert gpu_check.main(["--quick", "--quiet"]) == 1


def test_missing_weights_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--weights", "nowhere.pth"]) == 2
    assert capsys.readouterr().err == "gpu_check: error: no such checkpoint: nowhere.pth\n"

"""The GPU check, as far as it goes without a GPU: every kernel case in the emulator behind the fake driver."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from host_network import emulated

from yolact_deploy.benchmarks import gpu_check, machine_limits
from yolact_deploy.benchmarks.gpu import gpu_frames, gpu_golden, gpu_kernels, gpu_models
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
    assert report["microseconds_from_memory"] > 0
    assert report["times_memory_limit"] == pytest.approx(1e3 * report["microseconds_from_memory"] / report["bytes"])
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
    kept: list[int] = []
    check = gpu_check.GpuCheck(quiet=True, keep=lambda check: kept.append(len(check.checks)))

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
    assert kept == [1, 2, 3, 4, 5]  # results are kept as they come


def test_copy_bandwidth_counts_both_directions() -> None:
    rates = machine_limits.gpu_copy_bandwidth(Device.open(0))
    assert set(rates) == {"device_bytes_per_s", "upload_bytes_per_s", "download_bytes_per_s"}
    assert min(rates.values()) > 0


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two launches of each kernel in place of the hundreds that a GPU's clock needs."""
    bench = partial(gpu_kernels.KernelBench, launches=2, rounds=1)
    monkeypatch.setattr(gpu_kernels, "KernelBench", bench)


def in_process(args: Any, folder: Path, name: str, limit: float, check: gpu_check.GpuCheck) -> None:
    """In place of a process for each part."""
    gpu_check.parts(args, folder)[name](check)


@pytest.mark.usefixtures("short")
def test_the_command_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = cases(1)[:2]
    monkeypatch.setattr(machine_limits, "gpu_copy_bandwidth", lambda device: {"device_bytes_per_s": 1e9})
    monkeypatch.setattr(gpu_kernels, "kernel_cases", lambda config, batch: small)
    monkeypatch.setattr(gpu_check, "run_part", in_process)
    monkeypatch.setattr(gpu_frames, "_WARM_UP", 6)
    monkeypatch.setattr(gpu_frames, "BATCHES", (2, 3))
    of_config = gpu_frames.frame_cases
    monkeypatch.setattr(
        gpu_frames, "frame_cases", lambda device, config, calls: of_config(device, CONFIG, calls=2, sizes=[IMAGE_SIZE])
    )
    target = tmp_path / "gpu.json"
    code = gpu_check.main(["--quick", "-o", str(target), "--work", str(tmp_path / "work")])
    result = json.loads(target.read_text())
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["networks"]["status"] == "skipped"
    assert by_name["kernel fast_nms, batch 1"]["status"] == "passed"
    frames = {name: check for name, check in by_name.items() if name.startswith("frames 72x40")}
    assert {check["status"] for check in frames.values()} == {"passed"}
    assert len(frames) == 6
    assert frames["frames 72x40, read in place"]["data"]["runtime"]["frames"] == "in place"
    assert frames["frames 72x40, uploaded"]["data"]["runtime"]["frames"] == "uploaded"
    assert "assembly" in frames["frames 72x40, with times of stages"]["data"]["stages_mean_ms"]
    assert frames["frames 72x40, uploaded"]["data"]["detections"] > 0
    assert code == (1 if any(check["status"] == "failed" for check in result["checks"]) else 0)
    assert result["environment"]["gpu"]["name"]
    assert result["schema"] == gpu_check.SCHEMA_VERSION
    assert "fast_nms" in capsys.readouterr().out


@pytest.mark.usefixtures("short")
def test_a_wrong_kernel_fails_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [replace(cases(1)[1], check=lambda outputs: "it is wrong")]
    monkeypatch.setattr(gpu_kernels, "kernel_cases", lambda config, batch: wrong)
    monkeypatch.setattr(machine_limits, "gpu_copy_bandwidth", lambda device: {"device_bytes_per_s": 1e9})
    monkeypatch.setattr(gpu_check, "run_part", in_process)
    monkeypatch.setattr(gpu_frames, "frame_cases", lambda device, config, calls: ())
    assert gpu_check.main(["--quick", "--quiet"]) == 1


# -- a process for each part ------------------------------------------------------------------------------------------

CHILD = """
import json, os, sys, time
part, results = (sys.argv[sys.argv.index(name) + 1] for name in ("--part", "--results"))
with open(results, "a") as file:
    check = {"name": f"{part} 1", "status": "passed", "detail": "right", "seconds": 1.0, "data": {"a": 1}}
    file.write(json.dumps(check) + "\\n" + json.dumps(check)[:20])
print("said on the way", flush=True)
if part == "crashes":
    os.abort()
if part == "exits":
    sys.exit("no such library")
if part == "hangs":
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("part", "limit", "detail"),
    [
        ("works", 60, None),
        ("crashes", 60, r"its process ended with code -6: said on the way"),
        ("exits", 60, r"its process ended with code 1: said on the way no such library"),
        ("hangs", 5, r"stopped after 5 s: said on the way"),
    ],
)
def test_a_part_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, limit: float, detail: str | None
) -> None:
    """What it found before it ended stays."""
    (tmp_path / "part_of_check.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_check, "_MODULE", "part_of_check")
    args = argparse.Namespace(weights=None, quick=True, config="yolact_base", device=0, golden=Path("golden"))
    check = gpu_check.GpuCheck(quiet=True)
    gpu_check.run_part(args, tmp_path, part, limit, check)
    first, *others = check.checks
    assert (first.name, first.status, first.data) == (f"{part} 1", "passed", {"a": 1})
    assert [(each.name, each.status) for each in others] == ([] if detail is None else [(part, "failed")])
    assert all(each.detail == detail for each in others)
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"part_of_check.py"}


def test_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    limits: list[float] = []

    def part(args: Any, folder: Path, name: str, limit: float, check: gpu_check.GpuCheck) -> None:
        limits.append(limit)
        clock[0] += 70
        check.add(gpu_check.Check(name, "passed", "", 70.0, {}))

    monkeypatch.setattr(gpu_check, "run_part", part)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    weights, target = tmp_path / "w.pth", tmp_path / "gpu.json"
    weights.touch()
    assert gpu_check.main(["--weights", str(weights), "--budget", "200", "-o", str(target), "--quiet", "--json"]) == 0
    checks = json.loads(target.read_text())["checks"]
    assert limits == [180.0, 130.0, 60.0]
    assert {check["status"] for check in checks[3:]} == {"skipped"}
    assert "the budget of 200 s is used up: raise --budget" in {check["detail"] for check in checks[3:]}
    names = [check["name"] for check in checks]
    assert len(names) == len(set(names)) > 25
    assert names[:5] == [
        "device", "machine limits", "kernels, batch 1", "kernels against the original", "frame path"
    ]  # fmt: skip


def test_what_is_not_installed_is_skipped_before_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and nothing else: no candidate fails, and none of them makes a file."""

    def fail(*arguments: Any) -> Any:
        raise AssertionError("a file was made")

    for name in ("torch", "triton", "tensorrt", "tensorrt_rtx_libs", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(gpu_models.Workshop, "onnx", fail)
    monkeypatch.setattr(gpu_models.Workshop, "engine", fail)
    args = argparse.Namespace(weights=tmp_path / "w.pth", quick=True, device=0)
    check = gpu_check.GpuCheck(quiet=True)
    for part in gpu_check._networks(args, tmp_path).values():
        part(check)
    assert len(check.checks) > 20
    assert {(each.name, each.status) for each in check.checks if each.status != "skipped"} == set()
    names = {each.name for each in check.checks}
    assert {"TensorRT, our kernels int8", "TensorRT for RTX, our kernels int8"} <= names


@pytest.mark.slow
def test_the_int8_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx
    from yolact_deploy.samples import DEMO_MODEL

    path = gpu_models.Workshop(Path(DEMO_MODEL), tmp_path).onnx("int8", "heads")
    metadata = onnx_metadata(read_onnx(path), path)
    assert (metadata.precision, metadata.tail, metadata.batch) == ("int8", "heads", (1, 8, 32))
    assert metadata.quantization is not None
    assert metadata.quantization["target"] == "symmetric"


def test_compiled_candidates_have_two_shapes(tmp_path: Path) -> None:
    for candidate in gpu_models.candidates(gpu_models.Workshop(tmp_path / "w.pth", tmp_path), 0):
        assert len(candidate.batches) == (2 if candidate.name == "PyTorch compiled" else 3)


class ListModel:
    """A predictor that notes the batches it makes."""

    def __init__(self) -> None:
        self.backend = SimpleNamespace(max_batch=32)
        self.timings = {"network": 1.0}
        self.calls: list[tuple[int, int]] = []

    def __call__(self, images: Any) -> Any:
        self.calls.append((len(images), self.backend.max_batch))


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_throughput_is_that_of_a_list(batch: int) -> None:
    """Batches of a list overlap; one call for each batch does not."""
    model = ListModel()
    report = gpu_models._throughput(model, [np.zeros((4, 4, 3), np.uint8)], batch, 5)  # type: ignore[arg-type]
    assert model.calls[-1] == (5 * batch, batch)
    assert set(model.calls[:-1]) == {(batch, 32)}
    assert model.backend.max_batch == 32
    assert min(report["images_per_s"], report["serial_images_per_s"]) > 0


def test_missing_weights_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--weights", "nowhere.pth"]) == 2
    assert capsys.readouterr().err == "gpu_check: error: no such checkpoint: nowhere.pth\n"


def test_networks_are_measured_without_what_records_need() -> None:
    """A machine that has only PyTorch has no msgspec."""
    code = "import sys; sys.modules['msgspec'] = None; import yolact_deploy.benchmarks.gpu.gpu_models"
    subprocess.run([sys.executable, "-c", code], check=True)

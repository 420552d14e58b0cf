"""`doctor`: findings are honest, and nothing that a probe does can hurt."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from yolact_deploy.cli import main as cli
from yolact_deploy.errors import BackendError
from yolact_deploy.machine import nvidia
from yolact_deploy.machine.nvidia import Driver, Gpu, Jetson
from yolact_deploy.runtime import checks as doctor
from yolact_deploy.runtime import onnxruntime_gpu, probes
from yolact_deploy.runtime.checks import Finding
from yolact_deploy.runtime.probes import PROBES, Probe


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def probe(attempt: object, *modules: str) -> Probe:
    return Probe("runtime", "onnx", attempt, modules)  # type: ignore[arg-type]


def test_a_runtime_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBES, "x", probe(lambda: ("1.2", "fast")))
    assert doctor.try_here("x") == Finding("x", "runtime", True, "1.2", "fast")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setitem(PROBES, "x", probe(attempt, "absent"))
    found = doctor.try_here("x")
    assert not found.works
    assert found.detail == "absent is not installed"
    assert found.cure == "python -m pip install 'yolact-deploy[onnx]'"


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise ImportError("libfoo.so.3: cannot open shared object file")

    monkeypatch.setitem(PROBES, "x", probe(attempt, "absent"))
    assert "libfoo.so.3" in doctor.try_here("x").detail


def test_any_exception_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(PROBES, "x", probe(attempt))
    assert doctor.try_here("x").detail == "RuntimeError: two lines"


H200 = Gpu(0, "NVIDIA H200", (9, 0), False, 1 << 37)
RTX = Gpu(1, "RTX 4090", (8, 9), False, 1 << 34)


def test_the_driver_tells_which_tensorrt_serves_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver((13, 2), (H200, RTX)))
    assert doctor.try_here("NVIDIA driver") == Finding(
        "NVIDIA driver",
        "tool",
        True,
        "CUDA 13.2",
        "NVIDIA H200 (compute capability 9.0), supported by TensorRT; "
        "RTX 4090 (compute capability 8.9), supported by TensorRT and TensorRT for RTX",
    )


@pytest.mark.parametrize(
    ("message", "why", "cure"),
    [
        (
            f"{nvidia.NO_DRIVER}: {nvidia.DRIVER_CURE}",
            nvidia.NO_DRIVER,
            nvidia.DRIVER_CURE,
        ),
        ("it does not start: check it with nvidia-smi", "it does not start", "check it with nvidia-smi"),
        (
            "it cannot start: libx.so is missing. Install X (Y: z)",
            "it cannot start: libx.so is missing",
            "Install X (Y: z)",
        ),
        ("no word of a cure: none", "no word of a cure: none", ""),
    ],
)
def test_our_messages_are_told_apart(message: str, why: str, cure: str) -> None:
    found = probes._unusable(BackendError(message), "1.0")
    assert (str(found), found.cure, found.version) == (why, cure, "1.0")


def test_onnxruntime_that_falls_back_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    from fake_onnxruntime import FakeOnnxRuntime

    fake = FakeOnnxRuntime(tmp_path / "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver((13, 0), (H200,)))
    monkeypatch.setattr(onnxruntime_gpu, "require_gpu", lambda index: H200)
    assert doctor.try_here("onnxruntime CUDA") == Finding(
        "onnxruntime CUDA", "runtime", True, "9.9.9", f"runs on {H200}"
    )
    fake.falls_back = True
    found = doctor.try_here("onnxruntime CUDA")
    assert not found.works
    assert found.detail.startswith("CUDAExecutionProvider does not start on NVIDIA H200")
    assert found.cure.startswith("see yolact-deploy doctor")


def test_kernels_compile_without_a_gpu() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    found = doctor.try_here("CUDA kernels")
    assert found.works, found
    assert found.version.startswith("NVRTC 1")
    assert has_driver() or "cannot run them: no NVIDIA driver here" in found.detail


def test_a_gpu_that_miscalculates(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    from yolact_deploy.runtime.cuda import selftest

    def fail(index: int) -> None:
        raise BackendError("our Fast NMS kernel gives 7 detections: update the driver")

    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver((13, 0), (H200,)))
    monkeypatch.setattr(selftest, "run_kernels", fail)
    found = doctor.try_here("CUDA kernels")
    assert (found.works, found.detail, found.cure) == (
        False,
        "our Fast NMS kernel gives 7 detections",
        "update the driver",
    )
    monkeypatch.setattr(selftest, "run_kernels", lambda index: None)
    assert doctor.try_here("CUDA kernels").detail == "Fast NMS runs on NVIDIA H200"


@pytest.mark.parametrize(
    ("jetson", "told"),
    [
        (None, {}),
        (Jetson("36.4.3", "6.2", "MAXN_SUPER"), {"jetpack": "6.2 (L4T 36.4.3)", "power_mode": "MAXN_SUPER"}),
        (
            Jetson("38.2.1", "7.0", "15W"),
            {"jetpack": "7.0 (L4T 38.2.1)", "power_mode": "15W (there is a faster one: see docs/jetson.md)"},
        ),
        (Jetson("36.4.3", "6.2"), {"jetpack": "6.2 (L4T 36.4.3)", "power_mode": "unknown"}),
    ],
)
def test_a_jetson(monkeypatch: pytest.MonkeyPatch, jetson: Jetson | None, told: dict[str, str]) -> None:
    monkeypatch.setattr(nvidia, "find_jetson", lambda: jetson)
    machine = doctor.describe_machine()
    assert {key: machine[key] for key in ("jetpack", "power_mode") if key in machine} == told


def test_tensorrt_on_a_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "find_jetson", lambda: Jetson("36.4.3", "6.2"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = doctor.try_here("tensorrt")
    assert found.cure == "it comes with JetPack: create the virtual environment with --system-site-packages"


def test_children_answer_and_crashes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {finding.name: finding for finding in doctor.examine(["onnxruntime CPU", "onnx", "NVIDIA driver"])}
    for name, module in (("onnxruntime CPU", "onnxruntime"), ("onnx", "onnx")):
        if importlib.util.find_spec(module):
            assert found[name].works, found[name]
            assert found[name].version == importlib.metadata.version(module)
        else:
            assert "not installed" in found[name].detail
    assert found["NVIDIA driver"].works == has_driver()
    assert "SIGSEGV" in doctor._describe_crash(-signal.SIGSEGV, "")
    assert "code 3: last words" in doctor._describe_crash(3, "first\nlast words\n")


def test_a_child_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    # The child does not know this probe, so it ends with a traceback.
    monkeypatch.setitem(PROBES, "unknown to the child", probe(lambda: ("", "")))
    (found,) = doctor.examine(["unknown to the child"])
    assert not found.works
    assert "KeyError" in found.detail


def test_a_child_that_hangs() -> None:
    (found,) = doctor.examine(["torch CPU"], timeout=0.01)
    assert "no answer within" in found.detail


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_engines_do_not_run_without_a_driver() -> None:
    for name in ("torch CUDA", "tensorrt-rtx", "tensorrt", "onnxruntime CUDA", "onnxruntime RTX"):
        found = doctor.try_here(name)
        assert not found.works
        assert "not installed" in found.detail or found.detail == nvidia.NO_DRIVER
        assert found.cure


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding("a", "runtime", True, "1", "threads"),
        Finding("b", "tool", False, "", "gone", "install it"),
        Finding("c", "runtime", False, "", nvidia.NO_DRIVER, nvidia.DRIVER_CURE),
    ]
    monkeypatch.setattr(doctor, "examine", lambda timeout, progress: findings)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "install it" in text
    assert "see NVIDIA driver" in text
    assert cli.main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["machine"]["cores"] == os.cpu_count()
    assert answer["findings"][1]["cure"] == "install it"


def test_command_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "examine", lambda timeout, progress: [Finding("a", "runtime", False), Finding("b", "tool", True)]
    )
    assert cli.main(["doctor", "--quiet"]) == 2

"""`doctor`: findings are honest, and nothing that a probe does can hurt."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import time
import types

import pytest

from yolact_deploy.cli import main as cli
from yolact_deploy.runtime import doctor
from yolact_deploy.runtime.doctor import Finding, Probe


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def probe(attempt: object, *modules: str) -> Probe:
    return Probe("runtime", "onnx", attempt, modules)  # type: ignore[arg-type]


def test_a_runtime_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PROBES, "x", probe(lambda: ("1.2", "fast")))
    assert doctor.try_here("x") == Finding("x", "runtime", True, "1.2", "fast")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    monkeypatch.setitem(doctor.PROBES, "x", probe(attempt, "absent"))
    found = doctor.try_here("x")
    assert not found.works
    assert found.detail == "absent is not installed"
    assert found.cure == "python -m pip install 'yolact-deploy[onnx]'"


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise ImportError("libfoo.so.3: cannot open shared object file")

    monkeypatch.setitem(doctor.PROBES, "x", probe(attempt, "absent"))
    assert "libfoo.so.3" in doctor.try_here("x").detail


def test_any_exception_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt() -> tuple[str, str]:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(doctor.PROBES, "x", probe(attempt))
    assert doctor.try_here("x").detail == "RuntimeError: two lines"


def test_onnxruntime_that_falls_back_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    fake = types.ModuleType("onnxruntime")
    fake.__dict__.update(
        __version__="9.9",
        InferenceSession=Session,
        SessionOptions=types.SimpleNamespace,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(doctor, "_driver", lambda: ("CUDA 13.0", "a GPU"))
    found = doctor.try_here("onnxruntime CUDA")
    assert not found.works
    assert "falls back to the CPU" in found.detail


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
    monkeypatch.setitem(doctor.PROBES, "unknown to the child", probe(lambda: ("", "")))
    (found,) = doctor.examine(["unknown to the child"])
    assert not found.works
    assert "KeyError" in found.detail


def test_a_child_that_hangs() -> None:
    start = time.monotonic()
    (found,) = doctor.examine(["torch CPU"], timeout=0.01)
    assert "no answer within" in found.detail
    assert time.monotonic() - start < 30


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_engines_do_not_run_without_a_driver() -> None:
    for name in ("torch CUDA", "tensorrt-rtx", "tensorrt"):
        assert not doctor.try_here(name).works


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("a", "runtime", True, "1", "threads"), Finding("b", "tool", False, "", "gone", "install it")]
    monkeypatch.setattr(doctor, "examine", lambda timeout: findings)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "install it" in text
    assert cli.main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["machine"]["cores"] == os.cpu_count()
    assert answer["findings"][1]["cure"] == "install it"


def test_command_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda timeout: [Finding("a", "runtime", False), Finding("b", "tool", True)])
    assert cli.main(["doctor", "--quiet"]) == 2

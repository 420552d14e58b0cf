"""The first run on a GPU, dry: the real commands, over the fake driver, with emulated kernels and small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fake_cuda
import pytest

from yolact_deploy.benchmarks.gpu import first_run
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import YolactDeployError

pytestmark = pytest.mark.skipif(bool(fake_cuda.why_not()), reason=fake_cuda.why_not() or "-")

GOLDEN = Path(__file__).parents[1] / "golden"
#: put before every process: the emulator runs the kernels, few times, on small frames
SHIM = """
import sys
if "yolact_deploy" in " ".join(sys.orig_argv):
    from host_network import emulate_kernels
    from yolact_deploy.benchmarks.gpu import gpu_frames, gpu_kernels
    from yolact_deploy.benchmarks import machine_limits
    emulate_kernels()
    gpu_kernels.KernelBench.__init__.__kwdefaults__.update(launches=2, rounds=1)
    gpu_kernels.kernel_cases.__kwdefaults__.update(image_size=(40, 72))
    gpu_frames.SIZES, gpu_frames.BATCHES, gpu_frames._WARM_UP = ((40, 72),), (2,), 4
    machine_limits.gpu_copy_bandwidth = lambda device: {"device_bytes_per_s": 1e9}
"""
TOOL = """#!/bin/sh
echo "$0" >> {log}
while [ "$1" != {python} ]; do shift; done
exec "$@"
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a machine with the fake driver, compute-sanitizer, and neither nvidia-smi nor ncu."""
    (tmp_path / "shim").mkdir()
    (tmp_path / "shim" / "sitecustomize.py").write_text(SHIM)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.write_text(TOOL.format(log=tmp_path / "sanitized", python=sys.executable))
    tool.chmod(0o755)
    env = fake_cuda.environment(memory=256 * 2**20)
    env["PYTHONPATH"] = f"{tmp_path / 'shim'}:{env['PYTHONPATH']}"
    env["PATH"] = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    env["YOLACT_DEPLOY_CACHE"] = str(tmp_path / "cache")
    return env


@pytest.mark.slow  # tests/benchmarks/test_gpu_check.py runs the checks, in one process
def test_dry(tmp_path: Path, environment: dict[str, str]) -> None:
    config = YolactConfig(
        name="small", backbone="resnet50", image_size=128, num_classes=5, top_k=20, max_detections=15,
        num_prototypes=8,
    )  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(replace(config).to_dict()))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "yolact_deploy.benchmarks.gpu.first_run", "--folder", str(out), "--quick"]
    command += ["--config", str(tmp_path / "small.json"), "--golden", str(GOLDEN)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    result = json.loads((out / "first_run.json").read_text())
    steps = {step["name"]: step for step in result["steps"]}
    assert {name: step["status"] for name, step in steps.items()} == {
        "nvidia-smi": "skipped",
        "gpu_check": "passed",
        "compute-sanitizer memcheck": "passed",
        "compute-sanitizer racecheck": "passed",
        "ncu": "skipped",
    }, done.stderr + (out / "gpu_check.txt").read_text()
    assert done.returncode == 0, done.stderr
    assert steps["ncu"]["detail"] == "ncu is not installed"
    checks = {check["name"]: check for check in json.loads((out / "gpu.json").read_text())["checks"]}
    assert {check["status"] for check in checks.values()} <= {"passed", "skipped"}
    for name in ("device", "kernel fast_nms, batch 1", "kernels against the original", "frames 72x40, read in place"):
        assert checks[name]["status"] == "passed", checks[name]
    assert (tmp_path / "sanitized").read_text().count("compute-sanitizer") == 2
    parts = [json.loads(line) for line in (out / "parts").read_text().splitlines()]
    assert [(part["name"], part["status"]) for part in parts] == [("kernels against the original", "passed")] * 2


def test_a_step_that_fails_or_hangs_is_not_the_last(tmp_path: Path) -> None:
    python = sys.executable
    wrong = first_run.Step("wrong", python, 60.0, ("-c", "import sys; print('no such kernel'); sys.exit(9)"))
    hangs = first_run.Step("hangs", python, 1.0, ("-c", "import time; time.sleep(100)"))
    good = first_run.Step("good one", python, 60.0, ("-c", "print('an answer')"))
    results = [first_run.run_step(step, tmp_path) for step in (wrong, hangs, good)]
    assert [result["status"] for result in results] == ["failed", "failed", "passed"]
    assert [result["detail"] for result in results] == [
        "exit code 9: no such kernel",
        "stopped after 1 s",
        "exit code 0",
    ]
    assert (tmp_path / "good_one.txt").read_text() == "an answer\n"
    named = [{"name": "step", **result} for result in results]
    assert len(first_run.problems({"steps": named})) == 2


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(index: int) -> None:
        raise YolactDeployError("no NVIDIA driver here")

    monkeypatch.setattr(first_run, "require_gpu", fail)
    monkeypatch.chdir(tmp_path)
    assert first_run.main([]) == 2
    assert "no NVIDIA driver here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

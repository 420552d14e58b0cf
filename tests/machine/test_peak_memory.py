"""Peak memory: of this process, of GPUs, and how each was found."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_machine import FakeNvml, gpu, memory, write

from yolact_deploy.machine.peak_memory import DeviceMemory, PeakMemoryMeter

MIB = 1 << 20


def status(root: Path, resident_mib: int, high_mib: int) -> None:
    write(
        root, {"proc/self/status": f"Name:\tpython\nVmHWM:\t  {high_mib << 10} kB\nVmRSS:\t  {resident_mib << 10} kB"}
    )


def test_the_kernel_is_asked_and_set_back(tmp_path: Path) -> None:
    status(tmp_path, 300, 900)
    with PeakMemoryMeter(root=tmp_path, nvml=FakeNvml(), modules={}) as meter:
        assert (tmp_path / "proc/self/clear_refs").read_text() == "5"
        status(tmp_path, 310, 420)
    peak = meter.peak
    assert (peak.host_before_mib, peak.host_peak_mib, peak.host_growth_mib) == (300, 420, 120)
    assert (peak.host_method, peak.devices, peak.torch_peak_mib) == ("kernel", (), None)
    assert peak.reasons == ("NVIDIA GPUs: this machine has none",)
    assert json.loads(json.dumps(asdict(peak)))["host_growth_mib"] == 120


@pytest.mark.parametrize("known", [True, False])
def test_samples_where_the_kernel_does_not_serve(tmp_path: Path, known: bool) -> None:
    pytest.importorskip("psutil")
    if known:  # but cannot be set back
        status(tmp_path, 300, 900)
        (tmp_path / "proc/self/clear_refs").mkdir()
    with PeakMemoryMeter(root=tmp_path, nvml=FakeNvml(), modules={}) as meter:
        pass
    assert meter.peak.host_method == "samples"
    assert meter.peak.host_peak_mib >= meter.peak.host_before_mib > 1


def test_memory_of_gpus(tmp_path: Path) -> None:
    status(tmp_path, 300, 300)
    used = iter([100, 700, 250])
    done = threading.Event()

    def told() -> SimpleNamespace:
        value = next(used, None)
        if value is None:
            done.set()
        return memory((250 if value is None else value) * MIB)

    nvml = FakeNvml(gpu("NVIDIA L4", MemoryInfo=told), gpu("Orin", "GPU-b"))
    with PeakMemoryMeter(root=tmp_path, nvml=nvml, modules={}) as meter:
        assert done.wait(60)
    assert meter.peak.devices == (DeviceMemory("GPU 0 (NVIDIA L4)", 100, 700),)
    assert meter.peak.reasons == ("GPU 1 (Orin): does not report its memory",)
    assert nvml.open == 0


class Cuda:
    """As much of torch.cuda as is asked for, with two GPUs."""

    def __init__(self, *, started: bool) -> None:
        self.started = started
        self.was_reset: list[int] = []

    def is_initialized(self) -> bool:
        return self.started

    def device_count(self) -> int:
        return 2

    def reset_peak_memory_stats(self, index: int) -> None:
        self.was_reset.append(index)

    def max_memory_reserved(self, index: int) -> int:
        return (index + 1) * 10 * MIB


@pytest.mark.parametrize("started", [True, False])
def test_torch_on_a_gpu(tmp_path: Path, started: bool) -> None:
    status(tmp_path, 300, 300)
    cuda = Cuda(started=started)
    with PeakMemoryMeter(root=tmp_path, nvml=FakeNvml(), modules={"torch": SimpleNamespace(cuda=cuda)}) as meter:
        cuda.started = True  # loading a model starts it
    assert meter.peak.torch_peak_mib == 30
    assert cuda.was_reset == ([0, 1] if started else [])


def test_torch_on_the_processor_has_no_figure(tmp_path: Path) -> None:
    status(tmp_path, 300, 300)
    modules = {"torch": SimpleNamespace(cuda=Cuda(started=False))}
    with PeakMemoryMeter(root=tmp_path, nvml=FakeNvml(), modules=modules) as meter:
        pass
    assert meter.peak.torch_peak_mib is None


@pytest.mark.parametrize("kernel", [True, False])
def test_memory_that_came_and_went_is_seen(tmp_path: Path, kernel: bool) -> None:
    """In a process of its own: what other tests left behind may be given back meanwhile."""
    pytest.importorskip("psutil")
    code = f"""
import time
from pathlib import Path
import numpy as np
from yolact_deploy.machine.peak_memory import PeakMemoryMeter
root = Path({("/" if kernel else str(tmp_path))!r})
first = np.ones(128 << 17)  # 128 MiB, before: not of the measured part
del first
with PeakMemoryMeter(root=root) as meter:
    block = np.ones(64 << 17)
    for _ in range(25):  # so that on a busy machine the sampler gets its turns too
        time.sleep(0.02)
    del block
print(meter.peak.host_growth_mib, meter.peak.host_method)
"""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    growth, method = done.stdout.split()
    if kernel and method != "kernel":
        pytest.skip("this kernel does not let a process set back its highest memory")
    assert method == ("kernel" if kernel else "samples")
    assert 60 < float(growth) < 110

"""Milliseconds of Python per frame on the GPU path, with a fake driver whose GPU takes no time.

    python tests/runtime/cuda/measure_overhead.py [--frames 2000] [--size 640x480] [--json FILE]

Everything but the driver and the network is real: frames are copied into pinned memory, graphs are launched, waited for
and timed through cuda.bindings, and detections are created from the results of a real frame. Copying the frame is
reported separately, because it depends on the size of the frame and on the memory, not on Python.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import fake_cuda


def measure(frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """Times of each way to use a predictor, in this process with the fake driver."""
    import cuda.bindings
    import numpy as np
    from host_network import CONFIG, HostNetwork, emulate_kernels

    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Device
    from yolact_deploy.runtime.predictor import Predictor

    emulate_kernels()
    device, frame = Device.open(0), np.full((*size, 3), 99, np.uint8)
    config = dataclasses.replace(CONFIG, top_k=100, max_detections=100)
    with Predictor(CudaBackend(HostNetwork(device, config=config), device), score_threshold=0.0) as model:
        for _ in range(6):
            detections = model(frame)
        fake_cuda.control().null()
        results = {
            "call": timed(lambda: model(frame), frames, lambda: model.timings["copy"]),
            "on_device": timed(lambda: model.on_device(frame), frames, lambda: 0.0),
        }
        results["stream"] = timed_stream(model, frame, frames)
        fake_cuda.control().null(False)
    return {
        "frames": frames,
        "frame": f"{size[1]}x{size[0]}",
        "detections": len(detections),
        "ms_per_frame": results,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cuda_bindings": cuda.bindings.__version__,
        "machine": machine(),
    }


def timed(way: Callable[[], Any], frames: int, copy: Callable[[], float]) -> dict[str, float]:
    """Percentiles of a call, and of its Python alone: the rest after subtracting ``copy`` of the frame."""
    way()
    gc.collect()
    spent, python = [], []
    for _ in range(frames):
        start = time.perf_counter()
        way()
        spent.append((time.perf_counter() - start) * 1e3)
        python.append(spent[-1] - copy())
    return {**percentiles("all", spent), **percentiles("python", python)}


def timed_stream(model: Any, frame: Any, frames: int) -> dict[str, float]:
    """The same for overlapping frames."""
    start, spent, python = time.perf_counter(), [], []
    for _ in model.stream(frame for _ in range(frames)):
        now = time.perf_counter()
        spent.append((now - start) * 1e3)
        python.append(spent[-1] - model.timings["copy"])
        start = now
    return {**percentiles("all", spent), **percentiles("python", python)}


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    return {f"{name}_p50": round(cuts[49], 4), f"{name}_p99": round(cuts[98], 4)}


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--size", default="640x480", help="width x height of the frames")
    parser.add_argument("--json", type=Path, help="write the result there as well")
    options = parser.parse_args()
    if "FAKE_CUDA_STRICT" not in os.environ:  # the fake driver must be set up before the process starts
        return subprocess.run([sys.executable, *sys.argv], env=fake_cuda.environment(), check=False).returncode
    width, height = map(int, options.size.split("x"))
    result = measure(options.frames, (height, width))
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

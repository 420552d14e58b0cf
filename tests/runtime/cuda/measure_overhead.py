"""What a frame costs on the GPU path besides the GPU: calls of the driver, and milliseconds of Python.

The driver is the fake one of the tests, whose GPU takes no time.

    python tests/runtime/cuda/measure_overhead.py [--frames 2000] [--size 640x480] [--json FILE]

Everything but the driver and the network is real: frames are copied into pinned memory, graphs are launched, waited for
and timed through cuda.bindings, and detections are created from the results of a real frame. "python" leaves out
copying the frame into pinned memory and the packed masks out of it, which depend on their sizes and on the memory. On a
machine where other programs run, the minimum says more than the median.

The counts are those of one frame in the steady state: nodes of the graphs that it launches, calls of the driver, and,
without graphs, the launches, copies and marks that the graphs hold. The network is one node.
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
from unittest import mock

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
            "call": timed(lambda: model(frame), frames, lambda: copies(model)),
            "on_device": timed(lambda: model.on_device(frame), frames, lambda: 0.0),
        }
        results["stream"] = timed_stream(model, frame, frames)
        fake_cuda.control().null(False)
    return {
        "counts": {
            "one by one": counted(device, config, frame, overlap=False),
            "overlapping": counted(device, config, frame, overlap=True),
        },
        "frames": frames,
        "frame": f"{size[1]}x{size[0]}",
        "detections": len(detections),
        "ms_per_frame": results,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cuda_bindings": cuda.bindings.__version__,
        "machine": machine(),
    }


#: calls of the driver by what they are, with the names of the fake driver
CALLS = {
    "graph launches": ("cuGraphLaunch",),
    "kernel launches": ("cuLaunchKernel",),
    "copies": ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync"),
    "records of events": ("cuEventRecord", "cuEventRecordWithFlags"),
    "waits of streams": ("cuStreamWaitEvent",),
    "waits of the host": ("cuEventSynchronize", "cuStreamSynchronize"),
}


def counted(device: Any, config: Any, frame: Any, *, overlap: bool, frames: int = 20) -> dict[str, dict[str, float]]:
    """Nodes and calls of one frame, with graphs and without."""
    from host_network import HostNetwork

    from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
    from yolact_deploy.runtime.cuda.driver import Graph
    from yolact_deploy.runtime.predictor import Predictor

    counts, control, launch = {}, fake_cuda.control(), Graph.launch
    for graphs in (True, False):
        nodes = 0

        def noted(graph: Any, stream: Any) -> None:
            nonlocal nodes
            nodes += graph.nodes
            launch(graph, stream)

        with Predictor(CudaBackend(HostNetwork(device, config=config), device, graphs=graphs)) as model:
            run = (lambda n: model([frame] * n)) if overlap else (lambda n: [model(frame) for _ in range(n)])
            run(8)
            control.reset_calls()
            with mock.patch.object(Graph, "launch", noted):
                run(frames)
            calls = {name: sum(map(control.calls, names)) / frames for name, names in CALLS.items()}
        counts["with graphs" if graphs else "without graphs"] = {"nodes of graphs": nodes / frames, **calls}
    return counts


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
        python.append(spent[-1] - copies(model))
        start = now
    return {**percentiles("all", spent), **percentiles("python", python)}


def copies(model: Any) -> float:
    """Milliseconds that the last call spent on copying pixels and masks."""
    return float(model.timings["copy"] + model.timings.get("read", 0.0))


def percentiles(name: str, values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=100)
    ends = {f"{name}_min": round(min(values), 4), f"{name}_p50": round(cuts[49], 4)}
    return {**ends, f"{name}_p99": round(cuts[98], 4)}


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

"""Measured limits of a device: the rate of matrix products by precision, and the bandwidth of copies.

The performance of kernels and networks is reported as a share of these limits, not of a data sheet's figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from yolact_deploy.benchmarks.limits import MachineLimits
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.machine.nvidia import parse_device
from yolact_deploy.runtime.cuda.driver import Device

#: bytes of the largest copy within device memory, far more than any cache holds, and from and to the host
_COPY_BYTES, _HOST_BYTES = 1 << 30, 1 << 28
_REPEATS = 7
_MATRIX_SIDE = 8192


def machine_limits(device: str = "cpu") -> MachineLimits:
    """Measure a device, in a few seconds; other work on it at the same time lowers the result.

    Args:
        device: "cpu", "cuda" or "cuda:N"

    Raises:
        InputError: another device.
        BackendError: no such GPU, or a product is wrong.
    """
    index = parse_device(device)
    if index is None:
        from yolact_deploy.benchmarks.cpu_roofline import cpu_limits

        return cpu_limits()
    bandwidth = gpu_copy_bandwidth(Device.open(index))["device_bytes_per_s"]
    try:
        operations = gpu_matrix_rate(index)
    except (MissingDependencyError, ImportError):
        operations = {}  # without torch, only the bandwidth is known
    rates = {name.removesuffix("_operations_per_s"): rate / 2e9 for name, rate in operations.items()}
    return MachineLimits(f"cuda:{index}", rates, dict.fromkeys(rates, "torch"), bandwidth)


def gpu_copy_bandwidth(device: Device) -> dict[str, float]:
    """Bytes/s within device memory (read plus written), from and to pinned host memory."""
    device.use()
    stream = device.stream()
    free, _ = device.memory()
    size = max(min(_COPY_BYTES, free // 4) & ~255, 256)
    host_size = min(_HOST_BYTES, size)
    source, target = device.allocate(size, "roofline"), device.allocate(size, "roofline")
    pinned = device.pinned(host_size, "roofline")

    def rate(moved: int, enqueue: Callable[[], None]) -> float:
        start, end = device.event(), device.event()
        rounds = []
        for _ in range(_REPEATS + 1):
            stream.record(start)
            enqueue()
            stream.record(end)
            end.synchronize()
            rounds.append(end.elapsed_since(start) / 1e3)
        return moved / max(statistics.median(rounds[1:]), 1e-9)

    try:
        return {
            "device_bytes_per_s": rate(2 * size, lambda: stream.copy(target.pointer, source.pointer, size)),
            "upload_bytes_per_s": rate(
                host_size, lambda: stream.upload(target.pointer, pinned.host_pointer, host_size)
            ),
            "download_bytes_per_s": rate(
                host_size, lambda: stream.download(pinned.host_pointer, source.pointer, host_size)
            ),
        }
    finally:
        for closed in (source, target, pinned):
            closed.free()
        stream.close()


def gpu_matrix_rate(index: int) -> dict[str, float]:
    """Operations/s (a multiply-add is two) of square matrix products in PyTorch, by precision; needs torch."""
    import torch

    device = torch.device("cuda", index)
    event: Any = torch.cuda.Event
    rates = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        side = _MATRIX_SIDE if name != "fp32" else _MATRIX_SIDE // 2
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        start, end = (event(enable_timing=True) for _ in range(2))
        rounds: list[float] = []
        for _ in range(_REPEATS + 2):
            start.record()
            a @ b
            end.record()
            end.synchronize()
            rounds.append(start.elapsed_time(end) / 1e3)
        rates[f"{name}_operations_per_s"] = 2.0 * side**3 / statistics.median(rounds[2:])
    return rates

"""The limits of a GPU, measured: how fast it copies, and how fast it multiplies matrices.

What a kernel or a network reaches is told as a share of these, not of a data sheet's figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from yolact_deploy.runtime.cuda.driver import Device, Stream

#: bytes of the largest copy; far more than any cache holds
_COPY_BYTES = 1 << 30
_HOST_BYTES = 1 << 28
_REPEATS = 7
_MATRIX_SIDE = 8192


def copy_bandwidth(device: Device) -> dict[str, float]:
    """Bytes/s within device memory (read and written bytes both count), from and to pinned host memory."""
    device.use()
    stream = device.stream()
    free, _ = device.memory()
    size = max(min(_COPY_BYTES, free // 4) & ~255, 256)
    host_size = min(_HOST_BYTES, size)
    source, target = device.allocate(size, "roofline"), device.allocate(size, "roofline")
    pinned = device.pinned(host_size, "roofline")
    try:
        return {
            "device_bytes_per_s": 2
            * size
            / _seconds(stream, lambda: stream.copy(target.pointer, source.pointer, size)),
            "upload_bytes_per_s": host_size
            / _seconds(stream, lambda: stream.upload(target.pointer, pinned.host_pointer, host_size)),
            "download_bytes_per_s": host_size
            / _seconds(stream, lambda: stream.download(pinned.host_pointer, source.pointer, host_size)),
        }
    finally:
        source.free()
        target.free()
        pinned.free()
        stream.close()


def _seconds(stream: Stream, enqueue: Callable[[], None]) -> float:
    start, end = stream.device.event(), stream.device.event()
    rounds = []
    for _ in range(_REPEATS + 1):
        stream.record(start)
        enqueue()
        stream.record(end)
        end.synchronize()
        rounds.append(end.elapsed_since(start) / 1e3)
    return max(statistics.median(rounds[1:]), 1e-9)


def matrix_rate(index: int) -> dict[str, float]:
    """Operations/s (a multiply-add is two) of square matrix products in PyTorch, by precision; needs torch."""
    import torch

    device = torch.device("cuda", index)
    rates = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        side = _MATRIX_SIDE if name != "fp32" else _MATRIX_SIDE // 2
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        rates[f"{name}_operations_per_s"] = 2.0 * side**3 / _matrix_seconds(torch, a, b)
    return rates


def _matrix_seconds(torch: Any, a: Any, b: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    rounds: list[float] = []
    for _ in range(_REPEATS + 2):
        start.record()
        a @ b
        end.record()
        end.synchronize()
        rounds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(rounds[2:])

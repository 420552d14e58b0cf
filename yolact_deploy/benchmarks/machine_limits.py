"""The limits of a device, measured: of this CPU or of a GPU."""

from __future__ import annotations

from yolact_deploy.benchmarks.limits import MachineLimits
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.machine.nvidia import parse_device


def machine_limits(device: str = "cpu") -> MachineLimits:
    """Measure a device, in a few seconds; other work on it at the same time makes the limits too low.

    Args:
        device: "cpu", "cuda" or "cuda:N"

    Raises:
        InputError: another device.
        BackendError: a GPU that is not there, or products that come out wrong.
    """
    index = parse_device(device)
    if index is None:
        from yolact_deploy.benchmarks.cpu_roofline import cpu_limits

        return cpu_limits()
    return _gpu_limits(index)


def _gpu_limits(index: int) -> MachineLimits:
    from yolact_deploy.benchmarks import roofline as gpu
    from yolact_deploy.runtime.cuda.driver import Device

    bandwidth = gpu.copy_bandwidth(Device.open(index))["device_bytes_per_s"]
    try:
        operations = gpu.matrix_rate(index)
    except (MissingDependencyError, ImportError):
        operations = {}  # without torch, the bandwidth is all that is known
    rates = {name.removesuffix("_operations_per_s"): rate / 2e9 for name, rate in operations.items()}
    return MachineLimits(f"cuda:{index}", rates, dict.fromkeys(rates, "torch"), bandwidth)

"""GPU names, clocks, temperatures, energy and throttling from NVIDIA's management library (NVML).

Uses the package nvidia-ml-py, which needs no CUDA and creates no context. Values that a GPU, a driver or an older
version of the package does not report are None. A MIG slice shows as the whole GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from yolact_deploy.errors import MissingDependencyError, import_optional
from yolact_deploy.machine.sysfiles import ROOT, read_text

#: bits of nvmlClocksEventReasons (nvml.h) that mean throttling; not: idle, or set by the user
_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
}
#: nvmlPerfPolicyType_t: limits with a counter of the time that they held the clock down
_POLICIES = {"power": 0, "thermal": 1, "board limit": 3, "reliability": 5}
_NO_GPU = "NVIDIA GPUs: this machine has none"
#: vendor id on the PCI bus
_NVIDIA = "0x10de"
_CLOCK_SM, _CLOCK_MEMORY, _TEMPERATURE_GPU = 1, 2, 0


class NvmlGpu:
    """One GPU; ``index`` is its number among the GPUs that this process may use."""

    def __init__(self, module: Any, handle: Any, index: int) -> None:
        self._module, self._handle, self.index = module, handle, index
        self.model = str(self._ask("nvmlDeviceGetName") or "GPU")

    @property
    def name(self) -> str:
        return f"GPU {self.index} ({self.model})"

    def millijoules(self) -> int | None:
        """Energy since the driver was loaded; Volta and later."""
        return self._number("nvmlDeviceGetTotalEnergyConsumption")

    def clock_mhz(self) -> int | None:
        return self._number("nvmlDeviceGetClockInfo", _CLOCK_SM)

    def memory_clock_mhz(self) -> int | None:
        return self._number("nvmlDeviceGetClockInfo", _CLOCK_MEMORY)

    def max_clock_mhz(self) -> int | None:
        return self._number("nvmlDeviceGetMaxClockInfo", _CLOCK_SM)

    def temperature_c(self) -> int | None:
        # CUDA 14 drops the older call; older drivers do not have the newer one.
        degrees = self._number("nvmlDeviceGetTemperature", _TEMPERATURE_GPU)
        return self._number("nvmlDeviceGetTemperatureV", _TEMPERATURE_GPU) if degrees is None else degrees

    def power_limit_w(self) -> float | None:
        milliwatts = self._number("nvmlDeviceGetEnforcedPowerLimit")
        return None if milliwatts is None else milliwatts / 1e3

    def memory(self) -> tuple[int, int] | None:
        """Bytes used by all processes, and total bytes."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else (int(memory.used), int(memory.total))

    def capability(self) -> tuple[int, int] | None:
        capability = self._ask("nvmlDeviceGetCudaComputeCapability")
        return None if capability is None else (capability[0], capability[1])

    def throttle_reasons(self) -> tuple[str, ...]:
        """What holds the clock down now."""
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # its older name
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return tuple(text for bit, text in _REASONS.items() if (bits or 0) & bit)

    def throttled_seconds(self) -> dict[str, float]:
        """Time since the driver was loaded that each limit held the clock down, for the limits that are counted."""
        statuses = {name: self._ask("nvmlDeviceGetViolationStatus", policy) for name, policy in _POLICIES.items()}
        return {name: status.violationTime / 1e9 for name, status in statuses.items() if status is not None}

    def processes(self) -> frozenset[int] | None:
        """Ids of the processes that compute on the GPU; in a container they may differ from its own ids."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if processes is None else frozenset(process.pid for process in processes)

    def _number(self, function: str, *arguments: int) -> int | None:
        value = self._ask(function, *arguments)
        return None if value is None else int(value)

    def _ask(self, function: str, *arguments: int) -> Any:
        with contextlib.suppress(AttributeError, self._module.NVMLError):
            return getattr(self._module, function)(self._handle, *arguments)
        return None


class Nvml:
    """The GPUs that this process may use, until closed. Without NVML there are none, and ``reason`` says why.

    Args:
        module: replaces the module ``pynvml`` in tests
        variables: environment; ``CUDA_VISIBLE_DEVICES`` selects GPUs
        root: replaces / in tests
    """

    def __init__(self, module: Any = None, variables: Mapping[str, str] = os.environ, *, root: Path = ROOT) -> None:
        self.gpus: tuple[NvmlGpu, ...] = ()
        self.driver: str | None = None
        self.reason = ""
        self._module = None
        try:
            module = module or import_optional("pynvml", "bench", "Reading energy and clocks of NVIDIA GPUs")
        except MissingDependencyError as error:
            self.reason = f"NVIDIA GPUs: {error}" if may_have_gpu(root) else _NO_GPU
            return
        try:
            module.nvmlInit()
        except module.NVMLError as error:
            failed = f"NVIDIA GPUs: NVML does not start ({error}): if there is a GPU, check it with nvidia-smi"
            self.reason = failed if may_have_gpu(root) else _NO_GPU
            return
        self._module = module
        with contextlib.suppress(module.NVMLError):
            self.driver = str(module.nvmlSystemGetDriverVersion())
        try:
            handles = [module.nvmlDeviceGetHandleByIndex(i) for i in range(module.nvmlDeviceGetCount())]
            uuids = [str(module.nvmlDeviceGetUUID(handle)) for handle in handles]
            models = [str(module.nvmlDeviceGetName(handle)) for handle in handles]
        except module.NVMLError as error:
            self.reason = f"NVIDIA GPUs: NVML cannot list them ({error}): check them with nvidia-smi"
            return
        chosen = visible(uuids, models, variables)
        self.gpus = tuple(NvmlGpu(module, handles[number], index) for index, number in enumerate(chosen))
        if not self.gpus:
            self.reason = "NVIDIA GPUs: this process may use none (CUDA_VISIBLE_DEVICES)" if handles else _NO_GPU

    def __enter__(self) -> Nvml:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._module is not None:
            with contextlib.suppress(self._module.NVMLError):
                self._module.nvmlShutdown()
            self._module = None


def may_have_gpu(root: Path = ROOT) -> bool:
    """False if Linux lists no NVIDIA device on the PCI bus and there is no sign of a driver.

    GPUs of Jetsons are not on that bus, and those of WSL are behind a device of their own.
    """
    drivers = ("proc/driver/nvidia", "dev/nvidiactl", "dev/nvhost-gpu", "dev/nvgpu", "dev/dxg", "etc/nv_tegra_release")
    if any((root / path).exists() for path in drivers) or not (root / "proc/self").exists():
        return True
    return any(read_text(path) == _NVIDIA for path in (root / "sys/bus/pci/devices").glob("*/vendor"))


def visible(uuids: Sequence[str], models: Sequence[str], variables: Mapping[str, str]) -> list[int]:
    """NVML's numbers of the GPUs that CUDA shows to this process, in CUDA's order.

    By default CUDA orders different GPUs by speed, NVML by bus position. If a number is ambiguous, or for MIG slices,
    all GPUs are returned.

    >>> visible(["GPU-a", "GPU-b"], ["T4", "T4"], {"CUDA_VISIBLE_DEVICES": "1"})
    [1]
    """
    everything = list(range(len(uuids)))
    wanted = variables.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return everything
    same_order = len(set(models)) <= 1 or variables.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    chosen: list[int] = []
    for entry in (entry.strip() for entry in wanted.split(",")):
        if entry.startswith("MIG") or (entry.isdigit() and not same_order):
            return everything
        if entry.isdigit() and int(entry) < len(uuids):
            chosen.append(int(entry))
        elif entry.startswith("GPU-") and (matching := [i for i in everything if uuids[i].startswith(entry)]):
            chosen += matching[:1]
        else:  # CUDA ignores everything from the first invalid entry on
            break
    return chosen

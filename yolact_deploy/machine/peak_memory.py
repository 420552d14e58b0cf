"""Peak memory of a piece of work, of this process and of the GPUs.

The Linux kernel records the peak of resident memory, which is reset at the start, so nothing runs beside the work. On
other systems memory is sampled. GPU memory can only be sampled.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from yolact_deploy.errors import import_optional
from yolact_deploy.machine.nvml import Nvml
from yolact_deploy.machine.sysfiles import ROOT, first_line_int

_MEBIBYTE = 1 << 20
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one GPU in MiB, used by all processes: before the work, and the peak during it."""

    name: str
    before_mib: float
    peak_mib: float


@dataclass(frozen=True)
class PeakMemory:
    """Memory in MiB.

    Attributes:
        host_before_mib: resident memory of this process at the start
        host_peak_mib: its peak during the work
        host_method: "kernel" (exact) or "samples"
        devices: GPUs, sampled; empty without NVML
        torch_peak_mib: peak of torch's allocator over the GPUs; None without torch on a GPU
        reasons: why there are no figures for GPUs
        host_growth_mib: peak minus start
    """

    host_before_mib: float
    host_peak_mib: float
    host_method: str
    devices: tuple[DeviceMemory, ...]
    torch_peak_mib: float | None
    reasons: tuple[str, ...]
    host_growth_mib: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "host_growth_mib", self.host_peak_mib - self.host_before_mib)


class PeakMemoryMeter:
    """Records the peak memory of a ``with`` block; ``peak`` is set afterwards. Do not nest blocks.

    Args:
        root: replaces / in tests
        nvml: replaces the module ``pynvml`` in tests
        modules: loaded modules; torch's allocator is queried

    Raises:
        MissingDependencyError: psutil is missing and the kernel records no peak; raised by ``__enter__``.
    """

    peak: PeakMemory

    def __init__(self, *, root: Path = ROOT, nvml: Any = None, modules: Mapping[str, Any] = sys.modules) -> None:
        self._root, self._module, self._modules = root, nvml, modules
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="yolact-peak-memory", daemon=True)

    def __enter__(self) -> PeakMemoryMeter:
        gc.collect()
        self._nvml = Nvml(self._module, root=self._root)
        self._kernel = self._reset()
        # psutil comes with an extra, so it is imported only if needed.
        self._process = None if self._kernel else import_optional("psutil", "bench", "Measuring memory").Process()
        if (cuda := self._cuda()) is not None:
            for index in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(index)
        self._host_before = self._host_peak = self._resident()
        self._before = self._used()
        self._highest = dict(self._before)
        if self._before or not self._kernel:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sample()
        high = first_line_int(self._status, "VmHWM") if self._kernel else None
        silent = [f"{gpu.name}: does not report its memory" for gpu in self._nvml.gpus if gpu.name not in self._before]
        cuda = self._cuda()
        self.peak = PeakMemory(
            host_before_mib=self._host_before / _MEBIBYTE,
            host_peak_mib=(high * 1024 if high is not None else self._host_peak) / _MEBIBYTE,
            host_method="kernel" if high is not None else "samples",
            devices=tuple(
                DeviceMemory(name, used / _MEBIBYTE, self._highest[name] / _MEBIBYTE)
                for name, used in self._before.items()
            ),
            torch_peak_mib=None
            if cuda is None
            else sum(cuda.max_memory_reserved(i) for i in range(cuda.device_count())) / _MEBIBYTE,
            reasons=tuple(silent) or ((self._nvml.reason,) if self._nvml.reason else ()),
        )
        self._nvml.close()

    @property
    def _status(self) -> Path:
        return self._root / "proc/self/status"

    def _reset(self) -> bool:
        """Reset the peak that the kernel records; False if it cannot."""
        if first_line_int(self._status, "VmHWM") is None or first_line_int(self._status, "VmRSS") is None:
            return False
        try:
            (self._root / "proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def _resident(self) -> int:
        if self._process is not None:
            return int(self._process.memory_info().rss)
        return (first_line_int(self._status, "VmRSS") or 0) * 1024

    def _used(self) -> dict[str, int]:
        return {gpu.name: memory[0] for gpu in self._nvml.gpus if (memory := gpu.memory()) is not None}

    def _cuda(self) -> Any:
        """``torch.cuda``, if this process uses it."""
        cuda = getattr(self._modules.get("torch"), "cuda", None)
        return cuda if cuda is not None and cuda.is_initialized() else None

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._host_peak = max(self._host_peak, self._resident())
        for name, used in self._used().items():
            self._highest[name] = max(self._highest.get(name, 0), used)

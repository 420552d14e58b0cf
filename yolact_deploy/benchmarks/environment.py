"""What a measurement was taken on: machine and versions, without names or paths that would tell whose machine it is."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yolact_deploy

#: distributions of each part; the first that is installed tells the version
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"),
    "pycocotools": ("pycocotools",),
}
#: instruction sets that decide how fast a CPU runs networks
_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
)


def environment() -> dict[str, Any]:
    """A JSON-ready description of this machine and what is installed; nothing of it is imported."""
    cpuinfo = _read(Path("/proc/cpuinfo"))
    return {
        "cpu": _cpu_model(cpuinfo),
        "cpu_instructions": _instructions(cpuinfo),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "os": _os(),
        "python": platform.python_version(),
        "versions": {name: found for name, names in _DISTRIBUTIONS.items() if (found := _version(names))},
        "yolact_deploy": yolact_deploy.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_model(cpuinfo: str) -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _instructions(cpuinfo: str) -> list[str]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [name for name in _INSTRUCTIONS if name in flags]


def _cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)
    except (AttributeError, ValueError, OSError):
        return None


def _os() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, {platform.system()} {platform.release()}, {platform.machine()}"


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

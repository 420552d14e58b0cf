"""What the CPU is, as Linux tells it."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_info() -> tuple[str, frozenset[str]]:
    """Name and instruction sets, as in ``/proc/cpuinfo``; empty where they are not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", frozenset()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return values.get("model name", ""), frozenset(values.get("flags", "").split())


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")

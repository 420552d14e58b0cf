"""Name and instruction sets of the CPU, as Linux reports them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from yolact_deploy.machine.sysfiles import ROOT, read_text

#: instruction sets that decide how fast a CPU runs networks
INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd",
)  # fmt: skip
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8"})


def cpu_info(root: Path = ROOT) -> tuple[str, frozenset[str]]:
    """Name and flags from ``/proc/cpuinfo``; without it, the name from Python and no flags."""
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    board = (read_text(root / "proc/device-tree/model") or "").strip("\0")  # cpuinfo of a Jetson has no model name
    model = name[1].strip() if name else board or platform.processor() or platform.machine()
    return model, frozenset(flags[1].split() if flags else ())


def instructions(root: Path = ROOT) -> list[str]:
    """The :data:`INSTRUCTIONS` that this CPU has."""
    flags = cpu_info(root)[1]
    return [name for name in INSTRUCTIONS if name in flags]


def multiplies_bytes() -> bool:
    """Whether an x86 CPU adds products of bytes in 32 bits (VNNI); without it they overflow in 16 bits."""
    return not _VNNI.isdisjoint(cpu_info()[1])


def overflows_bytes() -> bool:
    """Whether this CPU's kernels for bytes overflow, so that INT8 files have to compute in FP32 between Q and DQ."""
    return is_x86() and not multiplies_bytes()


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")

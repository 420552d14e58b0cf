"""The environment of a measurement: machine, versions, settings and code, without names or paths that identify a user.

GPU serial numbers, host names and branches are left out; `commit` and `code_sha256` identify the code that ran.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolact_deploy.machine import cpu_state
from yolact_deploy.machine.cpu import cpu_info, instructions
from yolact_deploy.machine.nvidia import find_jetson
from yolact_deploy.machine.nvml import Nvml, NvmlGpu
from yolact_deploy.machine.sysfiles import ROOT, read_text
from yolact_deploy.version import __version__

#: distributions of each part; the first that is installed gives the version
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "litert": ("ai-edge-litert",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"),
    "cudnn": ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    "cuda_bindings": ("cuda-bindings",),
    "nvidia_ml_py": ("nvidia-ml-py",),
    "onnx": ("onnx",),
    "pycocotools": ("pycocotools",),
    "faster_coco_eval": ("faster-coco-eval",),
    "loadgen": ("mlcommons-loadgen",),
}
#: variables that decide how many threads the runtimes start, where they run and which instructions they use
_SETTINGS = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "OMP_DYNAMIC", "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "MKL_DYNAMIC", "OPENBLAS_NUM_THREADS", "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "CUDA_MODULE_LOADING",
)  # fmt: skip
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def environment(
    *, root: Path = ROOT, nvml: Any = None, variables: Mapping[str, str] = os.environ, package: Path | None = None
) -> dict[str, Any]:
    """A JSON-ready description of this machine and its software; imports none of the runtimes.

    Unknown values are left out: ``gpus`` and ``driver`` without NVML, ``governor`` in most virtual machines, ``commit``
    if the package does not run from its checkout.

    Args:
        root: replaces / in tests
        nvml: replaces the module ``pynvml`` in tests
        variables: environment variables
        package: the folder of this package
    """
    package = package or Path(__file__).resolve().parents[1]
    facts = {
        "cpu": cpu_info(root)[0],
        "cpu_instructions": instructions(root),
        "cores": cpu_state.usable_cores(),
        "memory_gib": _memory_gib(),
        **_gpus(nvml, variables),
        **_jetson(root),
        "governor": cpu_state.governor(root),
        "turbo": cpu_state.turbo(root),
        "cpu_quota": cpu_state.quota(root).cores,
        "threads": _threads(variables),
        "os": _os(),
        "python": platform.python_version(),
        "versions": {name: text for name, names in _DISTRIBUTIONS.items() if (text := _version(names))},
        "yolact_deploy": __version__,
        "commit": commit(package.parent),
        "code_sha256": code_sha256(package),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    optional = ("governor", "turbo", "cpu_quota", "commit")
    return {name: value for name, value in facts.items() if value is not None or name not in optional}


def commit(checkout: Path) -> str | None:
    """The commit of a checkout, read from git's files; None if the folder is not a checkout.

    Uncommitted changes do not show here; compare :func:`code_sha256`.
    """
    git = checkout / ".git"
    if git.is_file():  # a worktree or submodule
        git = checkout / (read_text(git) or "").removeprefix("gitdir:").strip()
    head = read_text(git / "HEAD") or ""
    if not head.startswith("ref:"):
        return head if _COMMIT.fullmatch(head) else None
    name = head.removeprefix("ref:").strip()
    common = git / (read_text(git / "commondir") or ".")  # branches of worktrees are in the main one
    for folder in (git, common):
        value = read_text(folder / name)
        if value and _COMMIT.fullmatch(value):
            return value
    for line in (read_text(common / "packed-refs") or "").splitlines():
        value, _, packed = line.partition(" ")
        if packed == name and _COMMIT.fullmatch(value):
            return value
    return None


def code_sha256(package: Path) -> str:
    """One hash over all Python and CUDA sources of a package; it shows uncommitted changes."""
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".cu", ".cuh", ".h", ".cpp")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _gpus(module: Any, variables: Mapping[str, str]) -> dict[str, Any]:
    """GPUs that this process may use and their driver; empty without GPUs or NVML."""
    with Nvml(module, variables) as nvml:
        gpus = [_gpu(gpu) for gpu in nvml.gpus]
        return {"gpus": gpus, "driver": nvml.driver} if gpus else {}


def _gpu(gpu: NvmlGpu) -> dict[str, Any]:
    memory, capability = gpu.memory(), gpu.capability()
    return {
        "name": gpu.model,
        "memory_gib": round(memory[1] / (1 << 30), 1) if memory else None,
        "capability": f"{capability[0]}.{capability[1]}" if capability else None,
        "max_clock_mhz": gpu.max_clock_mhz(),
        "power_limit_w": gpu.power_limit_w(),
    }


def _jetson(root: Path) -> dict[str, str]:
    jetson = find_jetson(root / "etc/nv_tegra_release")
    return {} if jetson is None else dataclasses.asdict(jetson)


def _threads(variables: Mapping[str, str]) -> dict[str, Any]:
    """Settings in the environment, and the thread counts of loaded libraries."""
    settings: dict[str, Any] = {name: variables[name] for name in _SETTINGS if name in variables}
    torch, cv2 = sys.modules.get("torch"), sys.modules.get("cv2")
    if torch is not None:
        settings["torch"] = torch.get_num_threads()
    if cv2 is not None:
        settings["opencv"] = cv2.getNumThreads()
    return settings


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

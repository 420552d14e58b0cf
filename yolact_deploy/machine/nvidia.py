"""NVIDIA driver, GPUs and JetPack of this machine, queried from the driver alone.

It uses ctypes, so nothing needs to be installed. Each backend checks here before it loads a library that would fail
late or end the process. Memory, streams and kernels are in `runtime.cuda.driver`.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.untrusted import shown

NO_DRIVER = "no NVIDIA driver here (libcuda.so.1 cannot be loaded)"
DRIVER_CURE = (
    "use a machine with an NVIDIA GPU and its driver; in a container, start it with --gpus all "
    "(on a Jetson with --runtime nvidia)"
)

# CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18

_L4T_RELEASE = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver reports it."""

    index: int
    name: str
    capability: tuple[int, int]
    #: shares memory with the processor (Jetson)
    integrated: bool
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} (compute capability {major}.{minor})"


@dataclass(frozen=True)
class Driver:
    """The driver and its GPUs."""

    cuda_version: tuple[int, int]
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Jetson:
    """System software of a Jetson."""

    l4t: str  #: "36.4.3"
    jetpack: str  #: "6.2", or "6" if the release is unknown
    power_mode: str = ""  #: from ``nvpmodel -q``


def parse_device(text: str) -> int | None:
    """None for "cpu", otherwise the number of the GPU: 0 for "cuda", 1 for "cuda:1".

    Raises:
        InputError: any other text.
    """
    if text == "cpu":
        return None
    name, colon, number = text.partition(":")
    if name == "cuda" and (number.isdecimal() and len(number) < 10 if colon else not number):
        return int(number or 0)
    raise InputError(f"unknown device {shown(text)}: expected cpu, cuda or cuda:N")


def find_driver() -> Driver:
    """Start the driver.

    Raises:
        BackendError: there is no driver, it does not start, or it has no GPU; with the cure.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(f"{NO_DRIVER}: {DRIVER_CURE}") from error
    status = cuda.cuInit(0)
    if status != 0:
        raise BackendError(f"the NVIDIA driver does not start (cuInit gives {status}): check it with nvidia-smi")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_describe(cuda, index) for index in range(count.value))
    if not gpus:
        raise BackendError("the NVIDIA driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return Driver((version.value // 1000, version.value % 1000 // 10), gpus)


def has_gpu() -> bool:
    """Whether the driver starts and sees a GPU."""
    try:
        return bool(find_driver().gpus)
    except BackendError:
        return False


def require_gpu(index: int = 0) -> Gpu:
    """The GPU with this number.

    Raises:
        BackendError: there is no driver or no such GPU.
    """
    gpus = find_driver().gpus
    if index >= len(gpus):
        raise BackendError(f"there is no cuda:{index}: the driver sees {len(gpus)} GPU(s), numbered from 0")
    return gpus[index]


def _describe(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, text, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(text, len(text), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    capability = attribute(_CAPABILITY_MAJOR), attribute(_CAPABILITY_MINOR)
    return Gpu(index, text.value.decode(errors="replace"), capability, bool(attribute(_INTEGRATED)), memory.value)


# -- which TensorRT serves which GPU --------------------------------------------------------------------------------

#: compute capabilities in the support matrices of TensorRT for RTX 1.0 to 1.5; later 12.x are accepted as well
_RTX = ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1))


def tensorrt_flavours(capability: tuple[int, int]) -> list[str]:
    """The kinds of TensorRT whose support matrix lists a compute capability.

    >>> tensorrt_flavours((8, 9))
    ['TensorRT', 'TensorRT for RTX']
    >>> tensorrt_flavours((9, 0))
    ['TensorRT']
    """
    names = []
    if capability >= (7, 5):  # 10.3 supports 7.0 as well, later versions do not
        names.append("TensorRT")
    if capability in _RTX or capability > (12, 1):
        names.append("TensorRT for RTX")
    return names


# -- Jetson ---------------------------------------------------------------------------------------------------------

#: JetPack of L4T releases, from NVIDIA's download pages; for others only the major version is known
_JETPACKS = {"36.3": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "38.2": "7.0", "38.4": "7.1"}
_JETPACK_OF_MAJOR = {"35": "5", "36": "6", "38": "7", "39": "7"}


def find_jetson(release: Path = _L4T_RELEASE) -> Jetson | None:
    """JetPack versions and power mode; None if this is not a Jetson.

    Args:
        release: the file that L4T writes, whose first line is ``# R36 (release), REVISION: 4.3, ...``
    """
    try:
        text = release.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    if not match:
        return None
    l4t = f"{match[1]}.{match[2]}"
    named = _JETPACKS.get(l4t) or _JETPACKS.get(l4t.rpartition(".")[0])
    return Jetson(l4t, named or _JETPACK_OF_MAJOR.get(match[1], "unknown"), _power_mode())


def _power_mode(command: Sequence[str] = ("nvpmodel", "-q")) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"NV Power Mode:\s*(\S+)", done.stdout)
    return match[1] if match else ""

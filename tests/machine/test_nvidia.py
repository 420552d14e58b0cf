"""What the driver and a Jetson tell, over a driver made of Python functions."""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.machine import nvidia
from yolact_deploy.machine.nvidia import find_driver, find_jetson, parse_device, require_gpu, tensorrt_flavours


class ScriptedDriver:
    """The nine calls of libcuda that are used, by the C signatures of cuda.h."""

    def __init__(self, gpus: list[tuple[str, int, int, bool, int]], *, status: int = 0) -> None:
        self.gpus, self.status = gpus, status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.status

    def cuDriverGetVersion(self, out: Any) -> int:  # noqa: N802
        out._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, out: Any) -> int:  # noqa: N802
        out._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, out: Any, ordinal: int) -> int:  # noqa: N802
        out._obj.value = 100 + ordinal  # a handle need not be the ordinal
        return 0

    def cuDeviceGetName(self, text: Any, length: int, device: Any) -> int:  # noqa: N802
        assert length == 256
        text.value = self.gpus[device.value - 100][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: Any) -> int:  # noqa: N802
        assert isinstance(out._obj, ctypes.c_size_t)
        out._obj.value = self.gpus[device.value - 100][4]
        return 0

    def cuDeviceGetAttribute(self, out: Any, number: int, device: Any) -> int:  # noqa: N802
        _, major, minor, integrated, _ = self.gpus[device.value - 100]
        out._obj.value = {75: major, 76: minor, 18: int(integrated)}[number]
        return 0


Install = Callable[..., None]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Install:
    def install(*gpus: tuple[str, int, int, bool, int], status: int = 0) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: ScriptedDriver(list(gpus), status=status))

    return install


H200 = ("NVIDIA H200", 9, 0, False, 150 << 30)
ORIN = ("Orin", 8, 7, True, 8 << 30)


def test_gpus(driver: Install) -> None:
    driver(H200, ORIN)
    found = find_driver()
    assert found.cuda_version == (12, 6)
    assert [str(gpu) for gpu in found.gpus] == [
        "NVIDIA H200 (compute capability 9.0)",
        "Orin (compute capability 8.7)",
    ]
    assert [gpu.memory_bytes for gpu in found.gpus] == [150 << 30, 8 << 30]
    assert [gpu.integrated for gpu in found.gpus] == [False, True]
    assert require_gpu(1).index == 1


def test_what_may_be_wrong(driver: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(H200)
    with pytest.raises(BackendError, match=r"there is no cuda:1: the driver sees 1 GPU\(s\)"):
        require_gpu(1)
    driver(H200, status=803)
    with pytest.raises(BackendError, match=r"does not start \(cuInit gives 803\): check it with nvidia-smi"):
        find_driver()
    driver()
    with pytest.raises(BackendError, match="sees no GPU: check nvidia-smi"):
        find_driver()

    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(
        BackendError, match=r"^no NVIDIA driver here \(libcuda\.so\.1 cannot be loaded\): use a machine"
    ):
        find_driver()


@pytest.mark.parametrize(("text", "index"), [("cpu", None), ("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_devices(text: str, index: int | None) -> None:
    assert parse_device(text) == index


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda1", "cpu:0", "CUDA"])
def test_unknown_devices(text: str) -> None:
    with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
        parse_device(text)


@pytest.mark.parametrize(
    ("capability", "flavours"),
    [
        ((7, 0), []),
        ((7, 5), ["TensorRT", "TensorRT for RTX"]),
        ((8, 0), ["TensorRT"]),
        ((8, 6), ["TensorRT", "TensorRT for RTX"]),
        ((8, 7), ["TensorRT"]),
        ((9, 0), ["TensorRT"]),
        ((11, 0), ["TensorRT"]),
        ((12, 1), ["TensorRT", "TensorRT for RTX"]),
    ],
)
def test_flavours(capability: tuple[int, int], flavours: list[str]) -> None:
    assert tensorrt_flavours(capability) == flavours


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic, EABI: aarch64", "36.3.0", "6.0"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 9.9, GCID: 1, BOARD: generic, EABI: aarch64", "36.9.9", "6"),
        ("# R38 (release), REVISION: 2.1, GCID: 1, BOARD: generic, EABI: aarch64", "38.2.1", "7.0"),
        ("# R99 (release), REVISION: 1.0, GCID: 1, BOARD: generic, EABI: aarch64", "99.1.0", "unknown"),
    ],
)
def test_jetpack(tmp_path: Path, line: str, l4t: str, jetpack: str) -> None:
    path = tmp_path / "nv_tegra_release"
    path.write_text(f"{line}, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n")
    found = find_jetson(path)
    assert found is not None
    assert (found.l4t, found.jetpack) == (l4t, jetpack)


def test_no_jetson(tmp_path: Path) -> None:
    assert find_jetson(tmp_path / "none") is None
    (tmp_path / "other").write_text("hello\n")
    assert find_jetson(tmp_path / "other") is None


def test_power_mode(tmp_path: Path) -> None:
    script = tmp_path / "nvpmodel"
    script.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert nvidia._power_mode((str(script), "-q")) == "MAXN_SUPER"
    script.write_text("#!/bin/sh\necho 'NVPM ERROR'\nexit 1\n")
    assert nvidia._power_mode((str(script), "-q")) == ""
    assert nvidia._power_mode((str(tmp_path / "absent"),)) == ""

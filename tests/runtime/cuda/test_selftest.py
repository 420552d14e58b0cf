"""The kernel self-test of `doctor`: it passes for correct kernels and fails for wrong results."""

from __future__ import annotations

import gc

import fake_cuda as fake
import pytest
from host_network import emulated

from yolact_deploy.errors import BackendError
from yolact_deploy.machine import nvidia
from yolact_deploy.runtime import checks as doctor
from yolact_deploy.runtime.cuda import selftest
from yolact_deploy.runtime.cuda.driver import Device

__all__ = ["emulated"]

pytestmark = [pytest.mark.fake_cuda(devices=2, name="Fake"), pytest.mark.usefixtures("emulated")]


def test_both_gpus() -> None:
    for index in range(2):
        selftest.run_kernels(index)
    gc.collect()
    assert Device.open(1).usage() == {}
    assert fake.control().leaks() == ""


def test_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_SCORES", selftest._SCORES[::-1].copy())
    with pytest.raises(BackendError, match=r"the Fast NMS kernel gives \d detections"):
        selftest.run_kernels()


def test_doctor() -> None:
    """`find_driver` uses ctypes, the self-test cuda-python."""
    assert [gpu.index for gpu in nvidia.find_driver().gpus] == [0, 1]
    check = doctor.try_here("CUDA kernels")
    assert check.works, check
    assert check.detail.startswith("Fast NMS runs on ")
    assert doctor.try_here("NVIDIA driver").works

"""Starting and leaving the driver: machines without a driver, old drivers, forks, and exit."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import fake_cuda
import pytest
from few import few

from yolact_deploy.errors import BackendError, MissingDependencyError
from yolact_deploy.runtime.cuda.driver import Device, calls

needs_fake = pytest.mark.skipif(bool(fake_cuda.why_not()), reason=fake_cuda.why_not() or "-")

OPEN = """
from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Device
try:
    print(Device.open(0))
except BackendError as error:
    print(error)
"""


def has_driver() -> bool:
    try:
        ctypes.CDLL(calls.LIBRARY)
    except OSError:
        return False
    return True


def answer(code: str, **settings: Any) -> str:
    done = fake_cuda.run_python(code, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.mark.skipif(has_driver(), reason="there is a driver here")
def test_no_driver() -> None:
    pytest.importorskip("cuda.bindings.driver")
    with pytest.raises(BackendError, match=r"no NVIDIA driver here \(libcuda.so.1 cannot be loaded\).*--gpus all"):
        Device.open()


def test_no_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    monkeypatch.setattr(calls, "_bindings", None)
    with pytest.raises(MissingDependencyError, match=r"Using the GPU needs.*'cuda'.*yolact-deploy\[cuda\]"):
        Device.open()


@needs_fake
def test_a_device() -> None:
    assert answer(OPEN, name="Orin") == "<cuda:0 Orin>"
    code = "from yolact_deploy.runtime.cuda.driver import Device\nprint(Device.open().integrated)"
    assert answer(code, integrated=True) == "True"


@needs_fake
def test_no_gpu() -> None:
    assert "cuInit failed with CUDA_ERROR_NO_DEVICE" in answer(OPEN, devices=0)
    assert "CUDA_VISIBLE_DEVICES" in answer(OPEN, devices=0)


@needs_fake
def test_a_driver_that_does_not_start() -> None:
    text = answer(OPEN, fail="cuInit:1:803")
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in text
    assert "restart the machine" in text


@needs_fake
def test_an_unknown_error_code() -> None:
    for function in ("cuInit", "cuDeviceGetCount"):
        text = answer(OPEN, fail=f"{function}:1:12345")
        assert text.startswith(
            f"{function} failed, and cuda-python does not know its code (12345 is not a valid CUresult"
        )


KEY_ERROR = """
from cuda.bindings import driver
original = driver.{function}
def call(*arguments):
    result = original(*arguments)
    if "{function}" == "cuInit":
        raise KeyError(12345)
    return result
def fail(*arguments):
    raise KeyError(12345)
driver.{function} = call
from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Device
try:
    device = Device.open()
    driver.{function} = fail
    device.use()
    stream, event, buffer = device.stream(), device.event(), device.allocate(64, "x")
    stream.fill(buffer.pointer, 0, 64)
    stream.record(event)
    stream.wait(event)
    stream.let_wait(stream.handle)
    event.done
    with stream.capture() as graph:
        stream.fill(buffer.pointer, 0, 64)
    graph.launch(stream)
    print("no error")
except BackendError as error:
    print(error)
"""


@needs_fake
@pytest.mark.parametrize(
    "function",
    few(["cuInit", "cuMemAlloc", "cuMemsetD8Async", "cuEventRecord", "cuStreamWaitEvent", "cuEventQuery",
     "cuStreamEndCapture", "cuGraphLaunch"], 0, 1),
)  # fmt: skip
def test_an_unknown_error_code_of_cuda_bindings_13_0(function: str) -> None:
    """That version raises KeyError, in setup as in each frame."""
    text = answer(KEY_ERROR.format(function=function))
    words = f"{function} failed, and cuda-python does not know its code (12345 is not a valid CUresult): update it"
    assert words in text


@needs_fake
@pytest.mark.parametrize("lacks", few(["CLOCK_RATE", "MEMORY_CLOCK_RATE", "ASYNC_ENGINE_COUNT"], 0))
@pytest.mark.parametrize("where", ["driver", "cuda-python"])
def test_an_attribute_that_is_not_supported(lacks: str, where: str) -> None:
    code = f"""
from types import SimpleNamespace
from cuda.bindings import driver
kinds = driver.CUdevice_attribute
original, refused = driver.cuDeviceGetAttribute, kinds.CU_DEVICE_ATTRIBUTE_{lacks}
if {where == "driver"}:
    def get(kind, device):
        return (driver.CUresult.CUDA_ERROR_INVALID_VALUE, 0) if kind is refused else original(kind, device)
    driver.cuDeviceGetAttribute = get
else:
    members = {{name: kind for name, kind in kinds.__members__.items() if kind is not refused}}
    driver.CUdevice_attribute = SimpleNamespace(**members)
from yolact_deploy.runtime.cuda.driver.device import ATTRIBUTES, Device
device = Device.open()
missing = [ATTRIBUTES[name] for name, value in device.attributes.items() if not value and name != "integrated"]
print(device, ",".join(missing))
"""
    assert answer(code, name="Orin") == f"<cuda:0 Orin> {lacks}"


@needs_fake
def test_an_old_driver() -> None:
    text = answer(OPEN, version=11040)
    assert "supports CUDA 11.4, but 12.0 or later is required. Update the driver" in text


@needs_fake
def test_a_function_that_the_driver_lacks() -> None:
    code = """
from yolact_deploy.runtime.cuda.driver import calls
try:
    calls.call("cuMemPoolTrimTo", 0, 0)
except calls.CudaError as error:
    print(error)
"""
    text = answer(code, version=12020)
    assert "cuMemPoolTrimTo cannot be called" in text
    assert "The driver supports CUDA 12.2: update it" in text


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks of processes with threads (NumPy's)
from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Device
device = Device.open()
device.use()
buffer, stream, pinned = device.allocate(100, "x"), device.stream(), device.pinned(8, "x")
child = os.fork()
if not child:
    for attempt in (Device.open, lambda: device.allocate(1, "y"), device.use, stream.synchronize,
                    lambda: stream.upload(buffer.pointer, pinned.host_pointer, 8)):
        try:
            attempt()
            print("no error")
        except BackendError as error:
            print("spawn" in str(error))
    sys.exit(0)  # runs the finalizers
_, status = os.waitpid(child, 0)
print(status)
stream.upload(buffer.pointer, pinned.host_pointer, 8)
stream.synchronize()
"""


@needs_fake
def test_a_forked_child_is_told() -> None:
    assert answer(FORK).split() == ["True"] * 5 + ["0"]


END = """
import sys
from yolact_deploy.runtime.cuda.driver import Arguments, Device
import fake_cuda
device = Device.open()
device.use()
class Holder: pass
holder = Holder()  # in a cycle, so that only the end of the program frees it
holder.itself = holder
holder.buffer = device.allocate(64, "x")
holder.pinned = device.pinned(64, "x")
holder.array = holder.pinned.array("u1", (64,))
holder.event = device.event()
holder.function = device.load_module(fake_cuda.image_of(fake_cuda.sample_kernels())).function("scale")
holder.stream = device.stream()
with holder.stream.capture() as holder.graph:
    holder.stream.upload(holder.buffer.pointer, holder.pinned.host_pointer, 64)
holder.graph.launch(holder.stream)
print(fake_cuda.control().leaks())
"""


@needs_fake
def test_the_end_of_the_program_frees_everything() -> None:
    kinds = ("1 device buffers", "1 pinned buffers", "1 streams", "1 events", "1 executable graphs", "1 modules")
    assert answer(END) == ", ".join(kinds)


@needs_fake
def test_the_fake_sees_leaks_and_overruns() -> None:
    leak = """
from yolact_deploy.runtime.cuda.driver import calls as c
c.call('cuCtxPushCurrent', c.call('cuDevicePrimaryCtxRetain', 0))
"""
    done = fake_cuda.run_python(leak + "c.call('cuMemAlloc', 10)")
    assert (done.returncode, "not freed at the end: 1 device buffers" in done.stderr) == (97, True)
    overrun = "import ctypes\np = c.call('cuMemAlloc', 10)\nctypes.memset(int(p) + 10, 0, 3)\nc.call('cuMemFree', p)"
    done = fake_cuda.run_python(leak + overrun)
    assert done.returncode == -6
    assert "device buffer of 10 bytes was written 1 bytes past its end" in done.stderr


@pytest.mark.parametrize("version", ["12060", "13020"])
def test_version_text(version: str) -> None:
    assert calls.version_text(int(version)) == {"12060": "12.6", "13020": "13.2"}[version]

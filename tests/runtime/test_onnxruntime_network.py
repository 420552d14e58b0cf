"""ONNX Runtime as the network of the CUDA frame path, over the fake driver.

Sessions are real ones on the CPU that call themselves GPU sessions (``fake_onnxruntime``); a run is put into the stream
that the session was given, so that it happens when the fake driver comes to it, in the order of streams and events.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import BackendError, InputError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnxruntime as real
from fake_onnxruntime import FakeOnnxRuntime, GpuDevice
from tiny_onnx import write_model

from yolact_deploy.runtime import onnxruntime_gpu
from yolact_deploy.runtime.cuda.device_network import DeviceTensor
from yolact_deploy.runtime.cuda.driver import Device, Stream
from yolact_deploy.runtime.onnxruntime import OnnxRuntimeBackend
from yolact_deploy.runtime.onnxruntime_network import OnnxRuntimeNetwork

pytestmark = pytest.mark.fake_cuda(devices=2)

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_cuda: Any) -> FakeOnnxRuntime:
    module = FakeOnnxRuntime(tmp_path / "onnxruntime")
    module.enqueue = fake_cuda.host_function
    module.registered, module.rtx_devices = [("", "")], [GpuDevice(0), GpuDevice(1)]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    return module


@pytest.fixture
def device() -> Iterator[Device]:
    found = Device.open(0)
    with found:
        yield found


def run(network: OnnxRuntimeNetwork, stream: Stream, images: Any) -> dict[str, Any]:
    """Upload, network and download in one stream, waited for once at the end."""
    batch = len(images)
    stream.upload(network.input.pointer, images.ctypes.data, images.nbytes)
    network.enqueue(stream, batch)
    outputs = {}
    for name, tensor in network.outputs.items():
        outputs[name] = np.empty((batch, *tensor.shape[1:]), tensor.dtype)
        stream.download(outputs[name].ctypes.data, tensor.pointer, outputs[name].nbytes)
    stream.synchronize()
    return outputs


def expected(path: Path, tail: str, images: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", real)
        outputs = OnnxRuntimeBackend(path, tail=tail).run(images)._asdict()
    return {name: values for name, values in outputs.items() if values is not None}


@pytest.mark.slow
def test_mask_scores_come_from_the_graph(fake: FakeOnnxRuntime, device: Device, tmp_path: Path) -> None:
    """Our kernels do not give them, so the tail is not cut off, whatever is asked for."""
    path, stream = write_model(tmp_path / "m.onnx", mask_iou=True), device.stream()
    network = OnnxRuntimeNetwork(path, device, tail="heads")
    assert network.metadata.tail == "functions"
    found = run(network, stream, IMAGES)
    wanted = expected(path, "graph", IMAGES)
    assert list(found) == list(wanted)
    assert (found["mask_scores"] > 0).any()
    np.testing.assert_array_equal(found["mask_scores"], wanted["mask_scores"])
    network.close()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
@pytest.mark.parametrize(("tail", "cpu_tail"), [("heads", "host"), ("functions", "graph")])
def test_outputs(
    fake: FakeOnnxRuntime, device: Device, tmp_path: Path, provider: str, tail: str, cpu_tail: str
) -> None:
    path, stream = write_model(tmp_path / "m.onnx"), device.stream()
    network = OnnxRuntimeNetwork(path, device, provider=provider, tail=tail)
    assert (network.metadata.tail, network.max_batch, network.fixed_batch, network.capturable) == (
        tail,
        4,
        False,
        False,
    )
    assert network.input == DeviceTensor(network.input.pointer, (4, 64, 64, 3), np.dtype(np.uint8))
    pointers = [tensor.pointer for tensor in network.outputs.values()]
    for batch in (1, 3, 1):
        wanted = expected(path, cpu_tail, IMAGES[:batch])
        found = run(network, stream, IMAGES[:batch])
        assert list(found) == list(wanted)
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert pointers == [tensor.pointer for tensor in network.outputs.values()]
    facts = network.describe()
    assert (facts["provider"], facts["tail"], facts["max_batch"]) == (provider, tail, 4)
    network.close()
    assert device.usage() == {}


def test_a_file_of_heads(fake: FakeOnnxRuntime, device: Device, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", tail="heads", batch=(2, 2, 2))
    network = OnnxRuntimeNetwork(path, device, tail="functions")  # which the file does not have
    assert (network.metadata.tail, network.max_batch, network.fixed_batch) == ("heads", 2, True)
    stream = device.stream()
    found = run(network, stream, IMAGES[:2])
    np.testing.assert_array_equal(found["scores"], expected(path, "host", IMAGES[:2])["scores"])
    with pytest.raises(InputError, match="batch of 1: this network takes 2 only"):
        network.enqueue(stream, 1)
    network.close()


def test_two_runs_in_a_row_need_no_waiting(
    fake: FakeOnnxRuntime, device: Device, tmp_path: Path, fake_cuda: Any
) -> None:
    """Order is held on the GPU: the second upload must not overtake the first run, nor a download its run."""
    path, stream = write_model(tmp_path / "m.onnx"), device.stream()
    network = OnnxRuntimeNetwork(path, device)
    run(network, stream, IMAGES[:1])  # binds
    fake_cuda.reset_calls()
    results = []
    for image in IMAGES[:2, None]:
        stream.upload(network.input.pointer, image.ctypes.data, image.nbytes)
        network.enqueue(stream, 1)
        results.append(np.empty((1, 5, 2), np.float32))
        stream.download(results[-1].ctypes.data, network.outputs["scores"].pointer, results[-1].nbytes)
    for wait in ("cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize", "cuMemAlloc"):
        assert fake_cuda.calls(wait) == 0, wait
    stream.synchronize()
    for image, found in zip(IMAGES[:2, None], results, strict=True):
        np.testing.assert_array_equal(found, expected(path, "host", image)["scores"])
    network.close()


def test_a_run_waits_for_the_upload(fake: FakeOnnxRuntime, device: Device, tmp_path: Path) -> None:
    """The network's stream is driven to its end first, which must draw the upload in the other stream along."""
    path, stream, image = write_model(tmp_path / "m.onnx"), device.stream(), IMAGES[:1]
    network = OnnxRuntimeNetwork(path, device)
    stream.upload(network.input.pointer, image.ctypes.data, image.nbytes)
    network.enqueue(stream, 1)
    network._stream.synchronize()
    found = np.empty((1, 5, 2), np.float32)
    stream.download(found.ctypes.data, network.outputs["scores"].pointer, found.nbytes)
    stream.synchronize()
    np.testing.assert_array_equal(found, expected(path, "host", image)["scores"])
    network.close()


def test_the_stream_is_the_networks_own(fake: FakeOnnxRuntime, device: Device, tmp_path: Path) -> None:
    network = OnnxRuntimeNetwork(write_model(tmp_path / "m.onnx"), device, provider="tensorrt")
    _, options, _ = fake.sessions[-1]
    assert (options["has_user_compute_stream"], options["user_compute_stream"]) == ("1", str(network._stream.handle))
    assert options["device_id"] == "0"
    network.close()


def test_the_second_gpu(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    with Device.open(1) as second:
        network = OnnxRuntimeNetwork(write_model(tmp_path / "m.onnx"), second)
        assert fake.sessions[-1][1]["device_id"] == "1"
        assert network.describe()["device"] == "cuda:1"
        assert set(second.usage()) == {
            f"onnxruntime {name}" for name in ("images", "boxes", "scores", "coeff", "proto")
        }
        network.close()


def test_the_largest_batch(fake: FakeOnnxRuntime, device: Device, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    network = OnnxRuntimeNetwork(path, device, max_batch=2)
    assert network.input.shape[0] == network.outputs["proto"].shape[0] == 2
    with pytest.raises(InputError, match="batch of 3: this network takes 1 to 2"):
        network.enqueue(device.stream(), 3)
    network.close()
    with pytest.raises(InputError, match="max_batch 9: the file takes 1 to 4 images"):
        OnnxRuntimeNetwork(path, device, max_batch=9)


def test_a_run_that_fails(
    fake: FakeOnnxRuntime, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: int, function: Any) -> None:
        raise RuntimeError("CUBLAS failure 13\nat line 7")

    network = OnnxRuntimeNetwork(write_model(tmp_path / "m.onnx"), device)
    fake.enqueue = fail
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed: CUBLAS failure 13$"):
        network.enqueue(device.stream(), 1)
    network.close()


def test_no_such_gpu(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    """Asked of the driver itself, by ctypes."""
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"there is no cuda:2: the driver sees 2 GPU\(s\)"):
        onnxruntime_gpu.OnnxRuntimeGpuBackend(path, provider="cuda", device=2)


def test_memory_is_addressed_by_ordinary_pointers(device: Device) -> None:
    """What these tests rest on: the fake's device memory is the host's."""
    buffer = device.allocate(16, "test")
    ctypes.memset(buffer.pointer, 7, 16)
    back = np.empty(16, np.uint8)
    stream = device.stream()
    stream.download(back.ctypes.data, buffer.pointer, 16)
    stream.synchronize()
    assert (back == 7).all()
    buffer.free()

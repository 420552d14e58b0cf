"""Frames through ONNX Runtime's and PyTorch's networks between our kernels, as `load` puts them together.

The kernels are emulated behind a fake driver; ONNX Runtime and PyTorch compute on the CPU, when the driver comes to
their place in the stream. Everything is held to the same network by the CPU's way.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda as fake_driver
import numpy as np
import pytest

import yolact_deploy
from yolact_deploy.detections import Detections

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnxruntime as real
from fake_onnxruntime import FakeOnnxRuntime, GpuDevice
from host_network import at, emulated
from tiny_onnx import write_model

from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
from yolact_deploy.runtime.cuda.driver import Device, Stream
from yolact_deploy.runtime.onnxruntime_gpu import OnnxRuntimeGpuBackend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.samples import DEMO_MODEL

__all__ = ["emulated"]

pytestmark = [pytest.mark.fake_cuda(memory=512 * 2**20), pytest.mark.usefixtures("emulated")]

RNG = np.random.default_rng(7)
#: of the network's size, so that what comes of resizing is no question here
FRAMES = [RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(5)]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    """Nothing is left on the device."""
    monkeypatch.setenv("YOLACT_DEPLOY_CACHE", str(tmp_path / "cache"))
    device = Device.open(0)
    yield device
    gc.collect()
    assert device.usage() == {}
    assert fake_driver.control().leaks() == ""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOnnxRuntime:
    module = FakeOnnxRuntime(tmp_path / "onnxruntime")
    module.enqueue = fake_driver.control().host_function
    module.registered, module.rtx_devices = [("", "")], [GpuDevice(0)]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def on_cpu(spelling: str) -> Predictor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", real)
        return yolact_deploy.load(spelling, score_threshold=0.05)


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert len(theirs) > 0, "the test would show nothing"
    assert ours.labels.tolist() == theirs.labels.tolist()
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    for one, other in zip(ours.masks, theirs.masks, strict=True):
        assert (one & other).sum() >= 0.999 * (one | other).sum()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "rtx"])
def test_onnxruntime(fake: FakeOnnxRuntime, tmp_path: Path, provider: str) -> None:
    path = write_model(tmp_path / "m.onnx")
    expected = on_cpu(f"{path}@onnxruntime:tail=host")
    with yolact_deploy.load(f"{path}@onnxruntime:provider={provider}", score_threshold=0.05) as model:
        assert isinstance(model.backend, CudaBackend)
        facts = model.backend.describe()
        assert (facts["backend"], facts["provider"], facts["tail"]) == ("onnxruntime", provider, "heads")
        for ours, frame in zip(model(FRAMES), FRAMES, strict=True):  # a batch of four and one of one
            assert_same(ours, expected(frame))
        for frame in FRAMES:  # often enough for graphs around the network
            assert_same(model(frame), expected(frame))
        inputs = np.stack(FRAMES[:3])
        for output, wanted in zip(model.backend.run(inputs), expected.backend.run(inputs), strict=True):
            np.testing.assert_array_equal(output, wanted)


@pytest.mark.parametrize(("options", "tail"), [("device=cuda", "auto"), ("provider=cuda,tail=host", "host")])
def test_what_load_makes_of_a_spelling(fake: FakeOnnxRuntime, tmp_path: Path, options: str, tail: str) -> None:
    with yolact_deploy.load(f"{write_model(tmp_path / 'm.onnx')}@onnxruntime-tf32:{options}") as model:
        assert isinstance(model.backend, CudaBackend if tail == "auto" else OnnxRuntimeGpuBackend)
        assert model.backend.precision == "tf32"
        assert fake.sessions[-1][1]["use_tf32"] == "1"


def test_a_file_of_heads_that_is_fixed(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", tail="heads", batch=(2, 2, 2))
    expected = on_cpu(str(path))
    with yolact_deploy.load(path, provider="cuda", score_threshold=0.05) as model:
        for ours, frame in zip(model(FRAMES[:3]), FRAMES, strict=False):
            assert_same(ours, expected(frame))


# -- PyTorch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_on_cpu(monkeypatch: pytest.MonkeyPatch, device: Device) -> Iterator[None]:
    """PyTorch's part runs on the CPU, in its place in the stream."""
    torch = pytest.importorskip("torch")
    from yolact_deploy.runtime.torch import torch_network as network
    from yolact_deploy.runtime.torch.torch_network import TorchNetwork

    monkeypatch.setattr(network, "place", lambda index: "cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(TorchNetwork, "_try_to_record", lambda self, stream, batch: None)
    monkeypatch.setattr(TorchNetwork, "_on", lambda self, handle: contextlib.nullcontext())
    buffers = []

    def zeros(self: TorchNetwork, shape: tuple[int, ...], dtype: Any) -> Any:
        """In the fake driver's memory."""
        full = (self.max_batch, *shape)
        buffers.append(device.allocate(int(np.prod(full)) * dtype.itemsize, "torch"))
        return torch.from_numpy(at(buffers[-1].pointer, full, str(dtype).removeprefix("torch.")))

    monkeypatch.setattr(TorchNetwork, "_zeros", zeros)
    enqueue = TorchNetwork.enqueue

    def later(self: TorchNetwork, stream: Stream, batch: int) -> None:
        fake_driver.control().host_function(stream.handle, lambda: enqueue(self, stream, batch))

    monkeypatch.setattr(TorchNetwork, "enqueue", later)
    yield
    for buffer in buffers:
        buffer.free()


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
@pytest.mark.slow
def test_torch(torch_on_cpu: None, resnet50_checkpoint: Path, precision: str) -> None:
    options: dict[str, Any] = {"image_size": 64, "score_threshold": 0.05}
    expected = yolact_deploy.load(f"{resnet50_checkpoint}@torch-{precision}:tail=host", **options)
    spelling = f"{resnet50_checkpoint}@torch-{precision}:device=cuda"
    with yolact_deploy.load(spelling, **options) as model:
        assert isinstance(model.backend, CudaBackend)
        assert (model.backend.name, model.backend.precision) == ("torch", precision)
        assert model.backend.metadata.precision == precision
        for frame in FRAMES[:3]:
            assert_same(model(frame), expected(frame))


@pytest.mark.parametrize("options", ["tail=graph", "tail=host"])
@pytest.mark.slow  # PyTorch would be imported once more; test_torch_network.py runs it in streams of the CPU
def test_torch_by_itself(torch_on_cpu: None, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    from yolact_deploy.runtime.torch import torch_backend as backend
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    monkeypatch.setattr(backend, "place", lambda index: "cpu")
    with yolact_deploy.load(f"{DEMO_MODEL}@torch-bf16:device=cuda,{options}", image_size=64) as model:
        assert isinstance(model.backend, TorchBackend)
        assert (model.backend.frames is None) == (options == "tail=host")
        assert model.backend.precision == "bf16"


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.slow
def test_plain_torch_is_the_eager_way(torch_on_cpu: None, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    from yolact_deploy.runtime.torch import torch_backend as backend
    from yolact_deploy.runtime.torch.torch_backend import TorchBackend

    monkeypatch.setattr(backend, "place", lambda index: "cpu")
    with yolact_deploy.load(f"{DEMO_MODEL}@torch-{precision}:device=cuda", image_size=64) as model:
        assert isinstance(model.backend, TorchBackend)
        assert model.backend.frames is not None
        assert model.backend.precision == precision

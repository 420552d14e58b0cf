"""The network in PyTorch: every precision against the eager trunk, and its place in the CUDA frame path.

No GPU here: `TorchNetwork` and `EagerFrames` run with their tensors on the CPU, and CUDA's streams and graphs are
replaced by objects that note what is done with them.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few import few, few_rows

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.machine import nvidia
from yolact_deploy.machine.nvidia import Gpu
from yolact_deploy.preprocess import fit_image, normalize, read_image, resize_image
from yolact_deploy.priors import make_priors
from yolact_deploy.runtime.cuda.device_network import DeviceTensor
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectSettings
from yolact_deploy.samples import sample_images

torch = pytest.importorskip("torch")

from yolact_deploy.model import torch_ops as ops
from yolact_deploy.runtime.torch import frames
from yolact_deploy.runtime.torch import torch_network as network
from yolact_deploy.runtime.torch.frames import EagerFrames
from yolact_deploy.runtime.torch.torch_backend import TorchBackend
from yolact_deploy.runtime.torch.torch_network import HeadsModule, TorchNetwork, products_in, translated

SIZE = 97


@pytest.fixture(scope="module")
def loaded(resnet50_checkpoint: Path) -> Any:
    from yolact_deploy.model.checkpoint import load_model

    return load_model(resnet50_checkpoint, image_size=SIZE)


@pytest.fixture
def model(loaded: Any) -> Any:
    """A model of its own for each test, since precision and layout are changed in place."""
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def images() -> Any:
    return np.stack([resize_image(read_image(path), SIZE) for path in sample_images()[:2]])


def eager(model: Any, images: Any) -> list[Any]:
    """Heads as the trunk gives them for images that NumPy normalized."""
    with torch.inference_mode():
        loc, logits, coeff, proto = model.heads(torch.from_numpy(normalize(images, model.config)))
        return [ops.decode_boxes(loc, model.priors), logits.softmax(-1)[..., 1:], coeff, proto]


# -- HeadsModule ----------------------------------------------------------------------------------------------------


def test_fp32_is_the_eager_trunk_to_the_bit(model: Any, images: Any) -> None:
    expected = eager(model, images)
    with torch.inference_mode():
        for output, wanted in zip(HeadsModule(model)(torch.from_numpy(images)), expected, strict=True):
            assert torch.equal(output, wanted)


@pytest.mark.parametrize(("precision", "scores", "boxes"), few_rows([("fp16", 0.01, 0.01), ("bf16", 0.08, 0.05)], 1))
def test_half_precision(model: Any, images: Any, precision: str, scores: float, boxes: float) -> None:
    expected = eager(model, images)
    module = HeadsModule(model, precision=precision)
    assert module.channels_last
    assert module.priors.dtype == torch.float32
    assert next(model.parameters()).dtype == network.DTYPES[precision]
    weight = next(m.weight for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    assert weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        detections = module(torch.from_numpy(images))
    assert [output.dtype for output in detections] == [torch.float32] * 4
    assert 0 < (detections[0] - expected[0]).abs().max() < boxes
    assert (detections[1] - expected[1]).abs().max() < scores
    # Boxes are decoded with the priors as they are, not as half precision rounds them.
    np.testing.assert_array_equal(module.priors.numpy(), make_priors(model.config))
    assert not torch.equal(module.priors, model.priors.float())


def test_unknown_precision(model: Any) -> None:
    with pytest.raises(InputError, match="unknown precision 'fp8' of torch: expected one of fp32, tf32, fp16, bf16"):
        HeadsModule(model, precision="fp8")


def test_products() -> None:
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32  # PyTorch's default
    for precision, fast in (("fp32", False), ("tf32", True), ("fp16", True)):
        with products_in(precision):
            assert (cudnn.allow_tf32, cudnn.benchmark) == (fast, fast)
    assert (cudnn.allow_tf32, cudnn.benchmark) == (True, False)
    with cudnn.flags(enabled=True, allow_tf32=False), products_in("tf32"):
        assert not cudnn.allow_tf32  # what the user forbade stays forbidden


def test_errors_of_pytorch_get_a_cure() -> None:
    with pytest.raises(BackendError, match=r"the GPU's memory is full .*use a smaller batch"), translated():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    with pytest.raises(BackendError, match=r"^PyTorch failed: expected a thing$"), translated():
        raise RuntimeError("expected a thing\nand a trace")
    with pytest.raises(BackendError, match=r"torch\.compile failed .*run without compile=yes"), translated():
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)


# -- TorchBackend ---------------------------------------------------------------------------------------------------


def test_half_precision_backend(model: Any, images: Any) -> None:
    expected = eager(model, images)
    backend = TorchBackend(model, precision="bf16")
    facts = backend.describe()
    assert (backend.precision, facts["precision"], facts["channels_last"]) == ("bf16", "bf16", True)
    assert backend.metadata.precision == "bf16"
    outputs = backend.run(images)
    assert np.abs(outputs.scores - expected[1].numpy()).max() < 0.08
    assert backend.frames is None  # of GPUs only


def test_the_numpy_tail(model: Any) -> None:
    picture = read_image(sample_images()[0])
    host, torch_tail = Predictor(TorchBackend(model, tail="host")), Predictor(TorchBackend(model))
    assert host.backend.describe()["tail"] == "host"
    ours, theirs = host(picture), torch_tail(picture)
    assert len(ours) == len(theirs) > 0
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


def test_compile_is_passed_on(model: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake_compile(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", fake_compile)
    backend = TorchBackend(model, compile=True)
    assert asked == [{"dynamic": False}]
    assert backend.describe()["compiled"] is True
    assert backend.run(images[:1]).boxes.shape == (1, model.config.num_priors, 4)


@pytest.mark.slow
def test_a_really_compiled_model(model: Any, images: Any) -> None:
    expected = eager(model, images)
    outputs = TorchBackend(model, compile=True).run(images)
    for output, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), atol=1e-3, rtol=1e-3)


def test_what_a_gpu_needs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> Gpu:
        raise BackendError("no NVIDIA driver here")

    monkeypatch.setattr(nvidia, "require_gpu", missing)
    with pytest.raises(BackendError, match="no NVIDIA driver here"):
        TorchBackend(model, device=0)
    monkeypatch.setattr(nvidia, "require_gpu", lambda index: Gpu(index, "Test GPU", (8, 9), False, 1 << 30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"built for CUDA .*cannot use Test GPU|was built without CUDA"):
        TorchBackend(model, device=0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError, match="was built without CUDA: install torch from its CUDA index"):
        TorchBackend(model, device=0)


# -- EagerFrames: the original's way on a GPU -----------------------------------------------------------------------


def predictors(model: Any) -> tuple[Predictor, Predictor]:
    """The same network by its stages, and by its frame hook."""
    staged = TorchBackend(model)
    hooked = TorchBackend(model)
    hooked.frames = EagerFrames(hooked.heads, hooked.metadata, "cpu")
    return Predictor(staged), Predictor(hooked)


def test_frames_agree_with_the_stages(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same resized image; see below for the resize."""

    def by_opencv(frame: Any, config: Any, *, rounded: bool) -> Any:
        assert rounded
        return torch.from_numpy(fit_image(frame.numpy(), config)).float()

    monkeypatch.setattr(frames, "resize", by_opencv)
    pictures = [read_image(path) for path in sample_images()]
    staged, hooked = predictors(model)
    together = hooked(pictures)
    assert tuple(hooked.timings) == hooked.stages == ("decode", *frames.STAGES, "detect")
    assert min(hooked.timings[name] for name in frames.STAGES) > 0
    for picture, detections in zip(pictures, together, strict=True):
        expected = staged(picture)
        assert (detections.height, detections.width) == picture.shape[:2]
        assert len(detections) == len(expected) > 0
        np.testing.assert_array_equal(detections.labels, expected.labels)
        np.testing.assert_allclose(detections.scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(detections.boxes, expected.boxes, atol=0.05)
        assert (detections.masks ^ expected.masks).sum(axis=(1, 2)).max() <= 5


@pytest.mark.parametrize("fit", ["letterbox", "pad"])
def test_resize_pads(fit: str) -> None:
    picture, config = read_image(sample_images()[0]), YolactConfig(image_size=(96, 160), fit=fit)
    ours = frames.resize(torch.from_numpy(picture), config, rounded=False).numpy()
    np.testing.assert_allclose(ours, fit_image(picture, config, "float32"), atol=0.02)
    rounded = frames.resize(torch.from_numpy(picture), config, rounded=True).numpy()
    assert np.abs(rounded - fit_image(picture, config)).max() <= 1


def test_resize_is_opencvs() -> None:
    picture = read_image(sample_images()[0])
    config = YolactConfig(image_size=SIZE)
    ours = frames.resize(torch.from_numpy(picture), config, rounded=False).numpy()
    np.testing.assert_allclose(ours, resize_image(picture, SIZE, "float32"), atol=0.02)
    rounded = frames.resize(torch.from_numpy(picture), config, rounded=True).numpy()
    assert np.abs(rounded - resize_image(picture, SIZE)).max() <= 1
    assert (rounded == rounded.round()).all()


@pytest.mark.parametrize("width", [1, 8, 31, 32, 33, 640])
def test_packed_bits(width: int) -> None:
    masks = torch.from_numpy(np.random.default_rng(width).random((3, 5, width)) > 0.5)
    packed = frames.pack(masks).numpy()
    assert packed.shape == (3, 5, -(-width // 32) * 4)
    np.testing.assert_array_equal(packed[..., : -(-width // 8)], np.packbits(masks.numpy(), axis=-1))
    assert not packed[..., -(-width // 8) :].any()


def test_packed_masks_are_those_of_the_frame(model: Any) -> None:
    picture = read_image(sample_images()[0])[:, :333]
    _, hooked = predictors(model)
    detections = hooked(picture)
    assert len(detections) > 0
    np.testing.assert_array_equal(detections.packed_masks(), np.packbits(detections.masks, axis=-1))


def test_frames_that_may_not_be_written_to(model: Any) -> None:
    picture = read_image(sample_images()[0])
    picture.flags.writeable = False
    _, hooked = predictors(model)
    assert len(hooked(picture[:, ::-1])) > 0  # and whose rows run backwards


def test_nothing_found_in_a_frame(model: Any) -> None:
    _, hooked = predictors(model)
    hooked.score_threshold = 0.999
    detections = hooked(np.zeros((40, 60, 3), np.uint8))
    assert len(detections) == 0
    assert detections.masks.shape == (0, 40, 60)


def test_frames_that_cannot_be_used(model: Any) -> None:
    _, hooked = predictors(model)
    with pytest.raises(InputError, match=r"expected an image uint8"):
        hooked(np.zeros((40, 60, 7), np.uint8))

    class OnTheGpu:
        def __init__(self, array: Any) -> None:
            self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}

    hook = hooked.backend.frames
    assert hook is not None
    assert hook.is_device_array(OnTheGpu(np.zeros((4, 4, 3), np.uint8)))
    assert not hook.is_device_array(np.zeros((4, 4, 3), np.uint8))
    settings = DetectSettings(0.15, "fast")
    assert hook.serves(settings)
    with pytest.raises(BackendError, match="cannot leave results on the GPU"):
        hook.submit([np.zeros((4, 4, 3), np.uint8)], settings, for_device=True)


# -- TorchNetwork ---------------------------------------------------------------------------------------------------


class Notes(list[Any]):
    """What was done to a stream."""

    handle = 0xABC
    capturing = False

    def synchronize(self) -> None:
        self.append("synchronize")

    def embed(self, graph: int) -> None:
        self.append(("embed", graph))


class Graph:
    """A CUDA graph that runs what was done while it was recorded, again."""

    recording: Graph | None = None

    def __init__(self, keep_graph: bool = False) -> None:
        self.steps: list[Any] = []
        self._kept, self._ready = keep_graph, not keep_graph

    def raw_cuda_graph(self) -> int:
        assert self._kept, "PyTorch destroys it otherwise"
        return id(self)

    def instantiate(self) -> None:
        self._ready = True

    def replay(self) -> None:
        assert self._ready
        for step in self.steps:
            step()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`torch.cuda` with notes for streams; tensors are made on the CPU. Gives the handles that were made current.

    As on a GPU, what torch's own stream was given before is only done for others once somebody has waited for it.
    """
    current: list[Any] = []
    side = Notes()
    pending: list[Any] = []
    make, run = TorchNetwork._make_tensors, TorchNetwork._run

    def make_tensors(net: TorchNetwork) -> None:
        make(net)
        pending.append("weights and tensors")

    def run_network(net: TorchNetwork, batch: int) -> None:
        assert pending == [], "the network ran before its weights were converted"
        if Graph.recording is not None:
            Graph.recording.steps.append(lambda: run(net, batch))
        else:
            run(net, batch)

    monkeypatch.setattr(TorchNetwork, "_make_tensors", make_tensors)
    monkeypatch.setattr(TorchNetwork, "_run", run_network)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: pending.clear())

    @contextlib.contextmanager
    def stream(which: Any) -> Iterator[None]:
        current.append(which)
        yield

    @contextlib.contextmanager
    def graph(graph: Graph, *, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert (pool, stream) == ("pool", side)
        assert capture_error_mode == "thread_local"
        Graph.recording = graph
        try:
            yield
        finally:
            Graph.recording = None

    monkeypatch.setattr(network, "place", lambda index: "cpu")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: ("external", handle, device))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    return current


class Device:
    index = 0


def view(tensor: DeviceTensor) -> Any:
    """The memory of a tensor, which here is the host's."""
    buffer = (ctypes.c_uint8 * tensor.nbytes).from_address(tensor.pointer)
    return np.frombuffer(memoryview(buffer), dtype=tensor.dtype).reshape(tensor.shape)


def test_network_between_fixed_tensors(on_cpu: list[Any], model: Any, images: Any) -> None:
    expected = eager(model, images)
    net = TorchNetwork(model, Device(), precision="fp32", max_batch=4)  # type: ignore[arg-type]
    config = model.config
    assert net.input.shape == (4, SIZE, SIZE, 3)
    assert net.input.dtype == np.uint8
    assert {name: tensor.shape for name, tensor in net.outputs.items()} == {
        "boxes": (4, config.num_priors, 4),
        "scores": (4, config.num_priors, 80),
        "coeff": (4, config.num_priors, 32),
        "proto": (4, config.prototype_size, config.prototype_size, 32),
    }
    assert (net.metadata.tail, net.metadata.batch, net.max_batch, net.fixed_batch) == ("heads", (1, 1, 4), 4, False)
    assert net.capturable
    pointers = {name: tensor.pointer for name, tensor in net.outputs.items()}
    view(net.input)[:2] = images
    stream = Notes()
    net.enqueue(stream, 2)  # type: ignore[arg-type]
    assert on_cpu[-1] == ("external", 0xABC, "cpu")
    assert stream == ["synchronize"]  # once, before recording
    for tensor, wanted in zip(net.outputs.values(), expected, strict=True):
        np.testing.assert_array_equal(view(tensor)[:2], wanted.numpy())
        assert not view(tensor)[2:].any()
    assert pointers == {name: tensor.pointer for name, tensor in net.outputs.items()}
    assert net.describe()["cuda_graphs"] == [2]
    for batch in (0, 5):
        with pytest.raises(InputError, match=f"batch of {batch}: this network takes 1 to 4"):
            net.enqueue(stream, batch)  # type: ignore[arg-type]
    net.close()


@pytest.mark.parametrize("compile", few([False, True], 0))
def test_a_network_that_cannot_be_recorded(
    on_cpu: list[Any], model: Any, images: Any, monkeypatch: pytest.MonkeyPatch, compile: bool
) -> None:
    """It runs operation by operation, unless it is compiled for that very purpose."""

    def fail(net: TorchNetwork, batch: int) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(TorchNetwork, "_record", fail)
    net = TorchNetwork(model, Device(), precision="fp32", compile=compile, max_batch=2)  # type: ignore[arg-type]
    view(net.input)[:2] = images
    stream = Notes()
    if compile:
        with pytest.raises(BackendError, match="PyTorch failed: operation not permitted"):
            net.enqueue(stream, 2)  # type: ignore[arg-type]
        return
    for _ in range(2):
        net.enqueue(stream, 2)  # type: ignore[arg-type]
    assert (stream, net.describe()["cuda_graphs"]) == (["synchronize"], [])
    assert not net.capturable, "so the frame path puts its graphs around it"
    for tensor, wanted in zip(net.outputs.values(), eager(model, images), strict=True):
        np.testing.assert_allclose(view(tensor)[:2], wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(("compile", "recorded"), [(False, [1, 2, 3, 4, 5, 6]), (True, [1, 2, 4, 6])])
def test_which_batches_are_recorded(
    on_cpu: list[Any], model: Any, monkeypatch: pytest.MonkeyPatch, compile: bool, recorded: list[int]
) -> None:
    """Each by itself; compiled, powers of two and the largest, to which others are padded."""
    runs: list[int] = []
    monkeypatch.setattr(TorchNetwork, "_record", lambda net, batch: Graph())
    monkeypatch.setattr(TorchNetwork, "_run", lambda net, batch: runs.append(batch))
    net = TorchNetwork(model, Device(), precision="fp32", compile=compile, max_batch=6)  # type: ignore[arg-type]
    for batch in (1, 2, 3, 4, 5, 6):
        net.enqueue(Notes(), batch)  # type: ignore[arg-type]
    assert net.describe()["cuda_graphs"] == recorded
    assert runs == [], "none runs operation by operation"


@pytest.mark.parametrize("compile", few([False, True], 1))
def test_the_graph_of_a_frame_holds_that_of_the_network(on_cpu: list[Any], model: Any, compile: bool) -> None:
    net = TorchNetwork(model, Device(), precision="fp32", compile=compile, max_batch=4)  # type: ignore[arg-type]
    stream = Notes()
    stream.capturing = True
    with pytest.raises(BackendError, match="not recorded this batch yet"):
        net.enqueue(stream, 3)  # type: ignore[arg-type]
    stream.capturing = False
    net.enqueue(stream, 3)  # type: ignore[arg-type]
    stream.capturing = True
    before = list(on_cpu)
    net.enqueue(stream, 3)  # type: ignore[arg-type]
    graph = net._graphs[4 if compile else 3]
    assert stream == ["synchronize", ("embed", id(graph))]
    assert on_cpu == before, "nothing is launched"
    net.close()


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "float32"), ("tf32", "float32")])
def test_prototypes_in_half_precision(on_cpu: list[Any], model: Any, precision: str, dtype: str) -> None:
    """Of a trunk in FP16; our kernels read no BF16."""
    net = TorchNetwork(model, Device(), precision=precision, max_batch=1)  # type: ignore[arg-type]
    assert {name: tensor.dtype.name for name, tensor in net.outputs.items()} == {
        "boxes": "float32", "scores": "float32", "coeff": "float32", "proto": dtype,
    }  # fmt: skip
    net.close()


def test_compiled_network_is_one_graph_a_batch(
    on_cpu: list[Any], model: Any, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = eager(model, images)
    net = TorchNetwork(model, Device(), precision="fp32", compile=True, max_batch=3)  # type: ignore[arg-type]
    runs = []
    run = net._run

    def noted(batch: int) -> None:
        runs.append(batch)
        if Graph.recording is not None:
            Graph.recording.steps.append(lambda: run(batch))
        else:
            run(batch)

    monkeypatch.setattr(net, "_run", noted)
    view(net.input)[:2] = images
    stream = Notes()
    net.enqueue(stream, 2)  # type: ignore[arg-type]
    assert stream == ["synchronize"]  # once, before recording
    assert runs == [2, 2, 2, 2]  # to compile and warm up, and to record
    net.enqueue(stream, 2)  # type: ignore[arg-type]
    assert (stream, len(runs)) == (["synchronize"], 4)
    for tensor, wanted in zip(net.outputs.values(), expected, strict=True):
        np.testing.assert_allclose(view(tensor)[:2], wanted.numpy(), atol=1e-5)
    assert net.describe()["cuda_graphs"] == [2]
    assert [net._graph_size(batch) for batch in (1, 2, 3)] == [1, 2, 3]
    net.max_batch = 32
    assert [net._graph_size(batch) for batch in (1, 2, 3, 5, 8, 9, 31, 32)] == [1, 2, 4, 8, 8, 16, 32, 32]


def test_batches_on_a_gpu(on_cpu: list[Any], model: Any) -> None:
    assert TorchNetwork(model, Device()).max_batch == 32  # type: ignore[arg-type]
    assert TorchBackend(model).max_batch == TorchBackend(model).metadata.batch[2] == 16

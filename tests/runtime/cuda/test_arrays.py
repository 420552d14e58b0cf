"""Device arrays in and out. The libraries that create them need a GPU, so stand-ins implement their protocols."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest

from yolact_deploy.errors import InputError
from yolact_deploy.runtime.cuda import dlpack
from yolact_deploy.runtime.cuda.arrays import DeviceArray, SharedArray, is_device_array
from yolact_deploy.runtime.cuda.driver import Device, Stream

on_fake = pytest.mark.fake_cuda(devices=2)


class Owner:
    """An object whose end can be observed."""


class Tensor:
    """A tensor of another library: DLPack, and __cuda_array_interface__ in the given version."""

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: Any = np.uint8, place: tuple[int, int] = (2, 0)):
        self.pointer, self.shape, self.dtype, self.place = pointer, shape, np.dtype(dtype), place
        self.owner = Owner()
        self.requests: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, **requests: Any) -> Any:
        self.requests.append(requests)
        versioned = requests.get("max_version") is not None
        return dlpack.export(self.owner, self.pointer, self.shape, self.dtype, self.place, versioned)


class OldTensor(Tensor):
    """A tensor of a library older than DLPack 1.0."""

    def __dlpack__(self, stream: int | None = None) -> Any:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class Interface:
    """An array with only __cuda_array_interface__, like those of pycuda and Numba."""

    def __init__(self, pointer: int, shape: tuple[int, ...], **others: Any) -> None:
        interface = {"data": (pointer, False), "shape": shape, "typestr": "|u1", "version": 3, "strides": None}
        self.__cuda_array_interface__ = {**interface, "stream": None, **others}


@pytest.fixture
def stream() -> Iterator[Stream]:
    device = Device.open(0)
    device.use()
    yield device.stream()
    gc.collect()
    assert device.usage() == {}


def pitched(*shape: int, pitch: int = 0) -> tuple[int, ...]:
    """Strides of uint8 [..., H, W, 3] whose rows take ``pitch`` bytes."""
    height, width, _ = shape[-3:]
    pitch = pitch or 3 * width
    return (height * pitch, pitch, 3, 1)[-len(shape) :]


def array_of(shape: tuple[int, ...], strides: tuple[int, ...] | None = None, dtype: Any = np.uint8) -> DeviceArray:
    strides = dlpack.strides_in_c_order(shape, np.dtype(dtype).itemsize) if strides is None else strides
    return DeviceArray(1000, shape, strides, np.dtype(dtype), 0, None, None)


# -- what is a device array -----------------------------------------------------------------------------------------


def test_what_is_a_device_array() -> None:
    class NeedsGradient(Tensor):
        @property
        def __cuda_array_interface__(self) -> Any:
            raise RuntimeError("requires grad")

    assert is_device_array(Tensor(0, (1,)))
    assert is_device_array(Tensor(0, (1,), place=(dlpack.CUDA_MANAGED, 1)))
    assert is_device_array(Interface(0, (1,)))
    assert is_device_array(NeedsGradient(0, (1,)))
    assert not is_device_array(Tensor(0, (1,), place=(dlpack.CPU, 0)))
    assert not is_device_array(np.zeros(3))
    assert not is_device_array("frame.jpg")


def test_torch_tensors_on_the_cpu_are_not() -> None:
    torch = pytest.importorskip("torch")
    assert not is_device_array(torch.zeros(3))


# -- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "strides", "count", "pitch"),
    [
        ((4, 5, 3), None, 1, 15),
        ((4, 5, 3), (64, 3, 1), 1, 64),
        ((2, 4, 5, 3), None, 2, 15),
        ((2, 4, 5, 3), (1000, 64, 3, 1), 2, 64),
        ((1, 5, 3), (0, 3, 1), 1, 15),
        ((4, 1, 3), (3, 77, 1), 1, 3),
    ],
)
def test_frames(shape: tuple[int, ...], strides: tuple[int, ...] | None, count: int, pitch: int) -> None:
    images = array_of(shape, strides).as_images()
    assert (images.height, images.width, images.pitch) == (*shape[-3:-1], pitch)
    step = 0 if count == 1 else (strides or (60,))[0]
    assert images.pointers == tuple(1000 + step * index for index in range(count))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (array_of((4, 5, 3), dtype=np.float32), r"expected BGR frames uint8 \[H, W, 3\].*got float32 \[4, 5, 3\]"),
        (array_of((3, 4, 5)), r"got uint8 \[3, 4, 5\]. For channels first: tensor.permute"),
        (array_of((4, 5)), r"got uint8 \[4, 5\]"),
        (array_of((4, 5, 4)), r"got uint8 \[4, 5, 4\]"),
        (array_of((0, 5, 3)), r"frames with pixels, got \[0, 5, 3\]"),
        (array_of((4, 5, 3), (20, 4, 1)), r"with strides \[20, 4, 1\].*contiguous"),
        (array_of((4, 5, 3), (15, 3, -1)), "with strides"),
        (array_of((4, 5, 3), (5, 1, 20)), "with strides"),
        (array_of((4, 5, 3), (-15, 3, 1)), "with strides"),
        (array_of((4, 5, 3), (14, 3, 1)), "with strides"),
    ],
)
def test_what_is_no_frame(array: DeviceArray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        array.as_images()


# -- in -------------------------------------------------------------------------------------------------------------


@on_fake
@pytest.mark.parametrize("kind", [Tensor, OldTensor])
def test_dlpack_in(stream: Stream, kind: type[Tensor]) -> None:
    buffer = stream.device.allocate(4 * 5 * 3, "frame")
    tensor = kind(buffer.pointer, (4, 5, 3))
    array = DeviceArray.from_any(tensor, stream)
    assert (array.pointer, array.shape, array.strides) == (buffer.pointer, (4, 5, 3), (15, 3, 1))
    assert (array.dtype, array.device, array.stream) == (np.uint8, 0, None)
    assert tensor.requests[-1]["stream"] == stream.handle, "the producer makes this stream wait"
    owner = weakref.ref(tensor.owner)
    del tensor
    assert owner() is not None
    del array
    assert owner() is None, "the deleter was called"


@on_fake
def test_interface_in(stream: Stream) -> None:
    buffer = stream.device.allocate(4 * 64, "frame")
    value = Interface(buffer.pointer, (4, 5, 3), strides=(64, 3, 1))
    array = DeviceArray.from_any(value, stream)
    assert (array.pointer, array.strides, array.stream) == (buffer.pointer, (64, 3, 1), None)
    assert array.owner is value
    assert DeviceArray.from_any(Interface(buffer.pointer, (4, 5, 3)), stream).strides == (15, 3, 1)
    assert DeviceArray.from_any(Interface(0, (0, 5, 3), data=(None, False)), stream).pointer == 0


@on_fake
@pytest.mark.parametrize(
    ("interface", "waits"),
    [
        ({"stream": None}, None),
        ({"stream": 1}, 1),
        ({"stream": 2}, 2),
        ({"stream": 0}, 1),
        ({"version": 2}, 1),
    ],
)
def test_the_producers_stream_is_waited_for(stream: Stream, interface: dict[str, Any], waits: int | None) -> None:
    buffer, pinned = stream.device.allocate(15, "frame"), stream.device.pinned(15, "frame")
    values = pinned.array(np.uint8, (15,))
    values[:] = 7
    bindings = pytest.importorskip("cuda.bindings.driver")
    producer = 1 if waits is None else waits
    bindings.cuMemsetD8Async(buffer.pointer, 9, 15, producer)
    array = DeviceArray.from_any(Interface(buffer.pointer, (1, 5, 3), **interface), stream)
    assert array.stream == waits
    stream.download(pinned.host_pointer, array.pointer, 15)
    stream.synchronize()
    assert values[0] == (9 if waits is not None else 255)
    bindings.cuStreamSynchronize(producer)


@on_fake
def test_a_stream_of_the_producers_own(stream: Stream) -> None:
    buffer, other = stream.device.allocate(15, "frame"), stream.device.stream()
    other.fill(buffer.pointer, 5, 15)
    pinned = stream.device.pinned(15, "frame")
    DeviceArray.from_any(Interface(buffer.pointer, (1, 5, 3), stream=other.handle), stream)
    stream.download(pinned.host_pointer, buffer.pointer, 15)
    stream.synchronize()
    assert (pinned.array(np.uint8, (15,)) == 5).all()


@on_fake
def test_torch_goes_by_dlpack(stream: Stream) -> None:
    """Version 2 of the interface does not name a stream."""
    buffer = stream.device.allocate(15, "frame")

    class TorchTensor(Tensor):
        __cuda_array_interface__ = Interface(buffer.pointer, (1, 5, 3), version=2).__cuda_array_interface__

    tensor = TorchTensor(buffer.pointer, (1, 5, 3))
    DeviceArray.from_any(tensor, stream)
    assert len(tensor.requests) == 1


@on_fake
def test_arrays_that_cannot_be_read(stream: Stream) -> None:
    device, other = stream.device, Device.open(1)
    mine, elsewhere = device.allocate(15, "frame"), other.allocate(15, "frame")

    class NeedsGradient(Interface):
        @property
        def __cuda_array_interface__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("requires grad, use detach()")

        def __init__(self) -> None:
            pass

    class Refuses(Tensor):
        def __dlpack__(self, **requests: Any) -> Any:
            raise BufferError("conjugated")

    class Half(Tensor):
        def __dlpack__(self, **requests: Any) -> Any:
            capsule = np.zeros(3, np.uint16).__dlpack__()
            dlpack._tensor_of(capsule).code = 4  # bfloat16
            return capsule

    cases = [
        (np.zeros(3), r"expected an array on a CUDA device.*got numpy.ndarray"),
        (Interface(elsewhere.pointer, (1, 5, 3)), r"on cuda:1 and the model on cuda:0.*to\('cuda:0'\).*device=cuda:1"),
        (Interface(4096, (1, 5, 3)), "points to 0x1000, which is not GPU memory"),
        (Interface(mine.pointer, (1, 5, 3), mask=object()), "masked"),
        (NeedsGradient(), r"NeedsGradient cannot be shared.*use detach\(\)"),
        (Refuses(mine.pointer, (1, 5, 3)), "cannot be shared by DLPack: conjugated"),
        (Half(mine.pointer, (1, 5, 3)), r"cannot be shared by DLPack: its elements \(DLPack type 4, 16 bits\)"),
    ]
    for value, words in cases:
        with pytest.raises(InputError, match=words):
            DeviceArray.from_any(value, stream)


@on_fake
def test_memory_of_another_context(stream: Stream, fake_cuda: fake.Control) -> None:
    pointer = fake_cuda.allocate_in_a_context_of_its_own(15)
    with pytest.raises(InputError, match=r"context of its own.*pycuda.autoprimaryctx"):
        DeviceArray.from_any(Interface(pointer, (1, 5, 3)), stream)
    fake_cuda.free(pointer)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_capsules_of_other_libraries(library: str) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    made = values if library == "numpy" else pytest.importorskip("torch").from_numpy(values)
    for view in (made, made[1], made[:, ::2], made[:, :, 1], made[0, 0, 0:0]):
        expected = np.asarray(view)
        tensor = dlpack.Imported(view, None)
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
        if expected.size:
            assert (tensor.pointer, tensor.strides) == (expected.ctypes.data, expected.strides)


def test_a_capsule_without_strides() -> None:
    class Producer:
        def __dlpack__(self) -> Any:
            capsule = np.zeros((2, 3, 4), np.int16).__dlpack__()
            dlpack._tensor_of(capsule).strides = None
            return capsule

    assert dlpack.Imported(Producer(), None).strides == (24, 8, 2)


def test_capsules_that_are_none() -> None:
    class Producer:
        def __dlpack__(self) -> Any:
            return self.capsule

        capsule: Any = None

    producer = Producer()
    with pytest.raises(BufferError, match="has no DLPack tensor, or was consumed before"):
        dlpack.Imported(producer, None)
    producer.capsule = np.zeros(3).__dlpack__()
    dlpack._api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        producer.capsule, b"used_dltensor"
    )
    with pytest.raises(BufferError, match="has no DLPack tensor, or was consumed before"):
        dlpack.Imported(producer, None)


# -- out ------------------------------------------------------------------------------------------------------------


class Mirror(SharedArray):
    """In host memory, so that libraries without a GPU can consume it."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        return super().__dlpack__(stream=-1, max_version=max_version, dl_device=dl_device, copy=copy)


@pytest.mark.parametrize(
    ("dtype", "library"),
    [
        pytest.param(dtype, library, marks=[] if (dtype, library) in SHORT else [pytest.mark.slow])
        for dtype in ("uint8", "int32", "float16", "float32", "bool")
        for library in ("numpy", "torch")
        for SHORT in [(("float32", "torch"), ("bool", "numpy"))]
    ],
)
def test_other_libraries_take_our_capsules(library: str, dtype: str) -> None:
    take = pytest.importorskip(library).from_dlpack
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    owner = Owner()
    shared = Mirror(owner, values.ctypes.data, values.shape, dtype, None, None)  # type: ignore[arg-type]
    alive = weakref.ref(owner)
    del owner
    taken = take(shared)
    del shared
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(np.asarray(taken), values)
    assert np.asarray(taken).ctypes.data == values.ctypes.data
    del taken
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("versioned", [False, True])
def test_an_unconsumed_capsule(versioned: bool) -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.export(owner, 4096, (2, 3), np.dtype("u1"), (dlpack.CUDA, 0), versioned)
    assert ("dltensor_versioned" in repr(capsule)) == versioned
    del owner
    assert alive() is not None
    del capsule
    assert alive() is None


@pytest.mark.filterwarnings("error")
def test_a_consumer_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    """It releases the capsule while its exception propagates."""
    tensor = Tensor(4096, (2, 3))
    alive = weakref.ref(tensor.owner)
    with pytest.raises((BufferError, RuntimeError), match=r"[Uu]nsupported device"):
        np.from_dlpack(tensor)
    del tensor
    gc.collect()
    assert alive() is None
    assert capfd.readouterr().err == ""


@on_fake
def test_a_shared_array_comes_back(stream: Stream) -> None:
    device = stream.device
    buffer = device.allocate(2 * 3 * 4, "masks")
    shared = SharedArray(buffer, buffer.pointer, (2, 3), np.float32, device, stream)
    assert repr(shared) == "<float32 [2, 3] on cuda:0>"
    assert shared.nbytes == 24
    assert is_device_array(shared)
    again = DeviceArray.from_any(shared, stream)
    assert (again.pointer, again.shape, again.strides) == (buffer.pointer, (2, 3), (12, 4))
    assert again.stream == stream.handle
    capsule = shared.__dlpack__(stream=stream.handle, max_version=(1, 0))
    del buffer, shared, again
    gc.collect()
    assert device.usage() == {"masks": 24}
    del capsule
    assert device.usage() == {}


@on_fake
@pytest.mark.parametrize("consumer", [None, 1, 2, "own"])
@pytest.mark.parametrize("by_event", [False, True])
def test_a_consumer_waits_for_our_work(stream: Stream, consumer: Any, by_event: bool) -> None:
    device = stream.device
    buffer, pinned = device.allocate(4, "masks"), device.pinned(4, "masks")
    stream.fill(buffer.pointer, 6, 4)
    ready = device.event(timing=False) if by_event else None
    if ready:
        stream.record(ready)
    shared = SharedArray(buffer, buffer.pointer, (4,), np.uint8, device, stream, ready)
    other = device.stream()
    shared.__dlpack__(stream=other.handle if consumer == "own" else consumer)
    handle = {None: 1, "own": other.handle}.get(consumer, consumer)
    bindings = pytest.importorskip("cuda.bindings.driver")
    bindings.cuMemcpyDtoHAsync(pinned.host_pointer, buffer.pointer, 4, handle)
    bindings.cuStreamSynchronize(handle)
    assert pinned.array(np.uint8, (4,)).tolist() == [6] * 4


@on_fake
def test_consumers_that_want_more(stream: Stream) -> None:
    buffer = stream.device.allocate(4, "masks")
    shared = SharedArray(buffer, buffer.pointer, (4,), np.uint8, stream.device, stream)
    with pytest.raises(BufferError, match="only shared memory is available"):
        shared.__dlpack__(copy=True)
    with pytest.raises(BufferError, match="the memory is on cuda:0"):
        shared.__dlpack__(dl_device=(dlpack.CPU, 0))
    shared.__dlpack__(dl_device=(dlpack.CUDA, 0), copy=False, stream=-1)
    stream.synchronize()

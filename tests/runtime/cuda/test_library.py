"""Plans on a device, through the real cuda.bindings and the fake driver, which runs kernels in the emulator.

The loaded images come from NVRTC; the fake driver runs the same sources in their place.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.errors import BackendError
from yolact_deploy.priors import Placement
from yolact_deploy.runtime.cuda import nvrtc
from yolact_deploy.runtime.cuda.driver import CudaError, Device, DeviceBuffer, Stream
from yolact_deploy.runtime.cuda.library import KernelLibrary
from yolact_deploy.runtime.cuda.plans.launch import Launch, LaunchPlan, joined
from yolact_deploy.runtime.cuda.plans.plan_paste import paste, unpack
from yolact_deploy.runtime.cuda.plans.plan_resize import resize

pytestmark = [
    pytest.mark.fake_cuda(devices=2, memory=64 * 2**20, capability="9.0"),
    pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20"),
]

HEIGHT, WIDTH, SIZE = 40, 50, 24


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device.open(0)
    device.use()
    yield device
    gc.collect()
    assert device.usage() == {}
    assert device.pinned_usage() == {}
    assert fake.control().leaks() == ""


@pytest.fixture
def library(device: Device) -> Iterator[KernelLibrary]:
    try:
        nvrtc.version()
    except BackendError as error:
        pytest.skip(str(error))
    library = KernelLibrary(device)
    yield library
    library.close()


def known(library: KernelLibrary, plan: LaunchPlan) -> LaunchPlan:
    """The plan, after registering emulated kernels for its images."""
    for launch in plan.launches:
        image = nvrtc.compile_source(launch.source, library.arch, launch.defines)
        fake.control().register(image, emulate.compile_source(launch.source, launch.defines))
    return plan


class Arrays:
    """Arrays by name with memory on the device."""

    def __init__(self, device: Device, arrays: Mapping[str, Any]) -> None:
        self.arrays = dict(arrays)
        self.memory: dict[str, DeviceBuffer] = {
            name: device.allocate(array.nbytes, "test") for name, array in arrays.items()
        }
        self.pointers = {name: buffer.pointer for name, buffer in self.memory.items()}

    def upload(self, stream: Stream) -> None:
        for name, array in self.arrays.items():
            stream.upload(self.pointers[name], array.ctypes.data, array.nbytes)

    def download(self, stream: Stream) -> dict[str, Any]:
        copies = {name: np.empty_like(array) for name, array in self.arrays.items()}
        for name, array in copies.items():
            stream.download(array.ctypes.data, self.pointers[name], array.nbytes)
        stream.synchronize()
        return copies


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def images(num: int = 1) -> Any:
    return np.zeros((num, SIZE, SIZE, 3), np.uint8)


def resize_plan(library: KernelLibrary, index: int = 0) -> LaunchPlan:
    return known(library, resize(HEIGHT, WIDTH, 3 * WIDTH, SIZE, image_index=index))


def resized(frame: Any) -> Any:
    """In the emulator alone."""
    out = images()
    height, width, _ = frame.shape
    emulate.run_plan(resize(height, width, 3 * width, SIZE), {"frame": frame, "images": out})
    return out[0]


def paste_inputs() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "masks": rng.random((1, 5, 9, 9), np.float32),
        "boxes": np.sort(rng.random((1, 5, 4), np.float32).reshape(1, 5, 2, 2), axis=2).reshape(1, 5, 4),
        "num_detections": np.array([5], np.int32),
        "placements": np.array([Placement.whole(60, 70)], np.int32),
        "windows": np.zeros((1, 5, 6), np.int32),
        "words_needed": np.zeros(1, np.int32),
        "scores": np.ones((1, 5), np.float32),
        "labels": np.arange(5, dtype=np.int32)[None],
        "wanted": np.zeros(1, np.int32),
        "found_windows": np.zeros((1, 5, 6), np.int32),
        "found_boxes": np.zeros((1, 5, 4), np.float32),
        "found_scores": np.zeros((1, 5), np.float32),
        "found_labels": np.zeros((1, 5), np.int32),
        "bits": np.zeros((1, 900), np.uint32),
    }


# -- running ----------------------------------------------------------------------------------------------------------


def test_a_plan_runs(device: Device, library: KernelLibrary) -> None:
    frame, stream = picture(), device.stream()
    held = Arrays(device, {"frame": frame, "images": images()})
    held.upload(stream)
    bound = library.bind(resize_plan(library), held.pointers)
    bound.enqueue(stream)
    np.testing.assert_array_equal(held.download(stream)["images"][0], resized(frame))
    assert library.arch == "sm_90"
    bound.close()


def test_a_plan_with_scratch_and_pinned_output(device: Device, library: KernelLibrary) -> None:
    """Bits are written directly to host memory, as in the pipeline."""
    inputs, stream = paste_inputs(), device.stream()
    plan = known(library, paste(1, 5, 9, 9, capacity_words=900))
    wanted = {name: array.copy() for name, array in inputs.items()}
    emulate.run_plan(plan, wanted)
    held = Arrays(device, inputs)
    held.upload(stream)
    pinned = device.pinned(3600, "bits")
    before = device.usage()
    bound = library.bind(plan, held.pointers | {"bits": pinned.pointer}, "between")
    assert device.usage() == before | {"between": plan.scratch["paste_offsets"]}
    bound.enqueue(stream)
    downloaded = held.download(stream)
    for name in ("windows", "words_needed"):
        np.testing.assert_array_equal(downloaded[name], wanted[name])
    ours = unpack(downloaded["windows"][0], pinned.array(np.uint32, (900,)), 5, 60, 70)
    theirs = unpack(wanted["windows"][0], wanted["bits"][0], 5, 60, 70)
    np.testing.assert_array_equal(ours.full(), theirs.full())
    assert theirs.full().any()
    bound.close()
    bound.close()
    assert device.usage() == before


def test_several_launches_run_in_their_order(device: Device, library: KernelLibrary) -> None:
    stream = device.stream()
    held = Arrays(device, {"frame": picture(), "images": images(3)})
    held.upload(stream)
    plan = joined(resize_plan(library, index) for index in (0, 2))
    bound = library.bind(plan, held.pointers)
    bound.enqueue(stream)
    downloaded = held.download(stream)["images"]
    np.testing.assert_array_equal(downloaded[0], resized(picture()))
    np.testing.assert_array_equal(downloaded[2], downloaded[0])
    assert not downloaded[1].any()


def test_given_scratch_is_not_allocated(device: Device, library: KernelLibrary) -> None:
    plan = known(library, paste(1, 5, 9, 9, capacity_words=900))
    held = Arrays(device, paste_inputs() | {"paste_offsets": np.zeros(plan.scratch["paste_offsets"], np.uint8)})
    before = device.usage()
    bound = library.bind(plan, held.pointers | {"something else": 1})
    assert device.usage() == before
    stream = device.stream()
    held.upload(stream)
    bound.enqueue(stream)
    assert held.download(stream)["paste_offsets"].any()


def test_enqueue_allocates_nothing_and_can_be_captured(
    device: Device, library: KernelLibrary, fake_cuda: fake.Control
) -> None:
    stream, frame = device.stream(), picture(0)
    held = Arrays(device, {"frame": frame, "images": images(2)})
    bound = library.bind(resize_plan(library, 1), held.pointers)
    fake_cuda.reset_calls()
    with stream.capture() as graph:
        bound.enqueue(stream)
    assert (fake_cuda.calls("cuMemAlloc"), fake_cuda.calls("cuLaunchKernel")) == (0, 1)
    held.upload(stream)
    graph.launch(stream)
    downloaded = held.download(stream)["images"]
    np.testing.assert_array_equal(downloaded[1], resized(frame))
    assert not downloaded[0].any()
    graph.close()


# -- loading ----------------------------------------------------------------------------------------------------------


def test_each_source_is_loaded_once(device: Device, library: KernelLibrary, fake_cuda: fake.Control) -> None:
    """Once per set of defines, however many plans and kernels use it."""
    held = Arrays(device, {"frame": picture(), "images": images(4)} | paste_inputs())
    plans = [resize_plan(library, index) for index in range(4)]
    plans.append(known(library, paste(1, 5, 9, 9, capacity_words=900)))
    fake_cuda.reset_calls()
    for plan in plans:
        library.load(plan)
    assert fake_cuda.calls("cuModuleLoadData") == 2
    bound = [library.bind(plan, held.pointers) for plan in plans]
    other = known(library, resize(HEIGHT, WIDTH, 3 * WIDTH, SIZE, output_dtype="float32"))
    library.bind(other, held.pointers)
    assert fake_cuda.calls("cuModuleLoadData") == 3
    assert fake_cuda.calls("cuModuleGetFunction") == 4
    for each in bound:
        each.close()


def test_threads_that_bind_the_same_plan_load_it_once(
    device: Device, library: KernelLibrary, fake_cuda: fake.Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, failed, compile_source = resize_plan(library), [], nvrtc.compile_source

    def compile_slowly(*arguments: Any) -> bytes:
        time.sleep(0.05)
        return compile_source(*arguments)

    monkeypatch.setattr(nvrtc, "compile_source", compile_slowly)
    fake_cuda.reset_calls()

    def bind() -> None:
        try:
            library.bind(plan, {"frame": 256, "images": 512}).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=bind) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert fake_cuda.calls("cuModuleLoadData") == 1


def test_devices_have_libraries_of_their_own(library: KernelLibrary, fake_cuda: fake.Control) -> None:
    """The second device's kernels work in its own context."""
    frame = picture()
    with Device.open(1) as device:
        other, stream = KernelLibrary(device), device.stream()
        held = Arrays(device, {"frame": frame, "images": images()})
        held.upload(stream)
        other.bind(resize_plan(library), held.pointers).enqueue(stream)
        np.testing.assert_array_equal(held.download(stream)["images"][0], resized(frame))
        other.close()


def test_close_unloads_and_what_comes_later_is_loaded_again(
    device: Device, library: KernelLibrary, fake_cuda: fake.Control
) -> None:
    plan = resize_plan(library)
    library.load(plan)
    assert "1 modules" in fake_cuda.leaks()
    library.close()
    library.close()
    assert "modules" not in fake_cuda.leaks()
    library.load(plan)
    assert "1 modules" in fake_cuda.leaks()


# -- errors -----------------------------------------------------------------------------------------------------------


def test_missing_pointers_are_named(library: KernelLibrary) -> None:
    with pytest.raises(ValueError, match="expected pointers for frame, images; missing: images"):
        library.bind(resize_plan(library), {"frame": 256})


def test_a_source_that_does_not_compile(device: Device, library: KernelLibrary) -> None:
    launch = Launch("resize.cu", "resize", (1, 1, 1), (1, 1, 1), 0, ("a",), (("TILE_WIDTH", "nonsense"),))
    with pytest.raises(BackendError, match=r"(?s)resize\.cu does not compile.*nonsense"):
        library.bind(LaunchPlan((launch,), {"b": 100}, 0, 0), {"a": 256})
    assert device.usage() == {}


def test_a_kernel_that_is_not_there(device: Device, library: KernelLibrary) -> None:
    (launch,) = resize_plan(library).launches
    wrong = Launch(launch.source, "rezise", launch.grid, launch.block, 0, launch.arguments, launch.defines)
    with pytest.raises(CudaError, match=r"resize\.cu has no kernel 'rezise'"):
        library.bind(LaunchPlan((wrong,), {"scratch": 100}, 0, 0), {"frame": 256, "images": 512})
    assert device.usage() == {}


def test_an_image_that_the_driver_refuses(device: Device, library: KernelLibrary, fake_cuda: fake.Control) -> None:
    plan = resize_plan(library)
    fake_cuda.fail("cuModuleLoadData", 222)
    with pytest.raises(CudaError, match=r"cannot load resize\.cu into Fake GPU.*UNSUPPORTED_PTX_VERSION"):
        library.load(plan)
    library.load(plan)  # errors are not cached


def test_a_launch_that_fails_names_its_kernel(device: Device, library: KernelLibrary, fake_cuda: fake.Control) -> None:
    held = Arrays(device, {"frame": picture(), "images": images()})
    bound, stream = library.bind(resize_plan(library), held.pointers), device.stream()
    fake_cuda.fail("cuLaunchKernel", 701)
    with pytest.raises(CudaError, match=r"kernel resize, grid \(1, 2, 1\), block \(64, 4, 1\)"):
        bound.enqueue(stream)
    stream.synchronize()


def test_too_little_memory_for_scratch(device: Device, library: KernelLibrary) -> None:
    (launch,) = resize_plan(library).launches
    plan = LaunchPlan((launch,), {"one": 2**20, "two": 2**30}, 0, 0)
    with pytest.raises(CudaError, match=r"out of memory.*1\.0 GiB were requested for between") as caught:
        library.bind(plan, {"frame": 256, "images": 512}, "between")
    assert caught.traceback  # holding the error does not hold memory
    assert device.usage() == {}

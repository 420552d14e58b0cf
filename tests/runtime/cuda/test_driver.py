"""The driver layer: the real cuda.bindings over the fake driver. Buffers hold float32 [N]."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest

from yolact_deploy.errors import BackendError
from yolact_deploy.runtime.cuda.driver import Arguments, CudaError, Device, DeviceBuffer, PinnedBuffer, Stream
from yolact_deploy.runtime.cuda.driver.memory import Ledger

pytestmark = pytest.mark.fake_cuda(devices=2, memory=64 * 2**20)

N = 1000
ONE = (1, 1, 1)


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device.open(0)
    device.use()
    yield device
    gc.collect()
    assert device.usage() == {}
    assert device.pinned_usage() == {}
    assert fake.control().leaks() == ""


class Both:
    """A device buffer, and pinned memory of the same size with ascending values."""

    def __init__(self, device: Device) -> None:
        self.memory: DeviceBuffer = device.allocate(4 * N, "test")
        self.pinned: PinnedBuffer = device.pinned(4 * N, "test")
        self.host = self.pinned.array(np.float32, (N,))
        self.host[:] = np.arange(N)

    def upload(self, stream: Stream) -> None:
        stream.upload(self.memory.pointer, self.pinned.host_pointer, 4 * N)

    def download(self, stream: Stream) -> None:
        stream.download(self.pinned.host_pointer, self.memory.pointer, 4 * N)


def current_device() -> int:
    return int(pytest.importorskip("cuda.bindings.driver").cuCtxGetDevice()[1])


def scale_of(device: Device) -> Any:
    return device.load_module(fake.image_of(fake.sample_kernels()), "samples").function("scale")


def scale_arguments(buffer: DeviceBuffer, factor: float, offset: float = 0.0) -> Arguments:
    return Arguments([buffer.pointer, np.int32(N), np.float32(factor), np.float64(offset)])


# -- devices --------------------------------------------------------------------------------------------------------


def test_what_a_device_tells() -> None:
    device = Device.open(1)
    assert Device.open(1) is device
    assert (device.index, device.name, device.compute_capability) == (1, "Fake GPU", (8, 7))
    assert (device.integrated, device.multiprocessors) == (False, 16)
    assert device.attributes["l2_cache_bytes"] == 4 * 2**20
    assert device.memory() == (64 * 2**20, 64 * 2**20)


def test_no_such_device_names_those_that_exist() -> None:
    with pytest.raises(BackendError, match=r"no GPU cuda:7\. Visible.*cuda:0 \(Fake GPU\), cuda:1 \(Fake GPU\)"):
        Device.open(7)
    with pytest.raises(BackendError, match="no GPU cuda:-1"):
        Device.open(-1)


def test_a_block_puts_back_what_was_current(device: Device) -> None:
    other = Device.open(1)
    with other:
        buffer = other.allocate(100, "other")
        assert (other.usage(), device.usage()) == ({"other": 100}, {})
        assert current_device() == 1
        buffer.free()
    assert current_device() == 0


def test_threads_use_the_device(device: Device) -> None:
    both, failures = Both(device), []

    def work() -> None:
        try:
            device.use()
            stream = device.stream()
            for _ in range(20):
                both.upload(stream)
                device.allocate(64, "in a thread").free()
                stream.synchronize()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_waiting_works_in_a_thread_without_a_context(device: Device) -> None:
    both, stream, event = Both(device), device.stream(), device.event()
    both.upload(stream)
    stream.record(event)
    failures = []

    def wait() -> None:
        try:
            event.synchronize()
            assert event.done
            stream.synchronize()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert not failures


def test_the_last_reference_may_go_in_any_thread(device: Device) -> None:
    held = [device.allocate(100, "x"), device.pinned(100, "x"), device.stream(), device.event(), scale_of(device)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert fake.control().leaks() == ""


# -- memory ---------------------------------------------------------------------------------------------------------


def test_accounts_by_label(device: Device) -> None:
    weights = [device.allocate(2**20, "weights") for _ in range(2)]
    scratch = device.allocate(300, "scratch")
    pinned = device.pinned(500, "frames")
    assert device.usage() == {"weights": 2**21, "scratch": 300}
    assert list(device.usage()) == ["weights", "scratch"]
    assert device.pinned_usage() == {"frames": 500}
    scratch.free()
    scratch.free()
    del weights[0]
    assert device.usage() == {"weights": 2**20}
    assert device.memory()[0] == 63 * 2**20
    pinned.free()


def test_out_of_memory_says_who_holds_it(device: Device) -> None:
    weights = device.allocate(48 * 2**20, "weights")
    with pytest.raises(CudaError) as caught:
        device.allocate(20 * 2**20, "activations")
    error = caught.value
    assert (error.call, error.code, error.code_name) == ("cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY")
    text = str(error)
    assert "20.0 MiB were requested for activations" in text
    assert "16.0 MiB of 64.0 MiB are free" in text
    assert "weights 48.0 MiB" in text
    assert "use a smaller batch" in text
    weights.free()
    device.allocate(20 * 2**20, "activations").free()


def test_out_of_pinned_memory(device: Device, fake_cuda: fake.Control) -> None:
    fake_cuda.fail("cuMemHostAlloc", 2)
    with pytest.raises(CudaError, match=r"out of pinned host memory: 3.0 GiB were requested for frames.*nothing"):
        device.pinned(3 * 2**30, "frames")


def test_an_allocation_that_fails_otherwise(device: Device, fake_cuda: fake.Control) -> None:
    fake_cuda.fail("cuMemAlloc", 700)
    with pytest.raises(CudaError, match=r"100 bytes for x.*CUDA_ERROR_ILLEGAL_ADDRESS.*compute-sanitizer"):
        device.allocate(100, "x")


def test_empty_buffers(device: Device) -> None:
    buffer, pinned = device.allocate(0, "nothing"), device.pinned(0, "nothing")
    assert buffer.pointer
    assert pinned.array(np.float32, (0, 3)).shape == (0, 3)


def test_pinned_memory_outlives_its_object_while_an_array_does(device: Device, fake_cuda: fake.Control) -> None:
    pinned = device.pinned(64, "results")
    tail = pinned.array(np.int16, (2, 4), offset=16)[1]
    tail[:] = 7
    assert tail.ctypes.data == pinned.host_pointer + 24
    pinned.free()
    with pytest.raises(ValueError, match="'results' was freed"):
        pinned.array(np.int16, (1,))
    del pinned
    assert fake_cuda.calls("cuMemFreeHost") == 0
    assert (tail == 7).all()
    del tail
    assert fake_cuda.calls("cuMemFreeHost") == 1


def test_the_gpu_writes_mapped_memory(device: Device) -> None:
    pinned, stream = device.pinned(8, "mapped"), device.stream()
    stream.fill(pinned.pointer, 0x11, 4)
    stream.fill(pinned.pointer + 4, 0, 4)
    stream.synchronize()
    assert pinned.array(np.int32, (2,)).tolist() == [0x11111111, 0]


def test_ledger_counts_in_threads() -> None:
    ledger = Ledger()

    def work() -> None:
        for _ in range(1000):
            ledger.add("a", 3)
            ledger.add("a", -2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.usage() == {"a": 4000}


# -- streams and events ---------------------------------------------------------------------------------------------


def test_work_is_asynchronous_and_in_order(device: Device) -> None:
    both, stream, second = Both(device), device.stream(), device.allocate(4 * N, "second")
    both.upload(stream)
    stream.copy(second.pointer, both.memory.pointer, 4 * N)
    stream.fill(both.memory.pointer, 0, 4 * N)
    both.download(stream)
    assert both.host[5] == 5, "nothing has run yet"
    stream.synchronize()
    assert not both.host.any()
    stream.download(both.pinned.host_pointer, second.pointer, 4 * N)
    stream.synchronize()
    assert (both.host == np.arange(N)).all()


def test_streams_wait_by_events_only(device: Device) -> None:
    both, first, second, event = Both(device), device.stream(), device.stream(), device.event(timing=False)
    both.upload(first)
    first.record(event)
    both.download(second)
    both.host[:] = -1
    second.synchronize()
    assert np.isnan(both.host).all(), "the second stream read what the first had not written"
    both.host[:] = 3
    second.wait(event)
    both.download(second)
    second.synchronize()
    assert (both.host == 3).all()


@pytest.mark.parametrize("handle", [1, 2], ids=["legacy", "per thread"])
def test_waits_for_streams_of_others(device: Device, handle: int) -> None:
    both, stream = Both(device), device.stream()
    bindings = pytest.importorskip("cuda.bindings.driver")
    bindings.cuMemcpyHtoDAsync(both.memory.pointer, both.pinned.host_pointer, 4 * N, handle)
    stream.wait_for(handle)
    both.download(stream)
    stream.synchronize()
    assert both.host[7] == 7
    stream.fill(both.memory.pointer, 0, 4 * N)
    stream.let_wait(handle)
    bindings.cuMemcpyDtoHAsync(both.pinned.host_pointer, both.memory.pointer, 4 * N, handle)
    bindings.cuStreamSynchronize(handle)
    assert both.host[7] == 0


def test_a_stream_of_another_context_is_refused(device: Device) -> None:
    with pytest.raises(CudaError, match=r"cannot wait for stream 0x5 of another library.*INVALID_HANDLE"):
        device.stream().wait_for(5)


def test_events_measure_time(device: Device) -> None:
    stream, start, end = device.stream(), device.event(), device.event(blocking=True)
    stream.record(start)
    stream.record(end)
    assert not end.done
    end.synchronize()
    assert end.done
    assert 0 <= end.elapsed_since(start) < 1000
    untimed = device.event(timing=False)
    stream.record(untimed)
    stream.synchronize()
    with pytest.raises(CudaError, match="cuEventElapsedTime"):
        untimed.elapsed_since(start)


@pytest.mark.parametrize("what", ["stream", "event"])
def test_waiting_lets_other_threads_run(device: Device, fake_cuda: fake.Control, what: str) -> None:
    """Calls of cuda-python 12 hold the GIL; ours release it."""
    stream, event, counted, stop = device.stream(), device.event(timing=False), [0], threading.Event()
    fake_cuda.sleep(stream.handle, 300)
    stream.record(event)

    def count() -> None:
        while not stop.wait(0.001):
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    (stream if what == "stream" else event).synchronize()
    stop.set()
    thread.join()
    assert counted[0] > 50


def test_bad_copies_name_the_call(device: Device) -> None:
    both, stream = Both(device), device.stream()
    with pytest.raises(CudaError, match=r"cuMemcpyHtoDAsync failed with CUDA_ERROR_INVALID_VALUE \(invalid argument\)"):
        stream.upload(both.memory.pointer, both.pinned.host_pointer, 4 * N + 1)
    with pytest.raises(CudaError, match="cuMemcpyDtoHAsync"):
        stream.download(both.pinned.host_pointer, both.memory.pointer + 4, 4 * N)
    with pytest.raises(CudaError, match="cuMemcpyDtoDAsync"):
        stream.copy(both.memory.pointer, 64, 16)
    with pytest.raises(CudaError, match="cuMemsetD8Async"):
        stream.fill(64, 0, 16)


# -- kernels --------------------------------------------------------------------------------------------------------


def test_a_kernel_gets_its_arguments(device: Device) -> None:
    both, stream, scale = Both(device), device.stream(), scale_of(device)
    both.upload(stream)
    for factor in (0.5, 10):  # the arguments need not outlive the call
        stream.launch(scale, (4, 1, 1), (256, 1, 1), 0, scale_arguments(both.memory, factor, 3.0))
    both.download(stream)
    stream.synchronize()
    np.testing.assert_array_equal(both.host, (np.arange(N, dtype=np.float32) * 0.5 + 3) * 10 + 3)


def test_a_kernel_gets_its_sizes(device: Device) -> None:
    module = device.load_module(fake.image_of(fake.sample_kernels()))
    stream, pinned = device.stream(), device.pinned(28, "sizes")
    stream.launch(module.function("sizes"), (2, 3, 4), (32, 2, 1), 1024, Arguments([pinned.pointer]))
    stream.synchronize()
    assert pinned.array(np.int32, (7,)).tolist() == [2, 3, 4, 32, 2, 1, 1024]


def test_limits_of_a_launch(device: Device) -> None:
    both, stream, scale = Both(device), device.stream(), scale_of(device)
    arguments = scale_arguments(both.memory, 1)
    with pytest.raises(CudaError, match=r"kernel scale, grid \(1, 1, 1\), block \(2048, 1, 1\): cuLaunchKernel failed"):
        stream.launch(scale, ONE, (2048, 1, 1), 0, arguments)
    with pytest.raises(CudaError, match="cuLaunchKernel"):
        stream.launch(scale, ONE, ONE, 100_000, arguments)


def test_a_function_keeps_its_module(device: Device, fake_cuda: fake.Control) -> None:
    scale = scale_of(device)
    gc.collect()
    assert fake_cuda.calls("cuModuleUnload") == 0
    del scale
    assert fake_cuda.calls("cuModuleUnload") == 1


def test_kernels_that_are_not_there(device: Device, fake_cuda: fake.Control) -> None:
    module = device.load_module(fake.image_of(fake.sample_kernels()), "fast_nms.cu")
    with pytest.raises(CudaError, match=r"fast_nms.cu has no kernel 'nothing'.*NOT_FOUND"):
        module.function("nothing")
    with pytest.raises(
        CudaError, match=r"cannot load paste into Fake GPU \(compute capability 8.7, driver for CUDA 13.0"
    ):
        device.load_module(b"no image at all", "paste")
    fake_cuda.fail("cuModuleLoadData", 222)
    with pytest.raises(CudaError, match=r"UNSUPPORTED_PTX_VERSION.*older nvidia-cuda-nvrtc"):
        device.load_module(b"", "paste")


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="expected a pointer as int or a NumPy scalar"):
        Arguments([1, 1.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got True"):
        Arguments([True, np.int32(2)])


# -- graphs ---------------------------------------------------------------------------------------------------------


def test_a_graph_repeats_the_work(device: Device, fake_cuda: fake.Control) -> None:
    both, stream, scale = Both(device), device.stream(), scale_of(device)
    with stream.capture() as graph:
        both.upload(stream)
        stream.launch(scale, ONE, ONE, 0, scale_arguments(both.memory, 2))
        both.download(stream)
    stream.synchronize()
    assert both.host[3] == 3, "recorded, not run"
    assert graph.nodes == 3
    fake_cuda.reset_calls()
    for expected in (6, 12, 24):
        graph.launch(stream)
        stream.synchronize()
        assert both.host[3] == expected
    assert (fake_cuda.calls("cuGraphLaunch"), fake_cuda.calls("cuLaunchKernel")) == (3, 0)
    graph.close()
    with pytest.raises(BackendError, match="cannot be launched"):
        graph.launch(stream)


def test_a_graph_of_two_streams(device: Device) -> None:
    both, stream, side = Both(device), device.stream(), device.stream()
    fork, join = device.event(timing=False), device.event(timing=False)
    with stream.capture() as graph:
        stream.record(fork)
        side.wait(fork)
        both.upload(side)
        side.record(join)
        stream.wait(join)
        both.download(stream)
    both.host[:] = 4
    graph.launch(stream)
    stream.synchronize()
    assert (both.host == 4).all()


def test_work_that_is_not_joined(device: Device) -> None:
    both, stream, side, fork = Both(device), device.stream(), device.stream(), device.event(timing=False)

    def capture() -> None:
        with stream.capture():
            stream.record(fork)
            side.wait(fork)
            both.upload(side)

    with pytest.raises(CudaError, match=r"cannot be recorded.*UNJOINED.*did not wait for it"):
        capture()


def test_host_functions_are_captured(device: Device, fake_cuda: fake.Control) -> None:
    both, stream = Both(device), device.stream()
    memory = (ctypes.c_float * N).from_address(both.memory.pointer)

    def network() -> None:
        np.frombuffer(memoryview(memory), np.float32)[:] += 1

    with stream.capture() as graph:
        both.upload(stream)
        fake_cuda.host_function(stream.handle, network)
        both.download(stream)
    for _ in range(3):
        graph.launch(stream)
        stream.synchronize()
    assert (both.host == np.arange(N) + 3).all()


def test_parts_of_a_graph_are_measured(device: Device) -> None:
    both, stream, start, end = Both(device), device.stream(), device.event(), device.event()
    with stream.capture() as graph:
        stream.record(start)
        both.upload(stream)
        stream.record(end)
    graph.launch(stream)
    assert not end.done
    end.synchronize()
    first = end.elapsed_since(start)
    graph.launch(stream)
    stream.synchronize()
    assert first >= 0
    assert end.elapsed_since(start) >= 0


def record_raw(stream: Stream, work: Any) -> Any:
    """A graph that another library has recorded, as a CUgraph."""
    driver = pytest.importorskip("cuda.bindings.driver")
    driver.cuStreamBeginCapture(stream.raw, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    work()
    error, graph = driver.cuStreamEndCapture(stream.raw)
    assert not error
    return graph


def test_a_graph_of_another_library_in_ours(device: Device, fake_cuda: fake.Control) -> None:
    """It is one node, and what comes after it in the stream waits for it."""
    driver = pytest.importorskip("cuda.bindings.driver")
    stream, theirs, order = device.stream(), device.stream(), list[str]()

    def note(what: str, where: Stream) -> None:
        fake_cuda.host_function(where.handle, lambda: order.append(what))

    def both() -> None:
        note("first of theirs", theirs)
        note("second of theirs", theirs)

    raw = record_raw(theirs, both)
    with stream.capture() as graph:
        note("before", stream)
        stream.embed(int(raw))
        note("after", stream)
    assert graph.nodes == 3
    driver.cuGraphDestroy(raw)  # ours has a copy
    for _ in range(2):
        graph.launch(stream)
    stream.synchronize()
    assert order == ["before", "first of theirs", "second of theirs", "after"] * 2
    graph.close()


def test_a_node_that_nothing_follows_is_no_end(device: Device, fake_cuda: fake.Control) -> None:
    """As the fake driver is to see: a node added by hand is not part of the stream until it is told so."""
    driver = pytest.importorskip("cuda.bindings.driver")
    stream = device.stream()
    raw = record_raw(stream, lambda: fake_cuda.host_function(stream.handle, lambda: None))

    def capture() -> None:
        with stream.capture():
            parent = driver.cuStreamGetCaptureInfo(stream.raw)[3]
            assert not driver.cuGraphAddChildGraphNode(parent, [], 0, raw)[0]

    with pytest.raises(CudaError, match="CAPTURE_UNJOINED"):
        capture()
    driver.cuGraphDestroy(raw)


def test_an_allocation_invalidates_a_capture(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(CudaError, match=r"CAPTURE_UNSUPPORTED.*Run it once before capturing"), stream.capture():
        device.allocate(100, "late")
    with stream.capture() as graph:  # the stream is usable again
        pass
    assert graph.nodes == 0


def test_waiting_invalidates_a_capture(device: Device) -> None:
    stream = device.stream()

    def capture() -> None:
        with stream.capture(), contextlib.suppress(CudaError):  # like a library that ignores error codes
            stream.synchronize()

    with pytest.raises(CudaError, match=r"cannot be recorded.*INVALIDATED.*Run the work once before capturing"):
        capture()


def test_freeing_and_other_threads_do_not_invalidate_a_capture(device: Device) -> None:
    both, stream, garbage = Both(device), device.stream(), device.allocate(100, "garbage")

    def allocate() -> None:
        device.use()
        device.allocate(50, "elsewhere").free()

    with stream.capture() as graph:
        both.upload(stream)
        del garbage
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        both.download(stream)
    assert graph.nodes == 2
    graph.launch(stream)
    stream.synchronize()


def test_an_error_inside_a_capture_passes(device: Device) -> None:
    stream = device.stream()
    with pytest.raises(ZeroDivisionError), stream.capture() as graph:
        1 / 0  # noqa: B018
    with pytest.raises(BackendError, match="its capture is unfinished or failed"):
        graph.launch(stream)
    assert not stream.capturing


def test_a_graph_that_cannot_be_made_ready(device: Device, fake_cuda: fake.Control) -> None:
    stream = device.stream()
    fake_cuda.fail("cuGraphInstantiate", 2)
    with pytest.raises(CudaError, match="cuGraphInstantiate failed with CUDA_ERROR_OUT_OF_MEMORY"), stream.capture():
        pass


# -- the cost of a call ---------------------------------------------------------------------------------------------


def test_nothing_but_the_call_itself(device: Device, fake_cuda: fake.Control) -> None:
    """A frame costs one driver call per piece of work."""
    both, stream, event = Both(device), device.stream(), device.event(timing=False)
    fake_cuda.reset_calls()
    fake_cuda.null()
    device.use()
    both.upload(stream)
    stream.record(event)
    event.synchronize()
    names = ("cuCtxSetCurrent", "cuMemcpyHtoDAsync", "cuEventRecord", "cuEventSynchronize")
    assert [fake_cuda.calls(name) for name in names] == [1, 1, 1, 1]
    assert [fake_cuda.calls(name) for name in ("cuCtxPushCurrent", "cuCtxGetCurrent", "cuInit")] == [0, 0, 0]

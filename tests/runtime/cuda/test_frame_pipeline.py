"""The frame path with a network in NumPy: the real kernels, emulated, with the real cuda.bindings and a fake driver.

The reference is the CPU path: `Predictor` with the same network as a CPU backend.

Legend: N images, D detection slots, H x W a frame, S input side.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import fake_cuda as fake
import numpy as np
import pytest
from host_network import CONFIG, SIDE, SIZE, SLOTS, CpuBackend, HostNetwork, at, emulated
from plain_values import check_another_process, check_plain_value, outlive

from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import MaskWindows, PackedMasks
from yolact_deploy.priors import place
from yolact_deploy.runtime.cuda import frame_pipeline as pipeline_module
from yolact_deploy.runtime.cuda.arrays import SharedArray
from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
from yolact_deploy.runtime.cuda.driver import Device, Stream
from yolact_deploy.runtime.cuda.frame_kernels import FrameKernels
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import StageTimer
from yolact_deploy.runtime.tails import DetectionOutputs, DetectSettings
from yolact_deploy.vocabulary import FITS

__all__ = ["emulated"]

pytestmark = [pytest.mark.fake_cuda(memory=256 * 2**20), pytest.mark.usefixtures("emulated")]

SIZES = ((48, 64), (33, 47), (20, 131), (1, 1))


@pytest.fixture
def device() -> Iterator[Device]:
    """The device; a test must free everything on it."""
    device = Device.open(0)
    gc.collect()
    before = device.usage(), device.pinned_usage(), fake.control().leaks()
    yield device
    gc.collect()
    assert (device.usage(), device.pinned_usage(), fake.control().leaks()) == before


def picture(number: int, height: int = 48, width: int = 64) -> Any:
    """A frame whose brightness encodes its number, far from the boundaries between two."""
    frame = np.full((height, width, 3), 16 * (number % 14) + 16, np.uint8)
    frame[:, ::2] -= 2  # on average still the same gray level after rounding
    frame[:, 1::2] += 2
    return frame


def make(
    device: Device, tail: str = "heads", *, nms: str | None = None, graphs: bool = True, **options: Any
) -> Predictor:
    threshold = 0.05 if tail == "heads" else 0.15
    network = HostNetwork(device, tail, **options)
    return Predictor(CudaBackend(network, device, graphs=graphs), score_threshold=threshold, nms=nms)


def reference(tail: str = "heads", *, nms: str | None = None) -> Predictor:
    return Predictor(CpuBackend(tail), score_threshold=0.05 if tail == "heads" else 0.15, nms=nms)


def assert_same(ours: Detections, theirs: Detections) -> None:
    assert len(theirs) > 0, "the test would show nothing"
    assert (ours.height, ours.width) == (theirs.height, theirs.width)
    assert ours.labels.tolist() == theirs.labels.tolist()
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    one, other = ours.masks, theirs.masks
    for i in range(len(ours)):
        union = (one[i] | other[i]).sum()
        assert (one[i] & other[i]).sum() >= 0.999 * union, f"mask {i} of {len(ours)}"


# -- the same as the CPU path ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["heads", "functions"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bindable": False},
        {"capturable": False},
        {"graphs": False},
        {"uncapturable": True, "bindable": False},
    ],
    ids=lambda options: "-".join(options) or "graph",
)
def test_frames_of_several_sizes(device: Device, tail: str, options: Any) -> None:
    expected = reference(tail)
    with make(device, tail, **options) as model:
        for round_ in range(4):  # directly, captured, and from the graph, in both slots
            for number, size in enumerate(SIZES):
                frame = picture(number + round_, *size)
                assert_same(model(frame), expected(frame))


@pytest.mark.parametrize("tail", ["heads", "functions"])
@pytest.mark.parametrize("fit", FITS)
def test_inputs_of_another_shape(device: Device, tail: str, fit: str) -> None:
    """Frames of several ratios in one batch, each placed in the input by its fit."""
    config = CONFIG.with_input((64, 96), fit=fit)
    expected = Predictor(CpuBackend(tail, config=config), score_threshold=0.05 if tail == "heads" else 0.15)
    frames = [picture(i + 3, *size) for i, size in enumerate(SIZES)]
    with make(device, tail, max_batch=len(frames), config=config) as model:
        for _ in range(3):
            for ours, frame in zip(model(frames), frames, strict=True):
                assert_same(ours, expected(frame))
        one = model.on_device(frames[0])
        assert (one.height, one.width) == frames[0].shape[:2]
        assert one.placement == place(frames[0].shape[0], frames[0].shape[1], config)


@pytest.mark.parametrize("tail", ["heads", "functions"])
@pytest.mark.parametrize("fixed", [True, False])
def test_batches(device: Device, tail: str, fixed: bool) -> None:
    """Lists longer than a batch, with a last batch that is filled up; mixed sizes in one batch."""
    expected = reference(tail)
    frames = [picture(i, *SIZES[i % 3]) for i in range(7)]
    with make(device, tail, max_batch=3, fixed_batch=fixed) as model:
        for _ in range(3):
            for ours, frame in zip(model(frames), frames, strict=True):
                assert_same(ours, expected(frame))
        assert_same(model(frames[4]), expected(frames[4]))


@pytest.mark.parametrize("nms", ["fast", "cross-class", "traditional"])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_settings(device: Device, nms: str, threshold: float) -> None:
    config = dataclasses.replace(CONFIG, top_k=30, max_detections=50)  # enough that some score low
    expected, frame = Predictor(CpuBackend(config=config), nms=nms), picture(3)
    with make(device, nms=nms, config=config) as model:
        model.score_threshold = expected.score_threshold = threshold
        for _ in range(3):
            assert_same(model(frame), expected(frame))
        assert ("copy" in model.timings) == (nms != "traditional"), "which runs on the host"


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_half_precision_masks(device: Device, tail: str) -> None:
    expected = reference(tail)
    with make(device, tail, mask_dtype="float16") as model:
        for number in range(4):
            ours, theirs = model(picture(number)), expected(picture(number))
            assert ours.labels.tolist() == theirs.labels.tolist()
            assert ((ours.masks & theirs.masks).sum() / (ours.masks | theirs.masks).sum()) > 0.99


@pytest.mark.parametrize("bindable", [True, False])
def test_mask_scores(device: Device, bindable: bool) -> None:
    """Mask scores of a network that has them arrive with the boxes, and stay on the device with them."""
    config = dataclasses.replace(CONFIG, mask_iou=True)
    expected = Predictor(CpuBackend("functions", config=config))
    with make(device, "functions", bindable=bindable, config=config, max_batch=2) as model:
        for number in range(4):
            frames = [picture(number), picture(number + 1)]
            for ours, frame in zip(model(frames), frames, strict=True):
                theirs = expected(frame)
                assert_same(ours, theirs)
                assert theirs.mask_scores is not None
                assert ours.mask_scores is not None
                np.testing.assert_array_equal(ours.mask_scores, theirs.mask_scores)
                assert len(ours.mask_scores) == len(ours)
        found = model.on_device(picture(2))
        assert found.mask_scores is not None
        assert found.mask_scores.shape == (SLOTS,)
        outputs = model.backend.run(model.preprocess([picture(2)]))
        assert isinstance(outputs, DetectionOutputs)
        assert outputs.mask_scores is not None
        assert outputs.mask_scores.shape == (1, SLOTS)
    with make(device, "functions") as model:
        assert model(picture(1)).mask_scores is None
        assert model.on_device(picture(1)).mask_scores is None


def test_what_scores_too_low_is_not_pasted(device: Device) -> None:
    config = dataclasses.replace(CONFIG, top_k=30, max_detections=50)
    with make(device, config=config) as model:
        hook = model.backend.frames
        assert hook is not None
        for threshold in (0.0, 0.3, 0.9):
            (found,) = hook.submit([picture(3)], DetectSettings(threshold, "fast")).result()
            assert isinstance(found.masks, PackedMasks)
            windows = found.masks.windows
            assert len(found.masks.bits) == (windows[:, 3] * windows[:, 4]).sum() > 0


def test_nothing_found(device: Device) -> None:
    with make(device) as model:
        model.score_threshold = 0.9999
        found = model(picture(0))
        assert len(found) == 0
        assert found.masks.shape == (0, 48, 64)
        assert found.packed_masks().shape == (0, 48, 8)


def test_the_network_sees_resized_frames(device: Device) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES[:3]]
    with make(device, max_batch=3) as model:
        model(frames)
        for seen, frame in zip(model.backend.network.seen[-1], frames, strict=True):  # type: ignore[attr-defined]
            resized = cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
            assert np.abs(seen.astype(int) - resized).max() <= 1


def test_frames_that_are_not_contiguous(device: Device) -> None:
    wide = np.concatenate([picture(5), picture(1)], axis=1)
    with make(device) as model:
        assert_same(model(wide[:, :64]), reference()(picture(5)))
        assert_same(model(wide[::-1, :64]), reference()(picture(5)))


@pytest.mark.parametrize("tail", ["heads", "functions"])
@pytest.mark.parametrize("bindable", [True, False])
def test_run_gives_the_outputs_of_the_network(device: Device, tail: str, bindable: bool) -> None:
    images = np.stack([cv2.resize(picture(i), (SIZE, SIZE)) for i in range(2)])
    with make(device, tail, max_batch=2, bindable=bindable) as model:
        for ours, theirs in zip(model.backend.run(images), CpuBackend(tail).run(images), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for wrong in (images[:0], images.astype(np.float32), images[:, :5], np.concatenate([images, images])):
            with pytest.raises(InputError, match=r"expected images uint8 \[1..2, 64, 64, 3\]"):
                model.backend.run(wrong)


# -- results as values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_detections_outlive_their_model(device: Device, tail: str) -> None:
    detections = outlive(lambda: make(device, tail), picture(3))
    assert_same(detections, reference(tail)(picture(3)))
    check_plain_value(detections)
    check_another_process([detections])


# -- how much it costs ----------------------------------------------------------------------------------------------


def test_one_launch_and_one_wait_a_frame(device: Device) -> None:
    control = fake.control()
    with make(device) as model:
        for number in range(6):
            model(picture(number))
        control.reset_calls()
        for number in range(4):
            model(picture(number))
        assert control.calls("cuGraphLaunch") == 4
        assert control.calls("cuEventSynchronize") == 4
        for never in ("cuStreamSynchronize", "cuCtxSynchronize", "cuMemAlloc", "cuMemHostAlloc", "cuLaunchKernel",
                      "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamBeginCapture", "cuEventCreate"):  # fmt: skip
            assert control.calls(never) == 0, never


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_marks_are_recorded_only_for_times_of_stages(device: Device, tail: str) -> None:
    """A frame is an upload, a resize, the network, NMS and masks (4), and paste (2): all else would be overhead."""
    control = fake.control()
    control.reset_calls()
    with make(device, tail) as model:
        for number in range(6):
            model(picture(number))
        plain = model.backend.describe()["graph_nodes"]
        assert plain == (9 if tail == "heads" else 5)
        assert control.calls("cuEventRecordWithFlags") == 0
        model.stage_times = True
        for number in range(6):
            model(picture(number))
        assert model.backend.describe()["graph_nodes"] == plain + len(model.stages) - 3, "a mark each, and the start"


def test_frames_of_new_sizes_share_a_graph(device: Device) -> None:
    """The work after the resize is one graph for all sizes: pictures of a dataset are not captured one by one."""
    control = fake.control()
    with make(device) as model:
        for number in range(6):
            model(picture(number, 40 + number, 50))
        control.reset_calls()
        for number in range(6):
            model(picture(number, 50, 40 + number))
        assert control.calls("cuStreamBeginCapture") == 0
        assert control.calls("cuGraphLaunch") == 6
        assert control.calls("cuLaunchKernel") == 6, "a resize each"


def test_frames_of_one_size_are_resized_in_one_launch(device: Device) -> None:
    control = fake.control()
    launches = []
    with make(device, graphs=False, max_batch=3) as model:
        for sizes in ((48,), (48, 48, 48), (48, 30, 30)):
            control.reset_calls()
            detections = model([picture(number, height) for number, height in enumerate(sizes)])
            launches.append(control.calls("cuLaunchKernel"))
            for number, height in enumerate(sizes):
                assert_same(detections[number], reference()(picture(number, height)))
    assert launches == [launches[0], launches[0], launches[0] + 1]


def test_describe(device: Device) -> None:
    def graphs(**options: Any) -> Any:
        with make(device, **options) as model:
            for number in range(6):
                model(picture(number))
            return model.backend.describe()

    plain = graphs()
    assert plain["graphs"] == "whole frame"
    assert plain["graphs_held"] > 0
    assert plain["device_bytes"]["results"] > 0
    assert plain["pinned_bytes"]["packed masks"] > 0
    assert (plain["device"], plain["backend"], plain["tail"]) == ("cuda:0", "host", "heads")
    assert graphs(capturable=False)["graphs"] == "around the network"
    refused = graphs(uncapturable=True)
    assert refused["graphs"] == "around the network"
    assert "waits for the GPU" in refused["graphs_refused"]
    assert graphs(graphs=False)["graphs"] == "off"


def test_timings(device: Device) -> None:
    for tail, network in (("heads", ("network", "nms", "assembly")), ("functions", ("network+nms+assembly",))):
        with make(device, tail) as model:
            assert not model.stage_times
            assert model.stages == ("decode", "copy", "launch", "wait", "read", "detect")
            for number in range(4):
                model(picture(number))
            assert tuple(model.timings) == model.stages
            assert all(model.timings[stage] > 0 for stage in ("copy", "launch", "wait", "read", "detect"))
            model.stage_times = True
            assert model.stages == ("decode", "copy", "upload", "preprocess", *network, "paste", "read", "detect")
            assert tuple(model.timings) == model.stages
            for number in range(4):
                model(picture(number))
            assert tuple(model.timings) == model.stages
            assert all(spent >= 0 for spent in model.timings.values())
            assert all(model.timings[stage] > 0 for stage in ("copy", "preprocess", *network, "paste", "detect"))


def test_timings_of_resized_images(device: Device) -> None:
    """NMS variants without a kernel run on the host, on the network's outputs."""
    with make(device, nms="traditional") as model:
        assert model.stages == (
            "decode", "preprocess", "upload", "network", "download", "nms", "assembly", "detect", "paste",
        )  # fmt: skip
        model(picture(3))
        assert tuple(model.timings) == model.stages
        assert all(model.timings[stage] > 0 for stage in ("upload", "network", "download", "nms", "assembly"))
    with make(device, "functions") as model:
        timer = StageTimer()
        model.backend.run_timed(model.preprocess([picture(3)]), timer)
        assert tuple(timer.spent) == model.backend.run_stages == ("upload", "network+nms+assembly", "download")


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stage"), [("resize", "preprocess"), ("nms", "nms"), ("masks", "assembly"), ("paste", "paste")]
)
def test_a_slow_kernel_shows_in_its_stage(
    device: Device, monkeypatch: pytest.MonkeyPatch, graphs: bool, kernel: str, stage: str
) -> None:
    """Two models in turns, of which one takes 150 ms more for it: the least that its stage can then take, in each call.

    Other programs only make stages longer, so of the other stages the shortest of all calls counts.
    """
    more = 150
    plan, slow = getattr(FrameKernels, kernel), False

    class Slowed:
        def __init__(self, plan: Any) -> None:
            self.plan = plan

        def enqueue(self, stream: Any) -> None:
            self.plan.enqueue(stream)
            if slow:
                fake.control().sleep(stream.handle, more)

    monkeypatch.setattr(FrameKernels, kernel, lambda *args, **options: Slowed(plan(*args, **options)))
    stages: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    wholes: dict[bool, list[float]] = {False: [], True: []}
    with make(device, graphs=graphs) as usual, make(device, graphs=graphs) as slowed:
        usual.stage_times = slowed.stage_times = True
        for _ in range(6):  # in each slot directly, captured, and from the graph
            for slow, model in ((False, usual), (True, slowed)):
                start = time.perf_counter()
                model(picture(3))
                wholes[slow].append((time.perf_counter() - start) * 1e3)
                stages[slow].append(model.timings)
    assert min(call[stage] for call in stages[True]) >= more, "in every call, however it ran"
    for slow in (False, True):
        for call, whole in zip(stages[slow], wholes[slow], strict=True):
            assert sum(call.values()) <= whole + 1, "the stages are parts of the call, and do not overlap"
    least = {slow: {name: min(call[name] for call in calls) for name in calls[0]} for slow, calls in stages.items()}
    assert least[False][stage] < more, "it is quick where nothing slows it"
    assert all(value < more for name, value in least[True].items() if name != stage), "the time is in no other stage"


# -- overlap --------------------------------------------------------------------------------------------------------


def test_stream(device: Device) -> None:
    expected = reference()
    frames = [picture(i, *SIZES[i // 4 % 2]) for i in range(12)]
    with make(device) as model:
        results = list(model.stream(frames))
        for (frame, ours), given in zip(results, frames, strict=True):
            assert frame is given
            assert_same(ours, expected(frame))


def test_an_upload_does_not_wait_for_the_network_before(device: Device) -> None:
    settings = DetectSettings(0.05, "fast")
    with make(device) as model:
        hook, network = model.backend.frames, model.backend.network  # type: ignore[attr-defined]
        assert hook is not None
        for number in range(2):
            model(picture(number))  # which makes room in both slots
        network.seen.clear()
        tickets = [hook.submit([picture(i)], settings) for i in (1, 2)]
        hook._work.uploads.synchronize()  # type: ignore[attr-defined]
        assert network.seen == [], "nothing else had to run for it"
        slot = hook._slots[1]  # type: ignore[attr-defined]
        pixels = at(slot._frames.pointer + slot._header, (48, 64, 3), np.uint8)
        np.testing.assert_array_equal(pixels, picture(2))
        for number, ticket in zip((1, 2), tickets, strict=True):
            np.testing.assert_array_equal(ticket.result()[0].scores, reference()(picture(number)).scores)


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_the_network_does_not_wait_for_the_results_before(device: Device, tail: str) -> None:
    settings = DetectSettings(0.05 if tail == "heads" else 0.15, "fast")
    with make(device, tail) as model:
        hook, network = model.backend.frames, model.backend.network  # type: ignore[attr-defined]
        assert hook is not None
        tickets = [hook.submit([picture(i)], settings) for i in (1, 2)]
        tickets[0].result()
        tickets.append(hook.submit([picture(3)], settings))
        with device:
            hook.stream.synchronize()  # type: ignore[attr-defined]
        assert len(network.seen) == 3
        second = hook._slots[1]  # type: ignore[attr-defined]
        assert second.host["wanted"].tolist() == [-1], "the second batch is not pasted yet"
        for number, ticket in zip((1, 2, 3), tickets, strict=True):
            np.testing.assert_array_equal(ticket.result()[0].scores, reference(tail)(picture(number)).scores)


def test_without_its_events_the_streams_would_not_be_in_order(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of overlap can fail."""
    frames = [picture(i) for i in range(4)]
    expected = [reference()(frame).scores.tolist() for frame in frames]

    def scores() -> list[Any]:
        with make(device) as model:
            return [found.scores.tolist() for found in model(frames)]

    assert scores() == expected
    monkeypatch.setattr(Stream, "wait", lambda self, event: None)
    assert scores() != expected


def test_stages_are_timed_one_batch_after_another(device: Device) -> None:
    expected = reference()
    with make(device) as model:
        model.stage_times = True
        for number, (_, found) in enumerate(model.stream([picture(i) for i in range(6)])):
            assert_same(found, expected(picture(number)))
            assert tuple(model.timings) == model.stages
            assert all(model.timings[stage] > 0 for stage in ("preprocess", "network", "nms", "assembly", "paste"))


@pytest.mark.parametrize("call", ["cuMemcpyHtoDAsync", "cuStreamWaitEvent", "cuLaunchKernel"])
def test_a_failure_in_the_middle_of_overlapping_batches(device: Device, call: str) -> None:
    """What was enqueued of the batch that failed is waited for; the others are not harmed."""
    settings, control = DetectSettings(0.05, "fast"), fake.control()
    with make(device, graphs=False) as model:
        hook = model.backend.frames
        assert hook is not None
        model(picture(0))
        first = hook.submit([picture(1)], settings)
        control.fail(call, 999)
        try:
            with pytest.raises(BackendError, match=f"{call} failed with CUDA_ERROR_UNKNOWN"):
                hook.submit([picture(2)], settings)
        finally:
            control.fail(call, 999, 0)
        for number in (3, 4, 5):
            assert_same(model(picture(number)), reference()(picture(number)))
        np.testing.assert_array_equal(first.result()[0].scores, reference()(picture(1)).scores)


def test_results_are_available_at_any_time(device: Device) -> None:
    """A slot that later frames need first hands its results to their ticket."""
    expected, settings = reference(), DetectSettings(0.05, "fast")
    frames = [picture(i) for i in range(7)]
    with make(device) as model:
        hook = model.backend.frames
        assert hook is not None
        tickets = [hook.submit([frame], settings) for frame in frames]
        for index in (6, 0, 5, 1, 4, 2, 3):
            (found,) = tickets[index].result()
            np.testing.assert_array_equal(found.scores, expected(frames[index]).scores)
            assert tickets[index].result()[0] is found, "asking again gives the same"


def test_results_without_a_copy(device: Device) -> None:
    with make(device) as model:
        hook = model.backend.frames
        assert hook is not None
        settings = DetectSettings(0.05, "fast")
        copied = hook.submit([picture(1)], settings).result()[0].masks
        shared = hook.submit([picture(1)], settings).result(copy=False)[0].masks
        assert isinstance(copied, PackedMasks)
        assert isinstance(shared, PackedMasks)
        np.testing.assert_array_equal(copied.packed(), shared.packed())
        slots = hook._slots  # type: ignore[attr-defined]
        assert not any(np.shares_memory(copied.bits, slot.bits) for slot in slots)
        assert any(np.shares_memory(shared.bits, slot.bits) for slot in slots)


def test_threads(device: Device) -> None:
    expected = {i: reference()(picture(i)) for i in range(8)}
    with make(device, max_batch=2) as model, ThreadPoolExecutor(4) as pool:
        work = [i % 8 for i in range(48)]
        for number, found in zip(work, pool.map(lambda i: model(picture(i)), work), strict=True):
            assert_same(found, expected[number])


def test_several_models(device: Device) -> None:
    expected = reference(), reference("functions")
    with make(device) as one, make(device, "functions", max_batch=2) as two:
        for number in range(4):
            assert_same(one(picture(number)), expected[0](picture(number)))
            assert_same(two(picture(number)), expected[1](picture(number)))


# -- arrays on the device -------------------------------------------------------------------------------------------


class OnDevice:
    """A frame of another library on the device, through either interface."""

    def __init__(self, device: Device, frame: Any, *, pitch: int = 0, dlpack: bool = False) -> None:
        height, width, _ = frame.shape
        pitch = pitch or 3 * width
        padded = np.zeros((height, pitch), np.uint8)
        padded[:, : 3 * width] = frame.reshape(height, -1)
        with device:
            self._memory = device.allocate(padded.nbytes, "caller")
            self.stream = device.stream()
            self.stream.upload(self._memory.pointer, padded.ctypes.data, padded.nbytes)
            self._padded = padded
        self._shared = SharedArray(self, self._memory.pointer, frame.shape, np.uint8, device, self.stream)
        self._strides = (pitch, 3, 1)
        self.nbytes = frame.nbytes
        if dlpack:
            self.__dlpack__ = self._shared.__dlpack__
            self.__dlpack_device__ = self._shared.__dlpack_device__

    @property
    def __cuda_array_interface__(self) -> Any:
        return {**self._shared.__cuda_array_interface__, "strides": self._strides}


@pytest.mark.parametrize("pitch", [0, 256])
def test_frames_on_the_device(device: Device, pitch: int) -> None:
    expected, control = reference(), fake.control()
    with make(device, max_batch=2) as model:
        frames = [OnDevice(device, picture(i), pitch=pitch) for i in range(3)]
        for _ in range(3):
            for i, frame in enumerate(frames):
                assert_same(model(frame), expected(picture(i)))
        results = model([frames[0], picture(7, 30, 40), frames[2]])
        for ours, theirs in zip(results, (picture(0), picture(7, 30, 40), picture(2)), strict=True):
            assert_same(ours, expected(theirs))
        control.reset_calls()
        model.backend.frames.submit(frames[:1], DetectSettings(0.05, "fast"))  # type: ignore[union-attr]
        assert control.calls("cuMemcpyDtoDAsync") == 0
        assert control.calls("cuMemcpyHtoDAsync") <= 1, "their sizes"
        assert model.backend.describe()["pinned_bytes"]["frames"] < 2 * frames[0].nbytes, "no room for them"
        del frames, frame


def test_frames_live_until_they_were_read(device: Device) -> None:
    with make(device) as model:
        hook, frame = model.backend.frames, OnDevice(device, picture(3))
        assert hook is not None
        watch = weakref.ref(frame)
        ticket = hook.submit([frame], DetectSettings(0.05, "fast"))
        del frame
        gc.collect()
        assert watch() is not None
        np.testing.assert_array_equal(ticket.result()[0].scores, reference()(picture(3)).scores)
        gc.collect()
        assert watch() is None


def test_a_frame_by_dlpack(device: Device) -> None:
    with make(device) as model:
        frame = OnDevice(device, picture(4))
        assert_same(model(frame._shared), reference()(picture(4)))


def test_the_producer_is_waited_for_on_the_device(device: Device) -> None:
    """The work that produces the frame is still running when the frame is submitted."""
    with make(device) as model:
        model(picture(0))
        frame = OnDevice(device, picture(9))
        control, gate, pointer = fake.control(), threading.Event(), frame._memory.pointer
        control.host_function(frame.stream.handle, lambda: gate.wait(5))
        control.host_function(frame.stream.handle, lambda: np.copyto(at(pointer, (48, 64, 3), np.uint8), picture(2)))
        hook = model.backend.frames
        assert hook is not None
        ticket = hook.submit([frame], DetectSettings(0.05, "fast"))
        gate.set()
        np.testing.assert_array_equal(ticket.result()[0].scores, reference()(picture(2)).scores)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 8, 8, 3), "pass a list of its images"), ((8, 8), "expected BGR frames"), ((3, 8, 8), "channels first")],
)
def test_arrays_that_are_no_frames(device: Device, shape: tuple[int, ...], message: str) -> None:
    with make(device) as model:
        memory = device.allocate(1024, "caller")
        array = SharedArray(memory, memory.pointer, shape, np.uint8, device, device.stream())
        with pytest.raises(InputError, match=message):
            model(array)
        assert len(model(picture(1))) > 0, "nothing is held up"
        del memory, array


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_results_on_the_device(device: Device, tail: str) -> None:
    control = fake.control()
    cpu = CpuBackend(tail)
    with make(device, tail, max_batch=2) as model:
        model.on_device([picture(5), picture(5)])  # overwrite the memory
        model.on_device([picture(5), picture(5)])
        control.reset_calls()
        found = model.on_device([picture(0), picture(1, 33, 47)])
        assert control.calls("cuEventSynchronize") <= 1, "nothing but the frames before the last"
        for index, (one, frame) in enumerate(zip(found, (picture(0), picture(1, 33, 47)), strict=True)):
            with device:
                model.backend.frames.stream.synchronize()  # type: ignore[union-attr]
            assert (one.height, one.width) == frame.shape[:2]
            num = int(at(one.num_detections.pointer, (1,), np.int32)[0])
            inputs = model.preprocess([frame])
            theirs = cpu.tail.detect(cpu.run(inputs), 0, DetectSettings(0.05, "fast"))
            assert num >= len(theirs.scores) > 0
            count = len(theirs.scores)
            np.testing.assert_array_equal(at(one.scores.pointer, (SLOTS,), np.float32)[:count], theirs.scores)
            np.testing.assert_array_equal(at(one.boxes.pointer, (SLOTS, 4), np.float32)[:count], theirs.boxes)
            np.testing.assert_array_equal(at(one.labels.pointer, (SLOTS,), np.int32)[:count], theirs.labels)
            masks = at(one.masks.pointer, (SLOTS, SIDE, SIDE), np.float32)[:count]
            assert isinstance(theirs.masks, MaskWindows)
            probabilities: Any = theirs.masks.dense()
            if theirs.masks.logits:
                probabilities = 1 / (1 + np.exp(-probabilities.astype(np.float64)))
            np.testing.assert_allclose(masks, probabilities, atol=1e-3)
            assert one.scores.__cuda_array_interface__["data"][0] == one.scores.pointer, index
        single = model.on_device(picture(3))
        assert single.boxes.shape == (SLOTS, 4)
        assert single.num_detections.shape == (1,)
        assert_same(model(picture(2)), reference(tail)(picture(2)))
        del found, one, single


def test_device_results_outlive_the_model(device: Device) -> None:
    with make(device) as model:
        found = model.on_device(picture(0))
    assert device.usage().get("results", 0) > 0
    at(found.scores.pointer, (SLOTS,), np.float32).sum()
    del found, model
    gc.collect()
    assert device.usage().get("results", 0) == 0


def test_a_ticket_gives_what_it_was_made_for(device: Device) -> None:
    with make(device) as model:
        hook, settings = model.backend.frames, DetectSettings(0.05, "fast")
        assert hook is not None
        with pytest.raises(BackendError, match="see device_result"):
            hook.submit([picture(0)], settings, for_device=True).result()
        with pytest.raises(BackendError, match="see result"):
            hook.submit([picture(0)], settings).device_result()


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["heads", "functions"])
def test_masks_that_find_no_room_are_pasted_again(device: Device, tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "_FULL_MASKS", 0)
    expected, control = reference(tail), fake.control()
    frames = [picture(i, 300, 900) for i in range(4)]
    with make(device, tail) as model:
        waits = []
        for ours, frame in model.stream(frames):  # the next frame is running when the previous one is pasted again
            control.reset_calls()
            waits.append(frame)
            assert_same(frame, expected(ours))
        before = model.backend.describe()["pinned_bytes"]["packed masks"]
        for frame in frames:
            control.reset_calls()
            assert_same(model(frame), expected(frame))
            assert control.calls("cuEventSynchronize") == 1, "there is room now"
        assert model.backend.describe()["pinned_bytes"]["packed masks"] == before


def test_larger_and_smaller_frames_in_turn(device: Device) -> None:
    expected = reference()
    with make(device) as model:
        for number, size in enumerate([(8, 8), (200, 300), (9, 9), (400, 500), (8, 8), (400, 500), (8, 8)]):
            assert_same(model(picture(number, *size)), expected(picture(number, *size)))


def test_closing(device: Device) -> None:
    model = make(device)
    hook, network = model.backend.frames, model.backend.network  # type: ignore[attr-defined]
    assert hook is not None
    ticket = hook.submit([picture(1)], DetectSettings(0.05, "fast"))
    kept = model(picture(2))
    model.close()
    model.close()
    assert network.closed == 1
    assert len(ticket.result()[0].scores) > 0, "what was under way is not lost"
    assert len(kept.masks) == len(kept)
    with pytest.raises(BackendError, match="closed"):
        model(picture(0))
    with pytest.raises(BackendError, match="this model is closed"):
        hook.submit([picture(0)], DetectSettings(0.05, "fast"))
    with pytest.raises(BackendError, match="this model is closed"):
        model.backend.run(np.zeros((1, SIZE, SIZE, 3), np.uint8))


def test_closing_waits_for_calls_in_other_threads(device: Device) -> None:
    model = make(device)
    model(picture(0))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(1000):
                model(picture(number))
        except BackendError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    model.close()
    for thread in threads:
        thread.join()
    assert ["closed" in str(error) for error in errors] == [True] * 3


def test_a_model_that_is_dropped_frees_itself(device: Device) -> None:
    model = make(device)
    model(picture(0))
    hook = model.backend.frames
    assert hook is not None
    hook.submit([picture(1)], DetectSettings(0.05, "fast"))
    network = model.backend.network  # type: ignore[attr-defined]
    del model, hook
    gc.collect()
    network.close()


def test_too_little_memory(device: Device) -> None:
    network = HostNetwork(device, "functions", max_batch=19_000)
    with pytest.raises(BackendError, match=r"out of memory on cuda:0 .* were requested for results"):
        CudaBackend(network, device)
    assert network.closed == 1


# -- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["cuGraphLaunch", "cuEventSynchronize"])
def test_a_failing_call_is_told_and_the_next_frame_works(device: Device, call: str) -> None:
    control = fake.control()
    with make(device) as model:
        for number in range(5):
            model(picture(number))
        control.fail(call, 999)
        with pytest.raises(BackendError, match=f"{call} failed with CUDA_ERROR_UNKNOWN"):
            model(picture(0))
        control.fail(call, 999, 0)
        assert_same(model(picture(3)), reference()(picture(3)))


def test_a_failure_belongs_to_its_own_ticket(device: Device) -> None:
    """A caller that needs the slot does not get another caller's error."""
    settings, control = DetectSettings(0.05, "fast"), fake.control()
    with make(device) as model:
        hook = model.backend.frames
        assert hook is not None
        tickets = [hook.submit([picture(i)], settings) for i in range(2)]
        control.fail("cuEventSynchronize", 999)
        tickets.append(hook.submit([picture(2)], settings))
        with pytest.raises(BackendError, match="CUDA_ERROR_UNKNOWN"):
            tickets[0].result()
        assert len(tickets[1].result()[0].scores) > 0
        assert len(tickets[2].result()[0].scores) > 0


@pytest.mark.parametrize("frames", [[], [picture(0)] * 3])
def test_wrong_batches(device: Device, frames: Any) -> None:
    with make(device, max_batch=2) as model:
        hook = model.backend.frames
        assert hook is not None
        with pytest.raises(InputError, match=f"expected 1 to 2 frames, got {len(frames)}"):
            hook.submit(frames, DetectSettings(0.05, "fast"))
        with pytest.raises(InputError, match="expected an image uint8 BGR"):
            hook.submit([np.zeros((4, 4), np.uint8)], DetectSettings(0.05, "fast"))


# -- other machines -------------------------------------------------------------------------------------------------


@pytest.mark.fake_cuda(integrated=True, memory=64 * 2**20)
def test_where_cpu_and_gpu_share_memory_nothing_is_uploaded(device: Device) -> None:
    assert device.integrated
    expected, control = reference(), fake.control()
    with make(device) as model:
        control.reset_calls()
        for number in range(6):
            assert_same(model(picture(number)), expected(picture(number)))
        assert control.calls("cuMemcpyHtoDAsync") == 0
        assert "frames" not in device.usage()
        assert model.backend.describe()["frames"] == "in place"


@pytest.mark.fake_cuda(integrated=True, memory=64 * 2**20)
def test_where_pinned_memory_is_not_cached_frames_can_be_uploaded(device: Device) -> None:
    expected, control = reference(), fake.control()
    with Predictor(CudaBackend(HostNetwork(device), device, in_place=False), score_threshold=0.05) as model:
        control.reset_calls()
        for number in range(2):
            assert_same(model(picture(number)), expected(picture(number)))
        assert control.calls("cuMemcpyHtoDAsync") == 2
        assert device.usage()["frames"] > 0
        assert model.backend.describe()["frames"] == "uploaded"


@pytest.mark.fake_cuda(devices=2, memory=64 * 2**20)
@pytest.mark.slow
def test_several_devices() -> None:
    one, other = Device.open(0), Device.open(1)
    with make(one) as first, make(other) as second:
        for number in range(4):
            assert_same(first(picture(number)), reference()(picture(number)))
            assert_same(second(picture(number)), reference()(picture(number)))
        assert second.backend.describe()["device"] == "cuda:1"
        frame = OnDevice(one, picture(1))
        assert_same(first(frame), reference()(picture(1)))
        with pytest.raises(InputError, match="on cuda:0 and the model on cuda:1"):
            second(frame)


def test_a_result_requested_in_a_new_thread(device: Device) -> None:
    with make(device) as model, ThreadPoolExecutor(1) as pool:
        hook = model.backend.frames
        assert hook is not None
        for number in range(4):
            ticket = hook.submit([picture(number)], DetectSettings(0.05, "fast"))
            (found,) = pool.submit(ticket.result).result()
            np.testing.assert_array_equal(found.scores, reference()(picture(number)).scores)


@pytest.mark.slow  # a figure of time, which other programs change
def test_python_takes_little_time() -> None:
    """Far less than 0.3 ms per frame; the limit leaves room for a busy machine."""
    code = "import measure_overhead as m, json; print(json.dumps(m.measure(300, (480, 640))['ms_per_frame']))"
    done = fake.run_python(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); {code}")
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout)
    assert times["call"]["python_p50"] < 0.3
    assert times["stream"]["python_p50"] < 0.3

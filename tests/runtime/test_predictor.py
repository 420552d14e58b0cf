"""`Predictor` over a backend that answers from its inputs."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.mask_forms import MaskCrops, PackedMasks
from yolact_deploy.runtime.backend import Backend, FrameHook, FrameTicket
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL
from yolact_deploy.runtime.tails import (
    DetectionOutputs,
    DetectSettings,
    HeadOutputs,
    ImageDetections,
    Outputs,
    require_shapes,
)

SIZE = 64
CONFIG = YolactConfig(image_size=SIZE, num_classes=3, class_names=("low", "middle", "high"))
SLOTS = 5
STAGES = ("decode", "preprocess", NETWORK_WITH_TAIL, "detect", "paste")
HEADS_STAGES = ("decode", "preprocess", "network", "nms", "assembly", "detect", "paste")


class FakeBackend(Backend):
    """Finds one object an image, whose class is the image's brightness in thirds, and a weak one of class 0."""

    name = "fake"
    precision = "fp32"

    def __init__(
        self,
        *,
        heads: bool = False,
        max_batch: int = 1,
        fixed_batch: bool = True,
        input_dtype: str = "uint8",
        cross_class: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.metadata = Metadata(
            config=CONFIG,
            tail="heads" if heads else "functions",
            batch=(1, 1, max_batch),
            input_dtype=input_dtype,
            cross_class=cross_class,
        )
        self.max_batch, self.fixed_batch, self.delay = max_batch, fixed_batch, delay
        self.heads = heads
        self.inputs: list[Any] = []
        self.closed = 0
        self.inside = 0
        self.most_inside = 0

    def run(self, images: Any) -> Outputs:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        time.sleep(self.delay)
        self.inputs.append(images)
        thirds = [min(int(image.mean() / 85.01), 2) for image in images]
        outputs = self.as_heads(thirds) if self.heads else self.as_detections(thirds)
        self.inside -= 1
        return outputs

    def as_detections(self, thirds: list[int]) -> DetectionOutputs:
        num = len(thirds)
        boxes = np.zeros((num, SLOTS, 4), np.float32)
        boxes[:, 0], boxes[:, 1] = [0.25, 0.25, 0.75, 0.75], [0, 0, 0.2, 0.2]
        scores = np.zeros((num, SLOTS), np.float32)
        scores[:, 0], scores[:, 1] = 0.9, 0.1
        scores[:, 2:] = 0.99  # slots past num_detections must not be read
        labels = np.zeros((num, SLOTS), np.int32)
        labels[:, 0] = thirds
        masks = np.zeros((num, SLOTS, 16, 16), np.float16)
        masks[:, 0, 4:12, 4:12] = 1
        return DetectionOutputs(np.full(num, 2, np.int32), boxes, scores, labels, masks)

    def as_heads(self, thirds: list[int]) -> HeadOutputs:
        num = len(thirds)
        boxes = np.zeros((num, SLOTS, 4), np.float32)
        boxes[:, 0], boxes[:, 1] = [0.25, 0.25, 0.75, 0.75], [0, 0, 0.2, 0.2]
        scores = np.zeros((num, SLOTS, 3), np.float32)
        scores[np.arange(num), 0, thirds] = 0.9
        scores[:, 1, 0] = 0.1
        coeff = np.full((num, SLOTS, 4), 5, np.float32)
        return HeadOutputs(boxes, scores, coeff, np.ones((num, 16, 16, 4), np.float32))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def close(self) -> None:
        self.closed += 1


def picture(brightness: int, height: int = 48, width: int = 80) -> Any:
    return np.full((height, width, 3), brightness, np.uint8)


DARK, GRAY, BRIGHT = picture(10), picture(120, 30, 20), picture(250, 99, 101)


@pytest.mark.parametrize("heads", [False, True], ids=["functions", "heads"])
def test_one_image(heads: bool) -> None:
    detections = Predictor(FakeBackend(heads=heads))(BRIGHT)
    assert isinstance(detections, Detections)
    assert detections.names == ["high"]
    assert (detections.height, detections.width) == (99, 101)
    np.testing.assert_allclose(detections.boxes, [[25.25, 24.75, 75.75, 74.25]], rtol=1e-6)
    assert detections.masks[0, 50, 50]
    assert not detections.masks[0, 5, 5]


@pytest.mark.parametrize("heads", [False, True], ids=["functions", "heads"])
@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("fixed_batch", [False, True])
def test_a_list_in_batches(heads: bool, max_batch: int, fixed_batch: bool) -> None:
    backend = FakeBackend(heads=heads, max_batch=max_batch, fixed_batch=fixed_batch)
    images = [DARK, GRAY, BRIGHT, GRAY, DARK]
    results = Predictor(backend)(images)
    assert [detections.names for detections in results] == [["low"], ["middle"], ["high"], ["middle"], ["low"]]
    assert [(detections.height, detections.width) for detections in results] == [image.shape[:2] for image in images]
    assert len(backend.inputs) == -(-5 // max_batch)
    for number, batch in enumerate(backend.inputs):
        real = min(max_batch, 5 - number * max_batch)
        assert batch.shape == (max_batch if fixed_batch else real, SIZE, SIZE, 3)
        assert not batch[real:].any()  # filled up with zeros
        assert batch.flags.c_contiguous


def test_lists_of_one_and_none() -> None:
    model = Predictor(FakeBackend(max_batch=4))
    assert [detections.names for detections in model([DARK])] == [["low"]]
    assert [detections.names for detections in model((BRIGHT, DARK))] == [["high"], ["low"]]
    assert model([]) == []


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("max_batch", [1, 3])
def test_input_dtype(dtype: str, max_batch: int) -> None:
    backend = FakeBackend(input_dtype=dtype, max_batch=max_batch)
    Predictor(backend)([DARK, BRIGHT])
    assert {batch.dtype for batch in backend.inputs} == {np.dtype(dtype)}


def test_paths(tmp_path: Path) -> None:
    path = tmp_path / "bright.png"
    path.write_bytes(cv2.imencode(".png", BRIGHT)[1].tobytes())
    model = Predictor(FakeBackend())
    assert model(path).names == model(str(path)).names == ["high"]
    assert [detections.names for detections in model([path, DARK, str(path)])] == [["high"], ["low"], ["high"]]
    assert model.timings["decode"] > 0


@pytest.mark.parametrize("heads", [False, True], ids=["functions", "heads"])
def test_score_threshold(heads: bool) -> None:
    backend = FakeBackend(heads=heads)
    assert len(Predictor(backend, score_threshold=0.05)(BRIGHT).above(0.05)) == 2
    assert len(Predictor(backend)(BRIGHT)) == 1
    nothing = Predictor(backend, score_threshold=0.95)(BRIGHT)
    assert len(nothing) == 0
    assert nothing.masks.shape == (0, 99, 101)


def test_nms_variant() -> None:
    assert Predictor(FakeBackend()).nms == "fast"
    assert Predictor(FakeBackend(cross_class=True)).nms == "cross-class"
    assert Predictor(FakeBackend(cross_class=True), nms="fast").nms == "fast"
    for nms in ("fast", "cross-class", "traditional"):
        assert Predictor(FakeBackend(heads=True), nms=nms)(BRIGHT).names == ["high"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Predictor(FakeBackend(), nms="soft"), "nms: expected one of fast, cross-class, traditional"),
        (lambda: Predictor(FakeBackend(), score_threshold=1.0), "score_threshold: expected 0 <= value < 1, got 1.0"),
        (lambda: Predictor(FakeBackend(), score_threshold=-0.1), "score_threshold"),
        (lambda: Predictor(FakeBackend())("none.png"), "no such image: none.png"),
        (lambda: Predictor(FakeBackend())(np.zeros((4, 4, 2), np.uint8)), "expected an image uint8 BGR"),
        (lambda: Predictor(FakeBackend())([DARK, DARK.astype(np.float32)]), "got float32"),
        (lambda: Predictor(FakeBackend())([3]), "got int"),  # type: ignore[list-item]
        (lambda: Predictor(FakeBackend())(None), "got NoneType; cv2.imread returns None"),  # type: ignore[call-overload]
        (lambda: Predictor(FakeBackend())([DARK, None]), "got NoneType"),  # type: ignore[list-item]
        (lambda: Predictor(FakeBackend())(3.5), "got float"),  # type: ignore[call-overload]
        (lambda: Predictor(FakeBackend())({"a": DARK}), "got dict"),  # type: ignore[call-overload]
        (lambda: Predictor(FakeBackend())(b"a.png"), "cannot decode image the bytes"),
    ],
)
def test_wrong_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_closing() -> None:
    backend = FakeBackend()
    with Predictor(backend) as model:
        model(DARK)
    assert backend.closed == 1
    model.close()
    assert backend.closed == 1
    with pytest.raises(BackendError, match="closed: load the model again"):
        model(DARK)


@pytest.mark.parametrize(("heads", "stages"), [(False, STAGES), (True, HEADS_STAGES)])
def test_timings(heads: bool, stages: tuple[str, ...]) -> None:
    model, network = Predictor(FakeBackend(heads=heads, delay=0.02)), stages[2]
    assert model.stages == stages
    assert model.timings == dict.fromkeys(stages, 0.0)
    model([DARK, BRIGHT])
    assert tuple(model.timings) == stages
    assert model.timings[network] >= 40
    assert all(model.timings[stage] > 0 for stage in stages if stage not in ("decode", "paste"))
    assert model.timings["decode"] < 1, "arrays are only checked"
    assert model.timings["paste"] == 0
    model.lazy_masks = False
    model.backend.delay = 0.0  # type: ignore[attr-defined]
    detections = model(DARK)
    assert model.timings["paste"] > 0
    assert model.timings[network] < 40, "of the last call only"
    assert isinstance(detections.mask_data, MaskCrops)


def test_warm_up() -> None:
    backend = FakeBackend()
    Predictor(backend).warm_up(3)
    assert len(backend.inputs) == 3


def test_names() -> None:
    model = Predictor(FakeBackend())
    assert model.config is CONFIG
    assert model.class_names == CONFIG.class_names


def test_two_predictors() -> None:
    one, two = Predictor(FakeBackend()), Predictor(FakeBackend(heads=True))
    assert one(DARK).names == two(DARK).names
    one.close()
    assert two(BRIGHT).names == ["high"]


def test_threads_take_turns() -> None:
    backend = FakeBackend(delay=0.002)
    images = [DARK, GRAY, BRIGHT] * 10
    with Predictor(backend) as model, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(model, images))
    assert [detections.names[0] for detections in results] == ["low", "middle", "high"] * 10
    assert backend.most_inside == 1


def test_close_waits_for_the_call_under_way() -> None:
    backend = FakeBackend(delay=0.1)
    model = Predictor(backend)
    thread = threading.Thread(target=model, args=(DARK,))
    thread.start()
    while not backend.inside:
        time.sleep(0.001)
    model.close()
    assert backend.inside == 0
    thread.join()


def test_a_failing_backend_does_not_lock_the_predictor() -> None:
    backend = FakeBackend()
    model = Predictor(backend)
    run = backend.run

    def fail(images: Any) -> Outputs:
        raise BackendError("out of memory")

    backend.run = fail  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="out of memory"):
        model(DARK)
    backend.run = run  # type: ignore[method-assign]
    assert model(DARK).names == ["low"]


@pytest.mark.parametrize(
    ("heads", "name"),
    [(True, "scores"), (True, "coeff"), (True, "proto"), (True, "boxes"), (False, "scores"), (False, "masks")],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite(heads: bool, name: str, value: float) -> None:
    value = np.nan if name == "boxes" else value  # a single box may be infinite
    backend = FakeBackend(heads=heads)
    run = backend.run
    model = Predictor(backend)
    assert model(DARK).names == ["low"]

    def broken(images: Any) -> Any:
        outputs = run(images)
        values = getattr(outputs, name).copy()
        values[0, 0] = value
        return outputs._replace(**{name: values})

    backend.run = broken  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=f"{name} of fake are not finite"):
        model(DARK)


# -- a backend that takes frames as they are ------------------------------------------------------------------------


class OnDevice:
    """An image that is not in host memory."""

    def __init__(self, image: Any) -> None:
        self.image = image

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AssertionError("its data is the hook's business")


class FakeHook(FrameHook):
    """Answers like :class:`FakeBackend`, with masks pasted, and keeps a diary."""

    stages = ("upload", "network")
    depth = 2

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.diary: list[str] = []
        self.batches: list[int] = []

    def serves(self, settings: DetectSettings) -> bool:
        return settings.nms != "traditional"

    def is_device_array(self, value: object) -> bool:
        return isinstance(value, OnDevice)

    def submit(self, frames: Any, settings: DetectSettings, *, for_device: bool = False) -> FrameTicket:
        self.diary.append(f"submit {len(self.batches)}")
        self.batches.append(len(frames))
        images = [frame.image if isinstance(frame, OnDevice) else frame for frame in frames]
        assert all(isinstance(image, np.ndarray) for image in images)
        return FakeTicket(self, len(self.batches) - 1, images, settings, for_device)


class FakeTicket(FrameTicket):
    def __init__(self, hook: FakeHook, number: int, images: Any, settings: DetectSettings, for_device: bool) -> None:
        self.hook, self.number, self.images, self.settings = hook, number, images, settings
        self.for_device = for_device
        self.timings = {"upload": 1.0, "network": 2.0}

    def result(self, *, copy: bool = True) -> list[ImageDetections]:
        assert not self.for_device
        self.hook.diary.append(f"result {self.number}")
        outputs = self.hook.backend.run(self.images)
        results = []
        for index, image in enumerate(self.images):
            detections = self.hook.backend.tail.detect(outputs, index, self.settings)
            height, width, _ = image.shape
            bits = np.full((len(detections.scores), height, 4 * -(-width // 32)), 255, np.uint8)
            windows = np.zeros((len(detections.scores), 6), np.int32)
            windows[:, 2:5] = width, height, -(-width // 32)
            windows[:, 5] = np.arange(len(windows)) * height * windows[:, 4]
            masks = PackedMasks(windows, bits.reshape(-1).view(np.uint32), height, width)
            results.append(ImageDetections(detections.boxes, detections.scores, detections.labels, masks))
        return results

    def device_result(self) -> Any:
        assert self.for_device
        return [("on the device", image.shape) for image in self.images]


def hooked(**options: Any) -> tuple[FakeHook, Predictor]:
    backend = FakeBackend(**options)
    backend.frames = hook = FakeHook(backend)
    return hook, Predictor(backend)


def test_the_hook_gets_frames_as_they_are() -> None:
    hook, model = hooked()
    detections = model(BRIGHT)
    assert (detections.names, detections.height, detections.width) == (["high"], 99, 101)
    assert detections.masks.all()
    assert hook.backend.inputs[0][0] is BRIGHT
    np.testing.assert_array_equal(detections.boxes, Predictor(FakeBackend())(BRIGHT).boxes)


def test_frames_on_the_device() -> None:
    hook, model = hooked(max_batch=2)
    detections = model(OnDevice(GRAY))
    assert isinstance(detections, Detections), "an image on the device is no list of images"
    assert detections.names == ["middle"]
    results = model([OnDevice(DARK), BRIGHT, OnDevice(GRAY)])
    assert [one.names for one in results] == [["low"], ["high"], ["middle"]]
    assert hook.batches == [1, 2, 1]


def test_a_batch_is_submitted_before_the_one_ahead_is_collected() -> None:
    hook, model = hooked(max_batch=2)
    results = model([DARK, GRAY, BRIGHT, GRAY, DARK])
    assert [detections.names for detections in results] == [["low"], ["middle"], ["high"], ["middle"], ["low"]]
    assert hook.diary == ["submit 0", "submit 1", "result 0", "submit 2", "result 1", "result 2"]
    assert model([]) == []


def test_stream_overlaps() -> None:
    hook, model = hooked()
    frames = [DARK, GRAY, BRIGHT]
    results = list(model.stream(frames))
    assert [frame is given for (frame, _), given in zip(results, frames, strict=True)] == [True] * 3
    assert [detections.names for _, detections in results] == [["low"], ["middle"], ["high"]]
    assert hook.diary == ["submit 0", "submit 1", "result 0", "submit 2", "result 1", "result 2"]


def test_stream_without_overlap() -> None:
    hook, model = hooked()
    assert [detections.names for _, detections in model.stream([DARK, BRIGHT], overlap=False)] == [["low"], ["high"]]
    assert hook.diary == ["submit 0", "result 0", "submit 1", "result 1"]


def test_a_stream_that_is_left_early() -> None:
    hook, model = hooked()
    threads = threading.active_count()
    for _, detections in model.stream(DARK for _ in range(1000)):
        assert detections.names == ["low"]
        break
    assert len(hook.diary) == 3
    assert threading.active_count() == threads, "the thread that reads ahead has ended"


def test_timings_of_the_hook() -> None:
    _, model = hooked(max_batch=2)
    assert model.stages == ("decode", "upload", "network", "detect")
    assert model.timings == dict.fromkeys(model.stages, 0.0)
    model([DARK, GRAY, BRIGHT])
    assert tuple(model.timings) == model.stages
    assert (model.timings["upload"], model.timings["network"]) == (2.0, 4.0), "of two batches"
    assert model.timings["detect"] > 0
    for _ in model.stream([DARK]):
        assert model.timings["network"] == 2.0, "of one frame"


def test_settings_that_the_hook_does_not_serve() -> None:
    backend = FakeBackend(heads=True)
    backend.frames = hook = FakeHook(backend)
    model = Predictor(backend, nms="traditional")
    assert model(BRIGHT).names == ["high"]
    assert not hook.diary, "resized images went through run()"
    assert tuple(model.timings) == model.stages == HEADS_STAGES
    with pytest.raises(InputError, match="nms='traditional' runs on the host"):
        model(OnDevice(DARK))
    with pytest.raises(BackendError, match="nms='traditional'"):
        model.on_device(DARK)


def test_results_on_the_device() -> None:
    _, model = hooked(max_batch=2)
    assert model.on_device(OnDevice(DARK)) == ("on the device", DARK.shape)
    assert model.on_device([DARK, BRIGHT]) == [("on the device", DARK.shape), ("on the device", BRIGHT.shape)]
    with pytest.raises(InputError, match="at most 2 images at once"):
        model.on_device([DARK] * 3)
    with pytest.raises(BackendError, match="cannot leave results on a GPU"):
        Predictor(FakeBackend()).on_device(DARK)


def test_wrong_frames_and_closing_with_a_hook() -> None:
    hook, model = hooked()
    with pytest.raises(InputError, match="got float32"):
        model(DARK.astype(np.float32))
    assert not hook.diary
    model.close()
    for use in (lambda: model(DARK), lambda: model.on_device(DARK), lambda: list(model.stream([DARK]))):
        with pytest.raises(BackendError, match="closed: load the model again"):
            use()


def test_a_hook_that_detects_nothing_is_checked_once() -> None:
    hook, model = hooked(heads=True)
    run, broken = hook.backend.run, True

    def finds_nothing(images: Any) -> Any:
        outputs = run(images)
        return outputs._replace(scores=np.full_like(outputs.scores, np.nan if broken else 0))

    hook.backend.run = finds_nothing  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(BackendError, match="scores of fake are not finite"):
            model(DARK)
    broken = False
    calls = []
    for _ in range(3):
        before = len(hook.backend.inputs)
        assert len(model(DARK)) == 0
        calls.append(len(hook.backend.inputs) - before)
    assert calls == [2, 1, 1]


@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 5, 4), (1, 5, 2), (1, 5, 3), (6, 6, 3)],
        [(1, 5, 3), (1, 5, 2), (1, 5, 3), (1, 6, 6, 3)],
        [(1, 5, 4), (1, 4, 2), (1, 5, 3), (1, 6, 6, 3)],
        [(1, 5, 4), (1, 5, 2), (2, 5, 3), (1, 6, 6, 3)],
        [(1, 5, 4), (1, 5, 2), (1, 5, 3), (1, 6, 6, 4)],
        [(1, 5, 4), (1, 5, 2), (1, 5, 3), ()],
    ],
)
def test_outputs_that_do_not_fit_each_other(shapes: list[tuple[int, ...]]) -> None:
    good = [(1, 5, 4), (1, 5, 2), (1, 5, 3), (1, 6, 6, 3)]
    require_shapes(HeadOutputs(*(np.zeros(shape, np.float32) for shape in good)), "x")
    with pytest.raises(BackendError, match="of x does not fit the other outputs"):
        require_shapes(HeadOutputs(*(np.zeros(shape, np.float32) for shape in shapes)), "x")


@pytest.mark.parametrize("place", range(5))
def test_detections_that_do_not_fit_each_other(place: int) -> None:
    shapes: list[tuple[int, ...]] = [(1,), (1, 3, 4), (1, 3), (1, 3), (1, 3, 6, 6)]
    require_shapes(DetectionOutputs(*(np.zeros(shape, np.float32) for shape in shapes)), "x")  # type: ignore[arg-type]
    shapes[place] = (*shapes[place], 2)
    with pytest.raises(BackendError, match="of x does not fit the other outputs"):
        require_shapes(DetectionOutputs(*(np.zeros(shape, np.float32) for shape in shapes)), "x")  # type: ignore[arg-type]

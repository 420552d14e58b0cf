"""`Predictor` over a backend that answers from its inputs."""

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
from yolact_deploy.runtime.backend import Backend, DetectionOutputs, HeadOutputs, Outputs
from yolact_deploy.runtime.predictor import STAGES, Predictor

SIZE = 64
CONFIG = YolactConfig(image_size=SIZE, num_classes=3, class_names=("low", "middle", "high"))
SLOTS = 5


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


DARK, GREY, BRIGHT = picture(10), picture(120, 30, 20), picture(250, 99, 101)


@pytest.mark.parametrize("heads", [False, True], ids=["functions", "heads"])
def test_one_image(heads: bool) -> None:
    found = Predictor(FakeBackend(heads=heads))(BRIGHT)
    assert isinstance(found, Detections)
    assert found.names == ["high"]
    assert (found.height, found.width) == (99, 101)
    np.testing.assert_allclose(found.boxes, [[25.25, 24.75, 75.75, 74.25]], rtol=1e-6)
    assert found.masks[0, 50, 50]
    assert not found.masks[0, 5, 5]


@pytest.mark.parametrize("heads", [False, True], ids=["functions", "heads"])
@pytest.mark.parametrize("max_batch", [1, 2, 3, 8])
@pytest.mark.parametrize("fixed_batch", [False, True])
def test_a_list_in_batches(heads: bool, max_batch: int, fixed_batch: bool) -> None:
    backend = FakeBackend(heads=heads, max_batch=max_batch, fixed_batch=fixed_batch)
    images = [DARK, GREY, BRIGHT, GREY, DARK]
    results = Predictor(backend)(images)
    assert [found.names for found in results] == [["low"], ["middle"], ["high"], ["middle"], ["low"]]
    assert [(found.height, found.width) for found in results] == [image.shape[:2] for image in images]
    assert len(backend.inputs) == -(-5 // max_batch)
    for number, batch in enumerate(backend.inputs):
        real = min(max_batch, 5 - number * max_batch)
        assert batch.shape == (max_batch if fixed_batch else real, SIZE, SIZE, 3)
        assert not batch[real:].any()  # filled up with zeros
        assert batch.flags.c_contiguous


def test_lists_of_one_and_none() -> None:
    model = Predictor(FakeBackend(max_batch=4))
    assert [found.names for found in model([DARK])] == [["low"]]
    assert [found.names for found in model((BRIGHT, DARK))] == [["high"], ["low"]]
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
    assert [found.names for found in model([path, DARK, str(path)])] == [["high"], ["low"], ["high"]]
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
        (lambda: Predictor(FakeBackend())(np.zeros((4, 4), np.uint8)), "expected an image uint8 BGR"),
        (lambda: Predictor(FakeBackend())([DARK, DARK.astype(np.float32)]), "got float32"),
        (lambda: Predictor(FakeBackend())([3]), "got int"),  # type: ignore[list-item]
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


def test_timings() -> None:
    model = Predictor(FakeBackend(delay=0.02))
    assert model.timings == dict.fromkeys(STAGES, 0.0)
    model([DARK, BRIGHT])
    assert tuple(model.timings) == STAGES
    assert 40 <= model.timings["network"] < 2000
    assert model.timings["preprocess"] > 0
    assert model.timings["paste"] == 0
    model.lazy_masks = False
    found = model(DARK)
    assert model.timings["paste"] > 0
    assert model.timings["network"] < 40 + 2000  # of the last call only
    assert "crops" in found.prototype_masks.__dict__


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
    images = [DARK, GREY, BRIGHT] * 10
    with Predictor(backend) as model, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(model, images))
    assert [found.names[0] for found in results] == ["low", "middle", "high"] * 10
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

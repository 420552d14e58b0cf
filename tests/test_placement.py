"""Where pictures lie in the network's input: preprocessing, boxes and masks agree, for each way to fit."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from yolact_deploy import preprocess
from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.detections import Detections
from yolact_deploy.mask_forms import MaskWindows
from yolact_deploy.paste import paste_windows
from yolact_deploy.preprocess import fit_image, resize_image
from yolact_deploy.priors import Placement, place, place_in
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import DetectionOutputs, numpy_tail
from yolact_deploy.vocabulary import FITS

#: height and width of pictures: five ratios
PICTURES = [(240, 320), (320, 240), (200, 600), (600, 200), (300, 300)]
INPUTS = [320, (256, 448), (448, 256)]


@pytest.mark.parametrize("shape", [(64, 64), (64, 112), (112, 64)])
@pytest.mark.parametrize("picture", [(37, 53), (53, 37), (1, 500), (500, 1), (64, 112)])
def test_canvas(picture: tuple[int, int], shape: tuple[int, int]) -> None:
    stretched, boxed, padded = (place_in(*picture, shape, fit) for fit in FITS)
    assert stretched == Placement.whole(*picture)
    assert boxed[:4] == padded[:4]
    assert boxed.canvas_height == picture[0] or boxed.canvas_width == picture[1]
    assert boxed.canvas_width == pytest.approx(boxed.canvas_height * shape[1] / shape[0], abs=1)
    assert (padded.top, padded.left) == (0, 0)
    for before, side, canvas in zip(boxed[4:], picture, boxed[2:4], strict=True):
        assert 0 <= canvas - side - 2 * before <= 1


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("fit", ["letterbox", "pad"])
@pytest.mark.parametrize("size", [100, (80, 144), (144, 80)], ids=str)
@pytest.mark.parametrize("picture", [(37, 53), (53, 37), (20, 400), (300, 20)], ids=str)
def test_image(picture: tuple[int, int], size: Any, fit: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canvas drawn in full and resized, also where it is too large to be drawn."""
    config = YolactConfig(image_size=size, fit=fit)
    image = np.random.default_rng(0).integers(0, 256, (*picture, 3), np.uint8)
    where = place(*picture, config)
    color = (104, 117, 124) if dtype == "uint8" else (103.94, 116.78, 123.68)
    canvas = np.empty((where.canvas_height, where.canvas_width, 3), dtype)
    canvas[...] = color
    canvas[where.top : where.top + picture[0], where.left : where.left + picture[1]] = image
    expected = cv2.resize(canvas, config.input_shape[::-1])
    np.testing.assert_array_equal(fit_image(image, config, dtype), expected)
    monkeypatch.setattr(preprocess, "_MOST_CANVAS", 0)
    sampled = fit_image(image, config, dtype)
    assert sampled.dtype == expected.dtype
    np.testing.assert_allclose(sampled.astype(float), expected, atol=1 if dtype == "uint8" else 2e-3)


def test_a_long_picture_takes_no_memory_for_its_canvas() -> None:
    config = YolactConfig(image_size=64, fit="letterbox")
    image = np.full((2, 60_000, 3), 255, np.uint8)
    shown = fit_image(image, config)
    assert shown.shape == (64, 64, 3)
    np.testing.assert_array_equal(shown[0, 0], (104, 117, 124))


@pytest.mark.parametrize("size", INPUTS, ids=str)
def test_stretch_is_a_plain_resize(size: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    config = YolactConfig(image_size=size)
    np.testing.assert_array_equal(fit_image(image, config), resize_image(image, size))


class Finder(Backend):
    """Finds what is white: its box, and its mask as the share of white in each prototype pixel."""

    name = "finder"
    precision = "fp32"

    def __init__(self, config: YolactConfig) -> None:
        self.metadata = Metadata(config=config)
        self.tail = numpy_tail(config, heads=False)
        self.max_batch, self.fixed_batch = 1, True

    def run(self, images: Any) -> DetectionOutputs:
        config, (image,) = self.metadata.config, images
        height, width = config.input_shape
        white = (image.astype(np.float32).min(axis=2) / 255 - 0.5).clip(0) * 2
        rows, columns = np.flatnonzero(white.max(axis=1) > 0.5), np.flatnonzero(white.max(axis=0) > 0.5)
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        box /= np.array([width, height, width, height], np.float32)
        mask = cv2.resize(white, config.prototype_shape[::-1], interpolation=cv2.INTER_AREA)
        return DetectionOutputs(
            np.ones(1, np.int32),
            box[None, None],
            np.ones((1, 1), np.float32),
            np.zeros((1, 1), np.int32),
            mask[None, None],
        )

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("corner", ["upper left", "upper right", "lower left", "lower right"])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", INPUTS, ids=str)
@pytest.mark.parametrize("picture", PICTURES, ids=str)
def test_a_rectangle_in_a_corner(picture: tuple[int, int], size: Any, fit: str, corner: str) -> None:
    """Box and mask of a drawn rectangle are within two pixels of where it was drawn."""
    height, width = picture
    h, w = height // 3, width // 3
    y, x = (0 if "upper" in corner else height - h), (0 if "left" in corner else width - w)
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    detections = Predictor(Finder(YolactConfig(image_size=size, fit=fit)))(image)
    assert len(detections) == 1
    np.testing.assert_allclose(detections.boxes[0], (x, y, x + w, y + h), atol=2)
    mask = detections.masks[0]
    assert mask.shape == picture
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    ends = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose(ends, (x, y, x + w, y + h), atol=2)
    inner = mask[y + 2 : y + h - 2, x + 2 : x + w - 2]
    assert inner.mean() > 0.99, "its own corners may be round"


def test_boxes_in_the_padding_are_empty() -> None:
    where = place_in(100, 300, (64, 64), "letterbox")
    boxes = np.array([[0.1, 0.0, 0.9, 0.2], [0.1, 0.9, 0.9, 1.0], [0.2, 0.0, 0.5, 1.0]], np.float32)
    found = Detections.from_normalized(
        boxes, np.ones(3, np.float32), np.zeros(3, np.int64), np.ones((3, 16, 16), np.float32),
        class_names=("a",), height=100, width=300, placement=where,
    )  # fmt: skip
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    np.testing.assert_allclose(sides, [[240, 0], [240, 0], [90, 100]], atol=1e-3)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (300, 100, 300, 100)).all()


def test_paste_is_a_part_of_the_canvas() -> None:
    masks = MaskWindows.from_dense(np.random.default_rng(0).random((4, 20, 12), np.float32))
    where = place_in(70, 90, (80, 48), "letterbox")
    whole = paste_windows(masks, where.canvas_height, where.canvas_width).full()
    part = paste_windows(masks.placed(where), 70, 90).full()
    np.testing.assert_array_equal(part, whole[:, where.top : where.top + 70, where.left : where.left + 90])

"""Pictures padded to a square on the right or below: boxes and masks land on the pixels of the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolact_deploy.artifact import Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.preprocess import fit_image, resize_image
from yolact_deploy.runtime.backend import Backend
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.tails import HeadOutputs

INPUT = 128
CONFIG = YolactConfig(image_size=INPUT, num_classes=1, class_names=("box",), fit="pad", num_prototypes=1)
SIDE = 32


class FindsBright(Backend):
    """A network that detects the bright rectangle in its input, and whose prototype is that rectangle."""

    name, precision = "bright", "fp32"

    def __init__(self) -> None:
        self.metadata = Metadata(config=CONFIG, tail="heads", input_dtype="float32")

    def run(self, images: Any) -> HeadOutputs:
        (image,) = images
        bright = image[..., 0] > 200
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        box = (np.array(edges, np.float32) / INPUT).astype(np.float32)
        step = INPUT // SIDE
        proto = np.where(bright[step // 2 :: step, step // 2 :: step], 20.0, -20.0).astype(np.float32)
        ones = np.ones((1, 1, 1), np.float32)
        return HeadOutputs(box[None, None], 0.9 * ones, ones, proto[None, ..., None])

    def describe(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (90, 360), (360, 120), (128, 128)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_rectangle_in_a_corner_is_found(shape: tuple[int, int], corner: tuple[int, int], lazy: bool) -> None:
    height, width = shape
    h, w = height // 2, width // 2
    y, x = corner[0] * (height - h), corner[1] * (width - w)
    image = np.zeros((height, width, 3), np.uint8)
    image[y : y + h, x : x + w] = 255
    (found,) = [Predictor(FindsBright(), lazy_masks=lazy)(image)]
    assert len(found) == 1
    slack = 2 * max(shape) / INPUT
    np.testing.assert_allclose(found.boxes[0], [x, y, x + w, y + h], atol=slack)
    (mask,) = found.masks
    assert mask.shape == shape
    truth = image[..., 0] > 0
    coarse = 2 * max(shape) / SIDE  # pixels of a prototype, at the rectangle's edges
    assert (mask != truth).sum() <= coarse * (h + w) * 2
    assert (mask & truth).sum() >= 0.8 * truth.sum()


def test_the_padding_is_the_mean_color_on_the_right_or_below() -> None:
    image = np.full((64, 128, 3), 255, np.uint8)
    fitted = fit_image(image, CONFIG, "float32")
    assert fitted.shape == (128, 128, 3)
    assert (fitted[:60] == 255).all()
    np.testing.assert_allclose(fitted[70:], np.broadcast_to(np.array(CONFIG.pixel_mean, np.float32), (58, 128, 3)))
    np.testing.assert_array_equal(fit_image(image, CONFIG), np.rint(fitted).astype(np.uint8))
    square = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fit_image(square, CONFIG), resize_image(square, 128))

"""Drawing: what is tinted, what is left alone, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolact_deploy.config import get_config
from yolact_deploy.detections import Detections
from yolact_deploy.draw import draw_detections, draw_text, instance_color
from yolact_deploy.errors import InputError

HEIGHT, WIDTH = 240, 320
NAMES = get_config("yolact_base").class_names


def make_detections(num: int = 2, height: int = HEIGHT, width: int = WIDTH) -> Detections:
    boxes = np.array([[0.1, 0.2, 0.45, 0.8], [0.5, 0.1, 0.95, 0.9]], np.float32)[:num]
    masks = np.zeros((num, 40, 40), np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, (boxes * 40).astype(int), strict=True):
        mask[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4] = 1
    return Detections.from_normalized(
        boxes,
        np.array([0.87, 0.5], np.float32)[:num],
        np.array([0, 16])[:num],
        masks,
        class_names=NAMES,
        height=height,
        width=width,
    )


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_draws_on_a_copy(image: NDArray[np.uint8]) -> None:
    before = image.copy()
    drawn = draw_detections(image, make_detections())
    assert not np.shares_memory(drawn, image)
    np.testing.assert_array_equal(image, before)
    assert drawn.dtype == np.uint8
    assert drawn.shape == image.shape


def test_masks_are_blended_exactly_and_nothing_else_is_touched(image: NDArray[np.uint8]) -> None:
    detections = make_detections()
    drawn = draw_detections(image, detections, alpha=0.5, labels=False).astype(int)
    for index, mask in enumerate(detections.masks):
        rows, columns = np.nonzero(mask)
        inner = np.zeros_like(mask)  # away from the outline
        inner[rows.min() + 5 : rows.max() - 5, columns.min() + 5 : columns.max() - 5] = True
        expected = image[inner] * 0.5 + np.array(instance_color(index)) * 0.5
        assert np.abs(drawn[inner] - expected).max() <= 1
    outside = np.ones((HEIGHT, WIDTH), bool)
    for x1, y1, x2, y2 in detections.pixel_boxes:
        outside[max(0, y1 - 3) : y2 + 4, max(0, x1 - 3) : x2 + 4] = False
    np.testing.assert_array_equal(drawn[outside], image[outside])


def test_labels_add_ink(image: NDArray[np.uint8]) -> None:
    detections = make_detections()
    assert (draw_detections(image, detections) != draw_detections(image, detections, labels=False)).any()


def test_higher_score_is_on_top(image: NDArray[np.uint8]) -> None:
    masks = np.ones((2, 20, 20), np.float32)
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    scores = np.array([0.2, 0.9], np.float32)
    detections = Detections.from_normalized(
        boxes, scores, np.array([0, 1]), masks, class_names=NAMES, height=HEIGHT, width=WIDTH
    )
    drawn = draw_detections(image, detections, alpha=1.0, labels=False)
    assert drawn[HEIGHT // 2, WIDTH // 2].tolist() == list(instance_color(1))


def test_colors_are_distinct() -> None:
    colors = [instance_color(i) for i in range(100)]
    assert len(set(colors)) == 100
    for first, second in itertools.pairwise(colors):
        assert np.abs(np.subtract(first, second)).max() > 60


def test_nothing_found(image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(draw_detections(image, make_detections(0)), image)


def test_detection_without_mask_pixels(image: NDArray[np.uint8]) -> None:
    empty = Detections.from_normalized(
        np.array([[0.1, 0.1, 0.9, 0.9]], np.float32),
        np.array([0.9], np.float32),
        np.array([3]),
        np.zeros((1, 10, 10), np.float32),
        class_names=NAMES,
        height=HEIGHT,
        width=WIDTH,
    )
    assert (draw_detections(image, empty) != image).any()  # its box


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 3000), (2160, 3840)])
def test_sizes(height: int, width: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    assert draw_detections(picture, make_detections(2, height, width)).shape == picture.shape


def test_method(image: NDArray[np.uint8]) -> None:
    detections = make_detections()
    np.testing.assert_array_equal(detections.draw(image), draw_detections(image, detections))


def test_not_contiguous(image: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(
        draw_detections(image[:, ::-1], make_detections()),
        draw_detections(np.ascontiguousarray(image[:, ::-1]), make_detections()),
    )


def test_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="expected the image of the detections, 320 x 240"):
        draw_detections(image[:-1], make_detections())
    with pytest.raises(InputError, match="uint8 BGR"):
        draw_detections(image[..., 0], make_detections())
    with pytest.raises(InputError, match="alpha"):
        draw_detections(image, make_detections(), alpha=1.5)


# -- in notebooks ---------------------------------------------------------------------------------------------------


def decoded(png: bytes) -> NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.uint8, copy=False)


def test_png_shows_the_detections_on_a_dark_canvas() -> None:
    detections = make_detections()
    shown = decoded(detections._repr_png_())
    np.testing.assert_array_equal(shown, detections.draw(np.full((HEIGHT, WIDTH, 3), 32, np.uint8)))
    assert (shown[0, 0] == 32).all()
    assert (shown[detections.masks[0]] != 32).any(axis=1).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1080, 1920), (360, 640)), ((2000, 1000), (640, 320)), ((1, 1), (1, 1)), ((1, 2000), (1, 640))],
)
def test_png_has_a_largest_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert decoded(make_detections(1, *size)._repr_png_()).shape[:2] == expected


def test_html_lists_the_best_and_escapes_names() -> None:
    detections = make_detections()
    text = detections._repr_html_()
    assert "<td>person</td><td>0.87</td><td>32, 48, 144, 192</td>" in text
    assert "2 detections in 320 x 240 pixels" in text
    png = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert png is not None
    assert base64.b64decode(png[1]) == detections._repr_png_()
    evil = dataclasses.replace(detections, class_names=("<script>&", *NAMES[1:]))
    assert "<td>&lt;script&gt;&amp;</td>" in evil._repr_html_()
    assert "<script>" not in evil._repr_html_()


def test_html_of_many_and_of_none() -> None:
    many = make_detections()[[0, 1] * 15]
    text = many._repr_html_()
    assert text.count("<tr>") == 21
    assert "... and 10 more" in text
    nothing = make_detections()[:0]._repr_html_()
    assert "0 detections" in nothing
    assert "more" not in nothing


@pytest.mark.parametrize("corner", [(50, 60), (-10, -10), (390, 95)])
def test_text_stays_in_its_box_and_the_image(corner: tuple[int, int]) -> None:
    canvas = np.full((100, 400, 3), 128, np.uint8)
    draw_text(canvas, "left 1  right 10", corner, (0, 255, 255), 1.0)
    rows, columns = np.nonzero((canvas != 128).any(axis=2))
    box = canvas[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (box[1:-1, 1:-1] == 0).all(axis=2).any(), "there is ink"
    for border in (box[0], box[-1], box[:, 0], box[:, -1]):
        assert (border == (0, 255, 255)).all()

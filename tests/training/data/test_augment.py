"""Augmentation against the same steps done plainly: expand, crop, mirror, resize, one after another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.instance_table import Objects
from yolact_deploy.datasets.shapes import render
from yolact_deploy.errors import ConfigError
from yolact_deploy.preprocess import fit_image, resize_image
from yolact_deploy.training.data.augment import Augmentation, Colors, make_target
from yolact_deploy.training.data.geometry import View
from yolact_deploy.vocabulary import FITS

SIZE = 96
NO_COLORS: dict[str, Any] = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}


def ellipse(box: Any, points: int = 40) -> NDArray[np.float32]:
    x0, y0, x1, y1 = box
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    xy = [(x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle), (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)]
    return np.stack(xy, axis=1).astype(np.float32)


def encode(mask: NDArray[Any]) -> bytes:
    from pycocotools import mask as coco_mask

    return bytes(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])


def scene(seed: int = 0, *, encoded: bool = False, crowds: int = 0) -> tuple[NDArray[np.uint8], Objects]:
    """A smooth image of 120 x 90 with four ellipses, as polygons or encoded; the last so many are crowds."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (9, 12, 3), np.uint8)
    image = cv2.resize(noise, (120, 90), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    boxes = np.array([[5, 8, 40, 60], [50, 10, 110, 50], [30, 55, 60, 85], [80, 60, 118, 88]], np.float32)
    rings: tuple[tuple[Any, ...], ...] = tuple((ellipse(box),) for box in boxes)
    rle: tuple[bytes, ...] = (b"",) * 4
    if encoded:
        y, x = np.mgrid[:90, :120] + 0.5
        inside = [
            ((x - (a + c) / 2) / (c - a) * 2) ** 2 + ((y - (b + d) / 2) / (d - b) * 2) ** 2 <= 1 for a, b, c, d in boxes
        ]
        rle, rings = tuple(map(encode, inside)), ((),) * 4
    crowd = np.arange(4) >= 4 - crowds
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * np.float32(np.pi / 4)
    return image, Objects(90, 120, boxes, np.arange(4), area, crowd, rings, rle)


def plainly(picture: NDArray[Any], view: View, fill: Any) -> NDArray[Any]:
    """The window cut from a canvas of ``fill`` that is larger than all, mirrored, then resized."""
    pad = 500
    canvas = np.empty((picture.shape[0] + 2 * pad, picture.shape[1] + 2 * pad, *picture.shape[2:]), picture.dtype)
    canvas[:] = fill
    canvas[pad:-pad, pad:-pad] = picture
    window = canvas[view.top + pad : view.bottom + pad, view.left + pad : view.right + pad]
    return cv2.resize(window[:, ::-1] if view.mirrored else window, (view.width, view.height))


def views(objects: Objects, count: int = 60, **settings: Any) -> list[View]:
    rng = np.random.default_rng(5)
    return [Augmentation(size=SIZE, **settings).draw_view(objects, rng) for _ in range(count)]


def test_views_are_of_all_kinds() -> None:
    _, objects = scene()
    found = views(objects, 200)
    assert 60 < sum(view.mirrored for view in found) < 140
    beyond = [v for v in found if v.left < 0 or v.top < 0 or v.right > 120 or v.bottom > 90]
    assert 60 < len(beyond) < 140
    assert max(v.right - v.left for v in found) > 300  # expanded, not cropped
    assert min(v.right - v.left for v in found) < 60
    assert all(0.45 <= (v.bottom - v.top) / (v.right - v.left) <= 2.1 for v in found)


def test_images_are_those_of_the_plain_steps() -> None:
    image, objects = scene()
    settings = Augmentation(size=SIZE, **NO_COLORS)
    for view in views(objects):
        shown = settings.show(image, Colors(), view).astype(int)
        expected = plainly(image.astype(np.float32), view, settings.fill)
        difference = np.abs(shown - expected).max(axis=2)
        # Only at the edge of a window inside the image does it matter whether pixels beyond the window are looked at.
        assert difference[2:-2, 2:-2].max() < 6
        assert difference.mean() < 0.6


@pytest.mark.parametrize("encoded", [False, True])
def test_masks_are_those_of_the_plain_steps(encoded: bool) -> None:
    _, objects = scene(encoded=encoded)
    whole = make_target(objects, View.whole(90, 120))["masks"].numpy()
    for view in views(objects):
        target = make_target(objects, view)
        expected = [plainly(mask.astype(np.float32), view, 0) > 0.5 for mask in whole]
        # Those of whom nothing is seen are left out, so compare by label.
        for label, mask in zip(target["labels"].tolist(), target["masks"].numpy(), strict=True):
            both = (mask & expected[label]).sum()
            either = (mask | expected[label]).sum()
            edge = 2 * np.sqrt(either) * max(view.scale) * 1.5 + 10  # two pixels' worth of the image at the border
            assert either - both < edge
        missing = set(range(4)) - set(target["labels"].tolist())
        assert all(expected[label].sum() < 30 for label in missing)


@pytest.mark.parametrize("encoded", [False, True])
def test_masks_keep_their_area(encoded: bool) -> None:
    _, objects = scene(encoded=encoded)
    for mirrored in (False, True):
        target = make_target(objects, View(-30, -30, 170, 170, 400, 400, mirrored=mirrored))
        np.testing.assert_allclose(target["masks"].sum(dim=(1, 2)), objects.area * 4, rtol=0.02)
        np.testing.assert_allclose(target["area"], objects.area * 4, rtol=1e-6)


def test_objects_are_kept_whose_center_is_shown() -> None:
    _, objects = scene()
    target = Augmentation(size=SIZE).target(objects, View(20, 0, 70, 90, SIZE, SIZE))
    assert target["labels"].tolist() == [0, 2]  # of 1 a part is shown, but its center is at 80


@pytest.mark.parametrize("encoded", [False, True])
def test_the_box_of_a_mask_is_its_box(encoded: bool) -> None:
    _, objects = scene(encoded=encoded)
    settings = Augmentation(size=SIZE, crop=False)
    for seed in range(40):
        view = settings.draw_view(objects, np.random.default_rng(seed))
        target = settings.target(objects, view)
        for mask, box in zip(target["masks"].numpy(), target["boxes"].numpy(), strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(found, box, atol=1.6)


def test_a_crop_cuts_boxes_at_its_border() -> None:
    _, objects = scene()
    view = View(20, 20, 100, 80, SIZE, SIZE)
    target = make_target(objects.select(view.holds_center(objects.boxes)), view)
    assert target["labels"].tolist() == [0, 1, 2, 3]
    scale = np.array([SIZE / 80, SIZE / 60] * 2)
    np.testing.assert_allclose(target["boxes"][0], np.array([0, 0, 20, 40]) * scale, rtol=1e-5)
    np.testing.assert_allclose(target["boxes"][3], np.array([60, 40, 80, 60]) * scale, rtol=1e-5)


def test_mirroring_twice_gives_the_same() -> None:
    _, objects = scene()
    view = View.whole(90, 120, SIZE, SIZE)
    boxes = replace(view, mirrored=True).boxes(objects.boxes)
    again = View(0, 0, SIZE, SIZE, SIZE, SIZE, mirrored=True).boxes(boxes)
    np.testing.assert_allclose(again, view.boxes(objects.boxes), atol=1e-4)


def test_keypoints_go_along_and_change_sides() -> None:
    _, objects = scene()
    keypoints = np.zeros((4, 2, 3), np.float32)
    keypoints[0] = [[10, 20, 2], [30, 20, 1]]
    objects = replace(objects, keypoints=keypoints, keypoint_mirror=(1, 0))
    target = make_target(objects, View(20, 0, 120, 90, 90, 100, mirrored=True))
    # The first is left of the window; the second, 10 pixels into it, is in a mirror the other, 90 into it.
    assert target["keypoints"][0].tolist() == [[90, 20, 1], [0, 0, 0]]
    assert not target["keypoints"][1:].any()


# -- colors --------------------------------------------------------------------------------------------------------


def distorted(image: NDArray[np.uint8], c: Colors) -> NDArray[np.float32]:
    """The steps in the original's order, each alone."""
    values = image.astype(np.float32) + np.float32(c.brightness)
    values = values * np.float32(c.contrast) if c.contrast_first else values
    hsv = cv2.cvtColor(values, cv2.COLOR_BGR2HSV)
    hsv[..., 1] *= c.saturation
    hsv[..., 0] = (hsv[..., 0] + c.hue) % 360
    values = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return np.asarray(values if c.contrast_first else values * np.float32(c.contrast), np.float32)


def test_colors_are_those_of_the_plain_steps() -> None:
    image, _ = scene()
    image[:5] = np.clip(image[:5], 40, None)
    image = np.clip(image, 40, 250)  # where brightness makes values negative, HSV is no plain matter
    rng = np.random.default_rng(0)
    for _ in range(60):
        colors = Colors.draw(Augmentation(), rng)
        np.testing.assert_allclose(colors.apply(image), distorted(image, colors), atol=0.05)


def test_colors_are_drawn_from_their_ranges() -> None:
    rng = np.random.default_rng(0)
    drawn = [Colors.draw(Augmentation(), rng) for _ in range(400)]
    for name, low, high, neutral in (("brightness", -32, 32, 0), ("contrast", 0.5, 1.5, 1), ("hue", -18, 18, 0)):
        values = np.array([getattr(colors, name) for colors in drawn])
        used = values[values != neutral]
        assert 150 < len(used) < 250
        assert low <= used.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < used.max() <= high
    assert 150 < sum(colors.contrast_first for colors in drawn) < 250


def test_gray_levels_are_clipped_or_kept() -> None:
    image = np.full((90, 120, 3), 250, np.uint8)
    view = View.whole(90, 120, SIZE, SIZE)
    bright = Colors(brightness=30.4)
    assert (Augmentation(size=SIZE).show(image, bright, view) == 255).all()
    kept = Augmentation(size=SIZE, dtype="float32").show(image, bright, view)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, 280.4, rtol=1e-6)


# -- the whole ------------------------------------------------------------------------------------------------------


def test_the_same_draw_gives_the_same() -> None:
    image, objects = scene()
    first, same, other = (
        Augmentation(size=SIZE)(image, objects, np.random.default_rng([0, epoch, 7])) for epoch in (3, 3, 4)
    )
    np.testing.assert_array_equal(first[0], same[0])
    assert torch.equal(first[1]["masks"], same[1]["masks"])
    assert not np.array_equal(first[0], other[0])


def test_the_picture_is_not_written_to() -> None:
    image, objects = scene()
    before, boxes = image.copy(), objects.boxes.copy()
    for seed in range(20):
        Augmentation(size=SIZE)(image, objects, np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(objects.boxes, boxes)


def test_an_object_remains_that_is_no_crowd() -> None:
    image, objects = scene(crowds=2)
    for seed in range(60):
        _, target = Augmentation(size=SIZE)(image, objects, np.random.default_rng(seed))
        assert (~target["iscrowd"]).any()
        assert (target["iscrowd"].int().diff() >= 0).all()  # crowds last
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert (sides >= 4 / 550 * SIZE).all()
        assert target["masks"].flatten(1).any(1).all()


@pytest.mark.parametrize("keep", [[], [2, 3]])
def test_images_without_objects_or_with_crowds_only(keep: list[int]) -> None:
    image, objects = scene(crowds=2)
    few = objects.select(np.isin(np.arange(4), keep))
    for seed in range(30):
        shown, target = Augmentation(size=SIZE)(image, few, np.random.default_rng(seed))
        assert shown.shape == (SIZE, SIZE, 3)
        assert shown.std() > 0
        assert target["masks"].shape == (len(target["boxes"]), SIZE, SIZE)


def test_small_objects_are_dropped() -> None:
    image, objects = scene()
    tiny = replace(objects, boxes=objects.boxes.copy())
    tiny.boxes[0] = [10, 10, 10.8, 40]  # less than a pixel, where 4/550 of 120 is 0.87
    _, target = Augmentation(size=SIZE, expand=1, crop=False)(image, tiny, np.random.default_rng(0))
    assert target["labels"].tolist() == [1, 2, 3]


def test_plain_is_the_resize_of_inference() -> None:
    image, objects = scene()
    shown, target = Augmentation.plain(SIZE)(image, objects, np.random.default_rng(0))
    np.testing.assert_array_equal(shown, resize_image(image, SIZE))
    np.testing.assert_allclose(target["boxes"][0], objects.boxes[0] * [0.8, 96 / 90, 0.8, 96 / 90], rtol=1e-5)
    assert len(target["labels"]) == 4


def test_overlaps_hold_a_crop_to_its_objects() -> None:
    _, objects = scene()
    one = objects.select(np.arange(4) == 1)
    settings = Augmentation(size=SIZE, expand=1, mirror=False, crop_overlaps=(0.5,))
    rng = np.random.default_rng(0)
    for _ in range(30):
        view = settings.draw_view(one, rng)
        if view == View.whole(90, 120, SIZE, SIZE):
            continue
        x0, y0, x1, y1 = one.boxes[0]
        inside = max(min(x1, view.right) - max(x0, view.left), 0) * max(min(y1, view.bottom) - max(y0, view.top), 0)
        union = (x1 - x0) * (y1 - y0) + (view.right - view.left) * (view.bottom - view.top) - inside
        assert inside / union >= 0.5


@pytest.mark.parametrize("wrong", [{"size": 8}, {"expand": 0.5}, {"contrast": (2, 1)}, {"dtype": "float16"}])
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_generated_images_take_part() -> None:
    made = render(3, seed=1)
    boxes = []
    for shape in made.shapes:
        rows, columns = np.flatnonzero(shape.mask.any(axis=1)), np.flatnonzero(shape.mask.any(axis=0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    count = len(boxes)
    objects = Objects(
        240, 320, np.array(boxes, np.float32), np.array([s.label for s in made.shapes]), np.ones(count, np.float32),
        np.array([s.iscrowd for s in made.shapes]), ((),) * count, tuple(encode(s.mask) for s in made.shapes),
    )  # fmt: skip
    whole = make_target(objects, View.whole(240, 320))
    np.testing.assert_array_equal(whole["masks"], np.stack([s.mask for s in made.shapes]))


# -- inputs of any shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [96, (64, 112), (112, 64)], ids=str)
def test_boxes_and_masks_follow_the_picture(size: Any, fit: str, mirrored: bool) -> None:
    """A rectangle, wherever the view puts it."""
    image = np.zeros((60, 150, 3), np.uint8)
    image[12:36, 30:90] = 255
    box = np.array([[30, 12, 90, 36]], np.float32)
    ring = np.array([[30, 12], [90, 12], [90, 36], [30, 36]], np.float32)
    objects = Objects(
        60, 150, box, np.zeros(1, np.int64), np.full(1, 1440, np.float32), np.zeros(1, bool), ((ring,),), (b"",)
    )
    settings = Augmentation.plain(size, fit=fit)
    view = replace(View.whole(60, 150), mirrored=mirrored).fitted(settings.shape, fit)
    shown, target = settings.show(image, Colors(), view), settings.target(objects, view)
    assert shown.shape == (*settings.shape, 3)
    white = shown.min(axis=2) > 127
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    (x1, y1, x2, y2), (mask,) = target["boxes"][0].tolist(), target["masks"].numpy()
    np.testing.assert_allclose((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), (x1, y1, x2, y2), atol=1)
    assert (mask.astype(bool) ^ white).sum() <= 2 * (sum(mask.shape))
    if fit != "stretch":
        assert (x2 - x1) / (y2 - y1) == pytest.approx(60 / 24, rel=0.03)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [96, (64, 112)], ids=str)
def test_a_plain_view_is_what_inference_sees(size: Any, fit: str) -> None:
    image, objects = scene()
    config = YolactConfig(image_size=size, fit=fit)
    settings = Augmentation.plain(size, fit=fit)
    shown, _ = settings(image, objects, np.random.default_rng(0))
    difference = np.abs(shown.astype(int) - fit_image(image, config))
    assert difference.max() <= 8  # warping has positions of 1/32 pixel
    assert difference.mean() < 0.6


def test_turns_of_an_input_that_is_no_square() -> None:
    """Every draw has the shape of the input, and boxes and colors stay with their masks."""
    image, objects = scene()
    image[:] = 0
    for number, (x0, y0, x1, y1) in enumerate(objects.boxes.astype(int)):
        image[y0:y1, x0:x1] = 60 * (number + 1)
    plain = Augmentation.plain((64, 96))
    settings = replace(plain, rotate=True, flip=True)
    upright = 0
    for seed in range(24):
        shown, target = settings(image, objects, np.random.default_rng(seed))
        assert shown.shape == (64, 96, 3)
        assert target["masks"].shape == (4, 64, 96)
        assert (target["width"], target["height"]) == (96, 64)
        for box, mask, label in zip(target["boxes"], target["masks"].numpy(), target["labels"].tolist(), strict=True):
            rows, columns = np.nonzero(mask)
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose(box.numpy(), around, atol=1.6)
            middle = shown[int(rows.mean()), int(columns.mean())]
            assert middle.tolist() == [60 * (label + 1)] * 3
        upright += bool(torch.equal(target["boxes"], plain(image, objects, np.random.default_rng(seed))[1]["boxes"]))
    assert 1 <= upright <= 8  # one draw of eight

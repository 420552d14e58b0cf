"""Turns, flips, and pasted objects: masks, boxes and keypoints stay on the pixels they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from yolact_deploy.training.data.balance import drawn, repeat_factors
from yolact_deploy.training.data.mixing import copy_paste, turned

SIDE = 16


def scene(*boxes: tuple[int, int, int, int], level: int = 50, width: int = SIDE) -> tuple[Any, dict[str, Any]]:
    """Rectangles that are drawn in the picture in gray levels that rise from ``level``, with their target."""
    image = np.zeros((SIDE, width, 3), np.uint8)
    masks = torch.zeros((len(boxes), SIDE, width), dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        image[y0:y1, x0:x1] = level + 10 * number
        masks[number, y0:y1, x0:x1] = 1
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)),
        "masks": masks,
        "area": masks.flatten(1).sum(dim=1).float(),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "width": width,
        "height": SIDE,
    }


def check(image: Any, target: dict[str, Any], level: int = 50) -> None:
    """Each object is where its level is in the picture."""
    for number, (box, mask) in enumerate(zip(target["boxes"].int().tolist(), target["masks"], strict=True)):
        rows, columns = np.nonzero(image[..., 0] == level + 10 * number)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(mask.numpy() > 0, image[..., 0] == level + 10 * number)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("width", [SIDE, 24])
def test_turns_and_flips(quarters: int, flipped: bool, width: int) -> None:
    image, target = scene((1, 2, 5, 9), (8, 0, 15, 3), width=width)
    points = torch.tensor([[[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]], [[8.0, 0.0, 2.0], [14.5, 2.5, 1.0]]])
    shown, changed = turned(image, {**target, "keypoints": points}, quarters, flipped)
    check(shown, changed)
    assert (changed["height"], changed["width"]) == shown.shape[:2] == changed["masks"].shape[1:]
    assert changed["keypoints"].shape == points.shape
    assert not changed["keypoints"][0, 1].any(), "not annotated"
    x, y, _ = changed["keypoints"][1, 1].tolist()
    assert shown[int(y), int(x), 0] == 60, "inside the second rectangle, as before"
    expected = image[::-1] if flipped else image
    np.testing.assert_array_equal(shown, np.rot90(expected, quarters))


def test_four_quarters_are_none() -> None:
    image, target = scene((1, 2, 5, 9))
    shown, changed = turned(image, target, 4, flipped=False)
    np.testing.assert_array_equal(shown, image)
    assert torch.equal(changed["boxes"], target["boxes"])


class Always:
    """A generator whose numbers choose every object."""

    def random(self, count: int) -> Any:
        return np.zeros(count)


def test_pasted_objects_cover_what_is_below() -> None:
    image, target = scene((2, 2, 10, 10), (12, 12, 15, 15))
    other, objects = scene((6, 0, 16, 11), level=150)
    shown, merged = copy_paste(image, target, other, objects, Always())  # type: ignore[arg-type]
    assert merged["labels"].tolist() == [0, 1, 0]
    assert merged["boxes"].tolist() == [[2, 2, 6, 10], [12, 12, 15, 15], [6, 0, 16, 11]]
    for mask, level in zip(merged["masks"], (50, 60, 150), strict=True):
        np.testing.assert_array_equal(mask.numpy() > 0, shown[..., 0] == level)


def test_covered_objects_are_dropped_and_crowds_stay_last() -> None:
    image, target = scene((2, 2, 5, 5), (12, 12, 15, 15))
    target["iscrowd"] = torch.tensor([False, True])
    other, objects = scene((0, 0, 8, 8), level=150)
    _, merged = copy_paste(image, target, other, objects, Always())  # type: ignore[arg-type]
    assert merged["iscrowd"].tolist() == [False, True]
    assert merged["boxes"].tolist() == [[0, 0, 8, 8], [12, 12, 15, 15]]
    objects["iscrowd"][:] = True
    same, unchanged = copy_paste(image, target, other, objects, Always())  # type: ignore[arg-type]
    assert same is image
    assert unchanged is target


def test_rare_classes_are_drawn_more_often() -> None:
    labels = [np.array([0])] * 98 + [np.array([0, 1])] + [np.zeros(0, np.int64)]
    factors = repeat_factors(labels, 3, 0.04)
    assert factors[0] == 1
    assert factors[98] == pytest.approx(2)  # sqrt(0.04 / 0.01)
    assert factors[99] == 1
    counts = np.zeros(100)
    for epoch in range(200):
        order = drawn(factors, np.random.default_rng(epoch))
        assert len(order) == 100
        assert np.bincount(order, minlength=100).max() <= 2
        counts += np.bincount(order, minlength=100)
    assert counts[98] / counts[:98].mean() == pytest.approx(2, abs=0.05)
    alike = drawn(np.ones(7), np.random.default_rng(0))
    assert sorted(alike) == list(range(7))

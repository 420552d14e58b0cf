"""`Detections`: choosing some, and every form they take."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from plain_values import check_another_process, check_plain_value, round_trip

from yolact_deploy.config import COCO_CATEGORY_IDS, COCO_NAMES
from yolact_deploy.detections import Detections
from yolact_deploy.errors import MissingDependencyError
from yolact_deploy.mask_forms import PackedMasks

HEIGHT, WIDTH = 30, 40


def make(num: int = 4) -> Detections:
    """Boxes side by side, each with a full mask inside it; scores 0.9, 0.8, ..."""
    masks = np.zeros((num, 12, 16), np.float32)
    boxes = np.zeros((num, 4), np.float32)
    for i in range(num):
        masks[i, 3:9, 4 * (i % 4) : 4 * (i % 4) + 3] = 1
        boxes[i] = [(i % 4) / 4, 0.25, (i % 4) / 4 + 0.1875, 0.75]
    return Detections.from_normalized(
        boxes,
        (0.9 - 0.1 * np.arange(num)).astype(np.float32),
        np.arange(num, dtype=np.int32),
        masks,
        class_names=COCO_NAMES,
        height=HEIGHT,
        width=WIDTH,
    )


def same(one: Detections, other: Detections) -> bool:
    return all(
        np.array_equal(getattr(one, field), getattr(other, field)) for field in ("boxes", "scores", "labels", "masks")
    )


def test_from_normalized() -> None:
    detections = make()
    np.testing.assert_allclose(detections.boxes[1], [10, 7.5, 17.5, 22.5])
    assert detections.boxes.dtype == detections.scores.dtype == np.float32
    assert detections.labels.dtype == detections.pixel_boxes.dtype == np.int64
    assert detections.pixel_boxes[1].tolist() == [10, 7, 17, 22]
    assert detections.names == ["person", "bicycle", "car", "motorcycle"]
    assert detections.masks.shape == (4, HEIGHT, WIDTH)
    assert detections.masks.dtype == bool


def test_boxes_are_sorted_and_clamped() -> None:
    boxes = np.array([[0.9, 0.8, -0.5, 1.5]], np.float32)
    detections = Detections.from_normalized(
        boxes,
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        np.zeros((1, 4, 4)),
        class_names=("a",),
        height=10,
        width=20,
    )
    np.testing.assert_allclose(detections.boxes, [[0, 8, 18, 10]])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [0]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([2, 0, 2], [2, 0, 2]),
        (np.array([True, False, True, False]), [0, 2]),
        (np.int64(1), [1]),
        (np.array([], np.int64), []),
        (slice(9, 12), []),
    ],
    ids=str,
)
@pytest.mark.parametrize("computed", [False, True], ids=["lazy", "computed"])
def test_indexing(index: Any, expected: list[int], computed: bool) -> None:
    detections = make()
    if computed:
        _ = detections.crops
    some = detections[index]
    assert some.labels.tolist() == expected
    assert len(some) == len(expected)
    assert ("crops" in some.__dict__) == computed
    np.testing.assert_array_equal(some.masks, make().masks[np.array(expected, np.int64)])
    np.testing.assert_array_equal(some.boxes, detections.boxes[np.array(expected, np.int64)])
    assert (some.height, some.width, some.class_names) == (HEIGHT, WIDTH, COCO_NAMES)


def test_masks_are_pasted_once_on_first_use() -> None:
    detections = make()
    assert "crops" not in detections.__dict__
    assert detections.crops is detections.crops


def test_index_out_of_range() -> None:
    with pytest.raises(IndexError):
        make()[4]


def test_iteration_gives_one_each() -> None:
    parts = list(make())
    assert [part.names for part in parts] == [["person"], ["bicycle"], ["car"], ["motorcycle"]]
    assert same(parts[2], make()[2])


def test_above() -> None:
    assert make().above(0.75).labels.tolist() == [0, 1]
    assert len(make().above(1.0)) == 0
    assert len(make().above(0.0)) == 4


def test_repr() -> None:
    assert repr(make(1)) == "Detections(1 in 40 x 30: person 0.90)"
    assert repr(make(7)).endswith("airplane 0.50, ... 2 more)")
    assert repr(make(0)) == "Detections(0 in 40 x 30: )"


def test_mask_forms_agree() -> None:
    detections = make()
    masks = detections.masks
    np.testing.assert_array_equal(np.unpackbits(detections.packed_masks(), axis=-1, count=WIDTH), masks)
    np.testing.assert_array_equal(detections.areas(), masks.sum(axis=(1, 2)))
    assert all(rle["size"] == [HEIGHT, WIDTH] for rle in detections.rle())


def test_polygons_outline_the_masks() -> None:
    import cv2

    detections = make()
    for polygons, mask in zip(detections.polygons(), detections.masks, strict=True):
        assert all(p.dtype == np.int32 and p.shape[1] == 2 for p in polygons)
        drawn = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(drawn, polygons, 1)
        np.testing.assert_array_equal(drawn.astype(bool), mask)


def test_polygons_of_an_empty_mask() -> None:
    detections = Detections.from_normalized(
        np.zeros((1, 4), np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int64),
        np.zeros((1, 4, 4), np.float32),
        class_names=("a",),
        height=9,
        width=9,
    )
    assert detections.polygons() == [[]]
    assert make(0).polygons() == []


def test_to_coco() -> None:
    results = make().to_coco(42, COCO_CATEGORY_IDS)
    assert [result["category_id"] for result in results] == [1, 2, 3, 4]
    assert results[1]["image_id"] == 42
    assert results[1]["bbox"] == [10.0, 7.5, 7.5, 15.0]
    assert results[1]["score"] == pytest.approx(0.8)
    assert results[1]["segmentation"] == make().rle()[1]
    assert json.loads(json.dumps(results)) == results
    assert make(0).to_coco(1, COCO_CATEGORY_IDS) == []


def test_to_json() -> None:
    value = make().to_json()
    assert json.loads(json.dumps(value)) == value
    assert (value["width"], value["height"], len(value["detections"])) == (WIDTH, HEIGHT, 4)
    assert value["detections"][1] == {
        "name": "bicycle",
        "label": 1,
        "score": pytest.approx(0.8),
        "box": [10.0, 7.5, 17.5, 22.5],
        "mask": make().rle()[1],
    }
    assert make(0).to_json()["detections"] == []


def test_to_torch() -> None:
    torch = pytest.importorskip("torch")
    detections = make()
    tensors = detections.to_torch()
    assert tensors["boxes"].data_ptr() == detections.boxes.ctypes.data  # shared
    assert tensors["masks"].dtype == torch.bool
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "boxes": (4, 4),
        "labels": (4,),
        "scores": (4,),
        "masks": (4, HEIGHT, WIDTH),
    }


def with_mask_scores() -> Detections:
    """Of four detections, whose masks are ranked the other way round."""
    return dataclasses.replace(make(), mask_scores=np.array([0.1, 0.2, 0.3, 0.4], np.float32))


def test_mask_scores() -> None:
    detections = with_mask_scores()
    assert make().mask_scores is None
    chosen = detections[[2, 0]].mask_scores
    assert chosen is not None
    assert chosen.tolist() == pytest.approx([0.3, 0.1])
    assert make()[[2, 0]].mask_scores is None
    assert len(detections.above(0.75)) == 2, "by the scores of boxes"
    last = list(detections)[3].mask_scores
    assert last is not None
    assert last.tolist() == pytest.approx([0.4])


def test_mask_scores_in_other_forms() -> None:
    detections = with_mask_scores()
    results = detections.to_coco(42, COCO_CATEGORY_IDS)
    assert [result["mask_score"] for result in results] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [{k: v for k, v in r.items() if k != "mask_score"} for r in results] == make().to_coco(42, COCO_CATEGORY_IDS)
    assert detections.to_json()["detections"][1]["mask_score"] == pytest.approx(0.2)
    assert json.loads(json.dumps(results)) == results
    pytest.importorskip("torch")
    assert detections.to_torch()["mask_scores"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[supervision\]"):
        make().to_supervision()


def test_to_supervision() -> None:
    pytest.importorskip("supervision")
    converted = make().to_supervision()
    assert len(converted) == 4
    assert converted.data["class_name"].tolist() == make().names


def test_draw_copies() -> None:
    pytest.importorskip("yolact_deploy.draw")
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = make().draw(image)
    assert drawn.shape == image.shape
    assert drawn.any()
    assert not image.any()
    np.testing.assert_array_equal(make(0).draw(image), image)


# -- masks that were pasted by somebody else ------------------------------------------------------------------------


def pack(masks: Any) -> PackedMasks:
    """Masks bool [n, H, W] as a GPU gives them: the window of each begins at a byte, its rows fill whole words."""
    num, height, width = masks.shape
    windows, words = np.zeros((num, 6), np.int32), [np.zeros(3, np.uint32)]  # something of no mask ahead
    for window, mask in zip(windows, masks, strict=True):
        first = sum(map(len, words))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            window[5] = first
            continue
        x, y = int(columns[0]) // 8 * 8, int(rows[0])
        part = mask[y : rows[-1] + 1, x : columns[-1] + 1]
        padded = np.pad(part, ((0, 0), (0, -part.shape[1] % 32)))
        bits = np.packbits(padded, axis=1)
        window[:] = x, y, part.shape[1], part.shape[0], bits.shape[1] // 4, first
        words.append(bits.reshape(-1).view(np.uint32))
    return PackedMasks(windows, np.concatenate(words), height, width)


def random_masks(num: int, height: int, width: int) -> Any:
    rng = np.random.default_rng(height * width)
    masks = np.zeros((num, height, width), np.bool_)
    for mask in masks[1:]:
        (y1, y2), (x1, x2) = np.sort(rng.integers(0, height, 2)), np.sort(rng.integers(0, width, 2))
        mask[y1 : y2 + 1, x1 : x2 + 1] = rng.random((y2 - y1 + 1, x2 - x1 + 1)) < 0.7
    return masks


def from_masks(masks: Any) -> tuple[Detections, Detections]:
    """The same detections with packed masks, and with masks that are pasted at their own size."""
    num, height, width = masks.shape
    boxes = np.tile(np.array([0.1, 0.2, 0.9, 0.8], np.float32), (num, 1))
    scores, labels = np.linspace(0.9, 0.2, num, dtype=np.float32), np.arange(num)
    both = (
        Detections.from_normalized(boxes, scores, labels, held, class_names=COCO_NAMES, height=height, width=width)
        for held in (pack(masks), masks.astype(np.float32))
    )
    return next(both), next(both)


@pytest.mark.parametrize("shape", [(1, 5, 5), (4, 1, 1), (9, 33, 64), (7, 40, 65), (12, 61, 127)])
def test_packed_masks_are_the_same_masks(shape: tuple[int, int, int]) -> None:
    masks = random_masks(*shape)
    ours, theirs = from_masks(masks)
    np.testing.assert_array_equal(ours.masks, masks)
    np.testing.assert_array_equal(ours.packed_masks(), theirs.packed_masks())
    np.testing.assert_array_equal(ours.packed_masks(), np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(ours.areas(), masks.sum(axis=(1, 2)))
    assert ours.rle() == theirs.rle()
    assert ours.to_json() == theirs.to_json()
    assert ours.to_coco(1, COCO_CATEGORY_IDS) == theirs.to_coco(1, COCO_CATEGORY_IDS)
    for one, other in zip(ours.polygons(), theirs.polygons(), strict=True):
        assert [p.tolist() for p in one] == [p.tolist() for p in other]
    image = np.full((*shape[1:], 3), 200, np.uint8)
    np.testing.assert_array_equal(ours.draw(image), theirs.draw(image))


def test_packed_masks_are_packed_without_being_unpacked() -> None:
    detections, _ = from_masks(random_masks(6, 40, 50))
    detections.packed_masks()
    assert "crops" not in detections.__dict__
    assert detections.crops is detections.crops, "unpacked once"


def test_choosing_among_packed_masks() -> None:
    masks = random_masks(6, 40, 50)
    detections, _ = from_masks(masks)
    np.testing.assert_array_equal(detections[[4, 1]].masks, masks[[4, 1]])
    np.testing.assert_array_equal(detections[[4, 1]].packed_masks(), np.packbits(masks[[4, 1]], axis=-1))
    np.testing.assert_array_equal(np.concatenate([one.masks for one in detections]), masks)
    chosen = detections.above(0.5)
    np.testing.assert_array_equal(chosen.masks, masks[: len(chosen)])
    _ = detections.crops
    assert detections[2:3].crops.crops[0] is detections.crops.crops[2], "what is unpacked is not unpacked again"
    assert len(detections[:0].masks) == 0


def test_boxes_in_pixels() -> None:
    boxes = np.array([[0.75, -0.5, 0.25, 1.5], [0, 0, 1, 1], [0.2, 0.9, 0.3, 0.1], [1.25, 1.5, 2, 2]], np.float32)
    detections = Detections.from_normalized(
        boxes,
        np.ones(4, np.float32),
        np.zeros(4, int),
        np.zeros((4, 2, 2)),
        class_names=COCO_NAMES,
        height=40,
        width=80,
    )
    # Sorted; the lower held at 0, the upper at the size, and nothing else.
    expected = [[20, 0, 60, 40], [0, 0, 80, 40], [16, 4, 24, 36], [100, 60, 80, 40]]
    np.testing.assert_allclose(detections.boxes, expected, rtol=1e-6)
    assert detections.boxes.dtype == np.float32


# -- a plain value --------------------------------------------------------------------------------------------------


def in_each_form() -> list[Detections]:
    masks = random_masks(6, 40, 50)
    packed, lazy = from_masks(masks)
    pasted = dataclasses.replace(lazy, mask_data=lazy.crops)
    scored = dataclasses.replace(packed, mask_scores=packed.scores * np.float32(0.5))
    return [packed, lazy, pasted, packed[[4, 1, 5]], lazy[1:], pasted[::-1], scored]


@pytest.mark.parametrize("number", range(7))
def test_pickles_and_copies_are_equal(number: int) -> None:
    detections = in_each_form()[number]
    check_plain_value(detections)
    assert round_trip(detections[:0]) == detections[:0]


def test_another_process_sees_the_same() -> None:
    check_another_process(in_each_form())


def test_equality() -> None:
    packed, lazy, pasted, *_ = in_each_form()
    assert packed == lazy == pasted, "the form of the masks does not matter"
    assert packed != packed[:-1]
    assert packed != "detections"
    for field in ("boxes", "scores", "labels"):
        assert packed != dataclasses.replace(packed, **{field: getattr(packed, field) + 1}), field
    assert packed != dataclasses.replace(packed, class_names=COCO_NAMES[::-1])
    assert packed != dataclasses.replace(packed, mask_scores=packed.scores)
    wrong = random_masks(6, 40, 50)
    wrong[3, 0, 0] ^= True
    assert packed != from_masks(wrong)[0]


def test_the_former_name_of_the_masks() -> None:
    detections = make()
    with pytest.warns(DeprecationWarning, match="prototype_masks is now mask_data"):
        assert detections.prototype_masks is detections.mask_data

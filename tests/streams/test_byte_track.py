"""Tracking: ids as the reference gives them, frame by frame, and what becomes of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from conftest import GOLDEN
from numpy.typing import NDArray

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.mask_forms import MaskCrops
from yolact_deploy.streams.byte_track import ByteTracker, TrackOptions, box_overlaps
from yolact_deploy.streams.counting import LineCounter, ZoneCounter

pytest.importorskip("lap")


def detections(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], masks: tuple[NDArray[np.bool_], ...] | None = None
) -> Detections:
    """Objects whose masks are their boxes, or ``masks`` at the corners of the boxes."""
    boxes = boxes.reshape(-1, 4)
    corners = boxes.round().astype(np.int64)
    crops = masks or tuple(np.ones((max(y2 - y1, 0), max(x2 - x1, 0)), np.bool_) for x1, y1, x2, y2 in corners.tolist())
    return Detections(
        boxes, scores, np.zeros(len(boxes), np.int64), ("thing",), 700, 700, MaskCrops(700, 700, corners[:, :2], crops)
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_frame_by_frame(seed: int) -> None:
    with np.load(GOLDEN / "bytetrack.npz") as golden:
        lengths, boxes, scores, ids = (golden[f"{name}{seed}"] for name in ("lengths", "boxes", "scores", "ids"))
    tracker, first = ByteTracker(TrackOptions(high_score=0.6, new_score=0.7, first_at_once=False)), 0
    for frame, length in enumerate(lengths):
        rows = slice(first, first + length)
        expected = ids[rows].astype(np.int64)
        found = tracker.update(detections(boxes[rows], scores[rows]))
        np.testing.assert_array_equal(found, np.where(expected >= 0, expected + 1, -1), f"frame {frame}")
        first += length
    assert first == len(ids)
    assert ids.max() > 10


def moving(frame: int) -> NDArray[np.float32]:
    """One object goes to the right, the other below it to the left."""
    x = 5 * frame
    return np.array([[10 + x, 50, 60 + x, 100], [400 - x, 150, 450 - x, 200]], np.float32)


def test_the_order_of_rows_and_everything_else_stays() -> None:
    tracker, scores = ByteTracker(), np.array([0.9, 0.8], np.float32)
    for frame in range(3):
        given = detections(moving(frame), scores)
        tracked = tracker.track(given)
        assert tracked.mask_data is given.mask_data
        np.testing.assert_array_equal(tracked.boxes, given.boxes)
    assert tracked.track_ids is not None
    assert tracked.track_ids.tolist() == [1, 2]
    swapped = tracker.track(detections(moving(3)[::-1], scores))
    assert swapped.track_ids is not None
    assert swapped.track_ids.tolist() == [2, 1]
    assert tracker.update(detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))).tolist() == []


def test_objects_of_the_first_frame_have_ids_at_once() -> None:
    both, scores = (
        np.vstack([moving(0), [[300, 300, 350, 350]]]).astype(np.float32),
        np.array([0.9, 0.8, 0.2], np.float32),
    )
    tracker, waiting = ByteTracker(), ByteTracker(TrackOptions(first_at_once=False))
    assert tracker.update(detections(both, scores)).tolist() == [1, 2, -1]
    assert waiting.update(detections(both, scores)).tolist() == [-1, -1, -1]
    # An object that comes later waits for a second frame, here as there, and the ids go on.
    later = np.vstack([moving(1), [[500, 500, 550, 550]]]).astype(np.float32)
    assert tracker.update(detections(later, np.full(3, 0.9, np.float32))).tolist() == [1, 2, -1]
    assert waiting.update(detections(later, np.full(3, 0.9, np.float32))).tolist() == [1, 2, -1]
    later = np.vstack([moving(2), [[502, 500, 552, 550]]]).astype(np.float32)
    assert tracker.update(detections(later, np.full(3, 0.9, np.float32))).tolist() == [1, 2, 3]
    tracker.reset()
    assert tracker.update(detections(both, scores)).tolist() == [1, 2, -1]


def test_a_lost_object_comes_back_or_is_forgotten() -> None:
    for gap, expected in ((10, 1), (40, -1)):
        tracker = ByteTracker(fps=30)
        for frame in range(5):
            tracker.update(detections(moving(frame)[:1], np.array([0.9], np.float32)))
        for _ in range(gap):
            tracker.update(detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)))
        (number,) = tracker.update(detections(moving(5 + gap)[:1], np.array([0.9], np.float32)))
        assert number == expected


def test_low_scores_continue_tracks_and_start_none() -> None:
    tracker = ByteTracker()
    for frame, score in enumerate((0.9, 0.9, 0.2, 0.2)):
        ids = tracker.update(detections(moving(frame), np.array([score, 0.2], np.float32)))
    assert ids.tolist() == [1, -1]


def test_masks_tell_apart_what_boxes_do_not() -> None:
    """Two objects share a box: one is its upper left triangle, the other the lower right one."""
    upper = np.tri(60, dtype=np.bool_)[::-1]
    for overlap in ("box", "mask"):
        tracker = ByteTracker(TrackOptions(overlap=overlap))
        boxes, scores = np.array([[100, 100, 160, 160]] * 2, np.float32), np.array([0.9, 0.8], np.float32)
        for frame in range(4):
            masks = (upper, ~upper) if frame < 3 else (~upper, upper)
            ids = tracker.update(detections(boxes + 2 * frame, scores, masks))
        if overlap == "mask":
            assert ids.tolist() == [2, 1]


@pytest.mark.parametrize(("labels", "limit", "expected"), [((0, 1), 0.4, 1), ((0, 1), 1.0, 2), ((0, 0), 0.4, 2)])
def test_an_object_of_two_classes_is_tracked_once(labels: tuple[int, int], limit: float, expected: int) -> None:
    """One object as two classes, the worse row first; NMS has seen to those of one class."""
    tracker = ByteTracker(TrackOptions(same_object=limit))
    boxes, scores = np.array([[100, 100, 160, 160], [102, 101, 160, 160]], np.float32), np.array([0.7, 0.9], np.float32)
    for frame in range(3):
        given = detections(boxes + 5 * frame, scores)
        ids = tracker.update(dataclasses.replace(given, labels=np.array(labels), class_names=("car", "truck")))
    assert (ids > 0).sum() == expected
    assert ids[1] > 0


def test_objects_of_two_classes_in_one_box_are_two() -> None:
    upper = np.tri(60, dtype=np.bool_)[::-1]
    tracker, boxes = ByteTracker(), np.array([[100, 100, 160, 160]] * 2, np.float32)
    for frame in range(2):
        given = detections(boxes + frame, np.array([0.9, 0.8], np.float32), (upper, ~upper))
        ids = tracker.update(dataclasses.replace(given, labels=np.array([0, 1]), class_names=("person", "horse")))
    assert sorted(ids.tolist()) == [1, 2]


def test_box_overlaps() -> None:
    first = np.array([[0.0, 0, 10, 10], [5, 5, 5, 5]])
    second = np.array([[5.0, 5, 15, 15], [20, 20, 30, 30], [0, 0, 10, 10]])
    expected = np.array([[25 / 175, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(box_overlaps(first, second), expected)


@pytest.mark.parametrize(
    "wrong", [{"high_score": 2.0}, {"min_frames": 0}, {"keep_frames": -1}, {"overlap": "x"}, {"same_object": 1.5}]
)
def test_options_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        TrackOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fps"):
        ByteTracker(fps=0)


# -- counting -------------------------------------------------------------------------------------------------------


def test_lines_and_zones() -> None:
    tracker, line = ByteTracker(), LineCounter((200, 0), (200, 600))
    zone = ZoneCounter([(150, 0), (250, 0), (250, 400), (150, 400)])
    inside = []
    for frame in range(60):
        tracked = tracker.track(detections(moving(frame), np.array([0.9, 0.8], np.float32)))
        line.update(tracked)
        zone.update(tracked)
        inside.append(zone.inside)
    # Who goes down the line has the left of the picture on the right hand: the first object ends on the left.
    assert (line.left, line.right) == (1, 1)
    assert line.to_dict() == {"line": [200, 0, 200, 600], "left": 1, "right": 1}
    assert zone.total == 2
    assert max(inside) >= 1
    assert inside[-1] == 0
    canvas = np.zeros((700, 700, 3), np.uint8)
    line.draw(canvas)
    zone.draw(canvas)
    assert canvas[300, 200].tolist() == [0, 255, 255]
    assert canvas[200, 150].any()


def test_a_line_is_crossed_only_between_its_ends() -> None:
    tracker, line = ByteTracker(), LineCounter((200, 300), (200, 600))
    for frame in range(60):
        line.update(tracker.track(detections(moving(frame), np.array([0.9, 0.8], np.float32))))
    assert (line.left, line.right) == (0, 0)


def test_counting_needs_ids() -> None:
    with pytest.raises(InputError, match="needs track ids"):
        LineCounter((0, 0), (1, 1)).update(detections(moving(0), np.array([0.9, 0.8], np.float32)))
    with pytest.raises(InputError, match="two different points"):
        LineCounter((1, 1), (1, 1))
    with pytest.raises(InputError, match="three corners"):
        ZoneCounter([(0, 0), (1, 1)])

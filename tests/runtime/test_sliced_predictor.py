"""Tiles of large pictures, on a network that detects every white blob, whatever tile it is in."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from blobs import SIDE, BlobBackend, Image

from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.progress import Progress
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.sliced_predictor import SlicedPredictor
from yolact_deploy.runtime.slicing import Slicing, Tile


def canvas(height: int = 300, width: int = 300) -> Image:
    return np.zeros((height, width, 3), np.uint8)


def detect(picture: Image, backend: BlobBackend | None = None, **rules: Any) -> Detections:
    slicing = Slicing(**{"size": SIDE, "standard_prediction": False, **rules})
    with SlicedPredictor(backend or BlobBackend(), slicing=slicing) as model:
        found = model(picture)
        assert set(model.timings) == set(model.stages)
        return found


def iou(a: Any, b: Any) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_tiles_cover_the_picture_and_overlap() -> None:
    for height, width in ((300, 300), (128, 500), (90, 60), (129, 128), (1040, 1388)):
        slicing = Slicing(size=SIDE, overlap=0.25)
        tiles = slicing.tiles(height, width)
        seen = np.zeros((height, width), int)
        for tile in tiles:
            assert tile.bottom - tile.top == min(SIDE, height)
            assert tile.right - tile.left == min(SIDE, width)
            seen[tile.window] += 1
        assert seen.min() == 1 or len(tiles) > 1
        assert seen.min() >= 1
        edges = sorted({tile.left for tile in tiles})
        assert all(b - a <= SIDE - SIDE * 0.25 for a, b in itertools.pairwise(edges))
    assert Slicing(size=(100, 200)).tiles(100, 200) == [Tile(0, 0, 200, 100)]


@pytest.mark.parametrize(
    ("rules", "height", "width", "count"),
    [
        ({"size": 640, "overlap": 0.9999}, 4000, 4000, r"11,296,321 tiles of 640 with an overlap of 0\.9999"),
        ({"size": 64, "overlap": 0.9}, 9000, 9000, r"tiles of 64"),
        ({"size": (64, 4096), "overlap": 0.99}, 20_000, 8000, r"tiles of 64x4096"),
    ],
)
def test_more_tiles_than_anybody_wants(rules: dict[str, Any], height: int, width: int, count: str) -> None:
    with pytest.raises(InputError, match=f"slice: a picture of {width} x {height} has .*{count}.* less overlap"):
        Slicing(**rules).tiles(height, width)


@pytest.mark.parametrize(
    ("box", "tiles"),
    [((40, 60, 200, 90), 2), ((60, 40, 90, 200), 2), ((50, 50, 200, 200), 4), ((5, 100, 295, 120), 3)],
    ids=["across", "down", "four tiles", "the whole row"],
)
@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_an_object_across_tiles_is_one(box: tuple[int, int, int, int], tiles: int, metric: str) -> None:
    picture = canvas()
    x1, y1, x2, y2 = box
    cv2.ellipse(picture, ((x1 + x2) // 2, (y1 + y2) // 2), ((x2 - x1) // 2, (y2 - y1) // 2), 0, 0, 360, (255,) * 3, -1)
    slicing = Slicing(size=SIDE, overlap=0.25, standard_prediction=False, match_metric=metric)
    cut = [tile for tile in slicing.tiles(300, 300) if picture[tile.window].any()]
    assert len(cut) >= tiles
    found = detect(picture, overlap=0.25, match_metric=metric)
    assert len(found) == 1
    assert iou(found.masks[0], picture[..., 0] > 0) > 0.95
    rows, columns = np.nonzero(picture[..., 0])
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found.boxes[0] - extent).max() <= 3


def test_objects_stay_apart() -> None:
    """Many blobs, some in the overlap of two and four tiles: each is reported once, with its own mask."""
    picture, rng = canvas(), np.random.default_rng(0)
    grid = range(20, 290, 33)
    centers = [(x + int(rng.integers(-4, 5)), y + int(rng.integers(-4, 5))) for x in grid for y in grid]
    for center in centers:
        cv2.circle(picture, center, 9, (255,) * 3, -1)
    found = detect(picture)
    assert len(found) == len(centers)
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    taken = {int(np.argmin(np.hypot(*(np.array(centers) - middle).T))) for middle in middles}
    assert len(taken) == len(centers)
    assert iou(found.masks.any(axis=0), picture[..., 0] > 0) > 0.85
    assert (np.diff(found.scores) <= 0).all()


def test_classes_merge_only_if_asked() -> None:
    """An object that looks bright in one tile and dim in the other."""
    picture = canvas(128, 230)
    cv2.rectangle(picture, (60, 40), (170, 80), (150,) * 3, -1)
    cv2.rectangle(picture, (150, 40), (170, 80), (255,) * 3, -1)
    assert sorted(detect(picture, overlap=0.2).names) == ["bright", "dim"]
    assert len(detect(picture, overlap=0.2, class_agnostic=True)) == 1


def test_without_overlap_parts_stay_apart() -> None:
    picture = canvas(128, 256)
    cv2.rectangle(picture, (60, 40), (200, 80), (255,) * 3, -1)
    assert len(detect(picture, overlap=0.0)) == 2


def test_the_whole_picture_finds_what_is_larger_than_overlapping_tiles_see() -> None:
    picture = canvas()
    cv2.rectangle(picture, (10, 10), (290, 290), (255,) * 3, -1)
    cv2.circle(picture, (150, 150), 4, (0,) * 3, -1)
    backend = BlobBackend()
    found = detect(picture, backend, standard_prediction=True)
    assert len(found) == 1
    assert iou(found.masks[0], picture[..., 0] > 60) > 0.97
    assert sum(backend.batches) == len(Slicing(size=SIDE).tiles(300, 300)) + 1


def test_tiles_go_in_batches() -> None:
    backend = BlobBackend(max_batch=4)
    detect(canvas(), backend)
    assert backend.batches == [4, 4, 1]


def test_a_small_picture_is_as_without_tiles() -> None:
    picture = canvas(100, 90)
    cv2.circle(picture, (40, 40), 20, (255,) * 3, -1)
    with Predictor(BlobBackend()) as plain:
        assert detect(picture) == plain(picture)


def test_lists_streams_and_limits() -> None:
    picture = canvas()
    for x in range(20, 290, 40):
        cv2.circle(picture, (x, 150), 8, (255,) * 3, -1)
    slicing = Slicing(size=SIDE, standard_prediction=False)
    with SlicedPredictor(BlobBackend(), slicing=slicing, max_detections=3) as model:
        one, two = model([picture, picture])
        assert len(one) == 3
        assert one == two
        for overlap in (False, True):
            frames = list(model.stream([picture, picture], overlap=overlap))
            assert [found == one for _, found in frames] == [True, True]
        with pytest.raises(InputError, match="without slicing"):
            model.on_device(picture)


def test_progress_counts_groups_of_tiles() -> None:
    class Counting(Progress):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def track(self, items: Any, description: str, total: int | None = None, unit: str = "images") -> Any:
            self.seen.append(f"{description} in {total} {unit}")
            return iter(items)

    model = SlicedPredictor(BlobBackend(max_batch=2), slicing=Slicing(size=SIDE))
    with model:
        model.progress = counting = Counting()
        model(canvas())
        model(canvas(600, 600))
    assert counting.seen == ["37 tiles in 5 groups"]


def test_nothing_detected_is_nothing() -> None:
    found = detect(canvas())
    assert len(found) == 0
    assert found.masks.shape == (0, 300, 300)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"size": 8}, "slice: expected a side"),
        ({"size": (300,) * 3}, "slice: expected a side"),
        ({"overlap": 1.0}, "overlap: expected 0 <= value < 1, got 1.0"),
        ({"overlap": float("nan")}, "overlap"),
        ({"match_threshold": 0}, "match_threshold: expected 0 < value <= 1"),
        ({"match_metric": "giou"}, "match_metric: expected one of ios, iou"),
    ],
)
def test_bad_rules(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Slicing(**{"size": SIDE, **rules})

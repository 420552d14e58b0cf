"""The confusion matrix counts each object and each detection once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from sets import annotation, content

from yolact_deploy.datasets.formats.mask_shapes import mask_rle
from yolact_deploy.evaluation.confusion import Confusion


def found(image: int, category: int, box: tuple[int, int, int, int], score: float = 0.9) -> dict[str, Any]:
    x, y, w, h = box
    mask = np.zeros((48, 64), np.bool_)
    mask[y : y + h, x : x + w] = True
    return {
        "image_id": image,
        "category_id": category,
        "score": score,
        "bbox": list(box),
        "segmentation": mask_rle(mask),
    }


def test_pairs_missed_and_wrong() -> None:
    truth = content()  # image 1: a crowd of dogs, a cat at 10, 12, a dog at 2, 2; image 2: a dog at 5, 6
    results = [
        found(1, 7, (10, 12, 20, 16)),  # the cat
        found(1, 42, (10, 12, 20, 14)),  # again, as a dog: wrong
        found(1, 42, (40, 0, 5, 48)),  # in the crowd: does not count
        found(2, 7, (5, 6, 50, 28)),  # the dog taken for a cat
        found(2, 42, (5, 6, 50, 30), score=0.1),  # too low
        found(3, 7, (0, 0, 9, 9)),  # nothing there
    ]
    matrix = Confusion.of(truth, results, [1, 2, 3], max_detections=100)
    assert matrix.names == ("cat", "dog")
    assert matrix.counts.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_objects_and_detections(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = [tuple(int(v) for v in (*rng.integers(0, 30, 2), *rng.integers(4, 18, 2))) for _ in range(12)]
    truth = content()
    truth["annotations"] = [annotation(i, 1, (7, 42)[i % 2], boxes[i]) for i in range(6)]
    results = [found(1, (7, 42)[int(rng.integers(2))], boxes[i % 8]) for i in range(12)]  # type: ignore[arg-type]
    counts = Confusion.of(truth, results, [1], max_detections=100).counts
    assert counts[:2].sum() == 6
    assert counts[:, :2].sum() == 12

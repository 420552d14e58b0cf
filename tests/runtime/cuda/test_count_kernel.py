"""The kernel that counts detections above a score, in the emulator. Legend: N images, D detection slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emu import emulate

from yolact_deploy.runtime.cuda.plans.plan_count import count_above

pytestmark = pytest.mark.skipif(not emulate.available(), reason="needs g++ with C++20")


def count(scores: Any, num: Any, threshold: float, **run: Any) -> list[int]:
    wanted = np.full(len(num), -5, np.int32)
    arrays = {"scores": scores, "num_detections": np.asarray(num, np.int32), "wanted": wanted}
    emulate.run_plan(count_above(*scores.shape, score_threshold=threshold), arrays, **run)
    return list(wanted)


@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize(("batch", "slots"), [(1, 1), (1, 100), (5, 127), (3, 128), (2, 129), (2, 300)])
def test_counts(batch: int, slots: int, seed: int) -> None:
    rng = np.random.default_rng(slots)
    scores = -np.sort(-rng.random((batch, slots), np.float32), axis=1)
    num = rng.integers(0, slots + 1, batch)
    for threshold in (0.0, 0.3, 1.0):
        expected = [int((row[:n] > np.float32(threshold)).sum()) for row, n in zip(scores, num, strict=True)]
        assert count(scores, num, threshold, seed=seed) == expected


def test_edges() -> None:
    scores = np.array([[0.5, 0.5, np.nan, 0.25]], np.float32)
    assert count(scores, [4], 0.5) == [0], "the threshold itself is not above it"
    assert count(scores, [4], 0.25) == [2]
    assert count(scores, [0], 0.0) == [0]
    assert count(scores, [99], 0.0) == [3], "a count beyond the slots reads no further"


@pytest.mark.parametrize("mode", ["race", "address"])
def test_sanitizers(mode: str) -> None:
    if not emulate.available(mode):
        pytest.skip("no such sanitizer here")
    assert count(np.linspace(1, 0, 260, dtype=np.float32)[None].repeat(2, 0), [260, 131], 0.5, mode=mode) == [130, 130]

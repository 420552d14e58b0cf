"""Histograms of activations, and the ranges that the methods choose from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolact_deploy.export.ranges import BINS, PERCENTILE, Histograms
from yolact_deploy.vocabulary import CALIBRATION_METHODS


def gathered(*parts: Any) -> Histograms:
    found = Histograms(1)
    for values in parts:
        values = np.asarray(values, np.float32)
        found.add(0, float(values.min()), float(values.max()), values)
    return found


def heavy_tailed(positive: bool) -> Any:
    values = np.random.default_rng(5).standard_t(4, 400_000).astype(np.float32)
    return np.maximum(values, 0) if positive else values


def squared_error(values: Any, low: float, high: float) -> float:
    """Of int8 around zero, rounding each value."""
    scale = max(-low, high) / 127
    return float(np.mean((np.clip(np.round(values / scale), -127, 127) * scale - values) ** 2))


def test_the_order_of_the_images_does_not_matter() -> None:
    """Widening joins bins so that the counts are those of the last limit from the start, zeros among them."""
    small, large, zeros = np.linspace(-0.1, 0.05, 1000), np.linspace(-900, 700, 1000), np.zeros(10)
    forth, back = gathered(zeros, small, large), gathered(large, small, zeros)
    np.testing.assert_array_equal(forth.counts, back.counts)
    assert forth.limits[0] == back.limits[0] == 1024
    expected = np.histogram(np.concatenate([small, large, zeros]), BINS, (-1024, 1024))[0]
    assert forth.counts.sum() == expected.sum() == 2010
    assert forth.counts[0, BINS // 2] >= 10
    assert np.abs(np.cumsum(forth.counts[0]) - np.cumsum(expected)).max() <= 2, "float32 at the edges of bins"


@pytest.mark.parametrize("limit", [1.0, 2.0**-30, 3e38])
def test_values_at_the_ends_are_counted(limit: float) -> None:
    found = gathered([-limit, limit, 0.0])
    assert found.counts.sum() == 3
    assert found.range(0, "minmax") == (np.float32(-limit), np.float32(limit))


@pytest.mark.parametrize("method", CALIBRATION_METHODS)
def test_ranges_hold_zero_and_nothing_that_was_not_seen(method: str) -> None:
    for values in (heavy_tailed(True), heavy_tailed(False), -heavy_tailed(True), [3.0, 4.0], [0.5] * 9):
        low, high = gathered(values).range(0, method)
        assert min(np.min(values), 0) <= low <= 0 <= high <= max(np.max(values), 0)
        assert high - low > 0
    assert gathered(np.zeros(5)).range(0, method) == (0, 0)


def test_percentile_keeps_that_share() -> None:
    values = heavy_tailed(False)
    low, high = gathered(values).range(0, "percentile")
    clipped = np.mean((values < low) | (values > high)) * 100
    assert 100 - PERCENTILE - 0.001 < clipped <= 100 - PERCENTILE + 1e-9
    assert high < 0.9 * values.max()


@pytest.mark.parametrize("positive", [False, True])
def test_mse_is_the_best_of_all_ends(positive: bool) -> None:
    """Against a search that quantizes the values themselves."""
    values = heavy_tailed(positive)
    low, high = gathered(values).range(0, "mse")
    largest = float(np.abs(values).max())
    best = min(squared_error(values, -end, end) for end in np.linspace(0.02, 1, 99) * largest)
    assert squared_error(values, low, high) < 1.02 * best
    assert squared_error(values, -largest, largest) > 1.3 * best, "clipping pays here"


def test_entropy_clips_what_is_rare() -> None:
    values = heavy_tailed(True)
    _, high = gathered(values).range(0, "entropy")
    assert 3 < high < values.max() / 2
    even = np.random.default_rng(1).uniform(0, 1, 400_000)
    assert gathered(even).range(0, "entropy")[1] > 0.97, "an even spread loses by clipping"

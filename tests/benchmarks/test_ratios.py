"""The bootstrap interval of a ratio of times."""

from __future__ import annotations

import numpy as np
import pytest

from yolact_deploy.benchmarks.ratios import Ratio, Samples, ratio_of


def calls(rng: np.random.Generator, count: int = 60, correlation: float = 0.5) -> Samples:
    """Log noise of 5 % in which neighbouring calls are alike."""
    noise = rng.normal(size=count)
    for i in range(1, count):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
    return np.exp(0.05 * noise)


def test_a_known_ratio() -> None:
    rng = np.random.default_rng(1)
    a = 20 * calls(rng)
    ratio = ratio_of(np.median, a, 1.3 * a, paired=True)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.3, 1.3, 1.3)), "the same calls, each 1.3 times"
    assert ratio.excludes_one
    apart = ratio_of(np.median, a, 1.3 * a, paired=False)
    assert apart.low is not None
    assert apart.high is not None
    assert apart.low < 1.29 < 1.31 < apart.high, "without pairing the calls' own spread is in the interval"


def test_pairing_takes_out_what_the_images_cost() -> None:
    rng = np.random.default_rng(2)
    images = rng.uniform(10, 100, size=80)
    a, b = images * calls(rng, 80), 1.1 * images * calls(rng, 80)
    paired, apart = (ratio_of(np.mean, a, b, paired=paired) for paired in (True, False))
    assert paired.excludes_one
    assert not apart.excludes_one


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 % of 300 repetitions, of calls that are like their neighbours, with a ratio of 1.02."""
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(300):
        ratio = ratio_of(np.median, calls(rng), 1.02 * calls(rng), paired=True, seed=seed, draws=300)
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.02 <= ratio.high
    assert 0.92 < held / 300 < 0.99


def test_the_same_every_time_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    a, b = calls(rng), calls(rng)
    first = ratio_of(np.mean, a, b, paired=True)
    assert first == ratio_of(np.mean, a, b, paired=True)
    monkeypatch.setattr("yolact_deploy.benchmarks.ratios._VALUES_AT_ONCE", 7 * len(a))
    pieces = ratio_of(np.mean, a, b, paired=True)
    assert (pieces.low, pieces.high) == pytest.approx((first.low, first.high), abs=0.02)


def test_too_few_calls_have_no_interval() -> None:
    ratio = ratio_of(np.median, np.ones(19), np.full(19, 2.0), paired=True)
    assert ratio == Ratio(2.0)
    assert not ratio.excludes_one
    assert str(ratio) == "2"

"""The bootstrap interval of a ratio of times."""

from __future__ import annotations

import numpy as np
import pytest

from yolact_deploy.benchmarks.ratios import Ratio, Samples, change_of, ratio_of


def calls(rng: np.random.Generator, count: int = 60, correlation: float = 0.5) -> Samples:
    """Log noise of 5 % in which neighboring calls are alike."""
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
    """95 % of 300 repetitions, of calls that are like their neighbors, with a ratio of 1.02."""
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


# -- two runs -------------------------------------------------------------------------------------------------------


def two_runs(rng: np.random.Generator, slow: float, count: int = 64) -> tuple[Samples, Samples]:
    """Noise of 3 % from call to call, on a machine whose speed wanders on all scales of time (1/f); a pause between.

    Args:
        slow: standard deviation of each octave of the wandering
    """
    length = 4 * count
    wander = np.zeros(length)
    scale = 2
    while scale <= length:
        steps = rng.normal(0, slow, length // scale + 2)
        offset = int(rng.integers(scale))
        wander += np.repeat(steps, scale)[offset : offset + length]
        scale *= 2
    times = np.exp(wander + rng.normal(0, 0.03, length))
    return times[:count], times[-count:]


def test_two_runs_on_a_machine_that_wanders() -> None:
    """The interval of the same engine holds 1 as often as it says; that of calls alone does so far too seldom."""
    rng = np.random.default_rng(6)
    held = {"calls": 0, "runs": 0}
    for seed in range(200):
        a, b = two_runs(rng, 0.03)
        for kind, spread in (("calls", 0.0), ("runs", change_of([(1, b), (-1, a)]).drift)):
            ratio = ratio_of(np.median, a, b, paired=True, spread=spread, seed=seed, draws=400)
            held[kind] += not ratio.excludes_one
    assert held["calls"] < 0.80 * 200
    assert held["runs"] > 0.93 * 200


def test_a_steady_machine_does_not_drift() -> None:
    rng = np.random.default_rng(7)
    found = [change_of([(1, b), (-1, a)]) for a, b in (two_runs(rng, 0.0) for _ in range(200))]
    # A median of 8 calls of 3 % is off by 1.3 %, and two of them by 1.9 %; of 8 segments by an eighth of the variance.
    assert np.sqrt(np.mean([change.chance**2 for change in found])) == pytest.approx(0.0066, rel=0.25)
    assert np.median([change.drift for change in found]) < 0.01


def test_what_both_feel_is_no_drift() -> None:
    """The yardstick runs between the calls: what slows down both at the same time falls out."""
    rng = np.random.default_rng(8)
    a, b = (np.exp(0.2 * np.sin(np.arange(64) / 9 + phase)) for phase in (0, 1))
    noise = [np.exp(rng.normal(0, 0.01, 64)) for _ in range(4)]
    alone = change_of([(1, b * noise[0]), (-1, a * noise[1])])
    against = change_of([(1, b * noise[0]), (-1, a * noise[1]), (-1, b * noise[2]), (1, a * noise[3])])
    assert alone.drift > 0.05
    assert against.drift < 0.02


def test_a_factor_and_a_spread() -> None:
    rng = np.random.default_rng(9)
    a = calls(rng)
    ratio = ratio_of(np.median, a, 1.3 * a, paired=True, factor=1.3, spread=0.1, draws=20_000)
    assert ratio.value == pytest.approx(1)
    assert ratio.low is not None
    assert ratio.high is not None
    assert -np.log(ratio.low) == pytest.approx(np.log(ratio.high), rel=0.05)
    assert 0.2 < np.log(ratio.high) < 0.3, "1.96 standard deviations, and more for the few blocks"

"""The yardstick: what it times, how often, and that it is outside of the measured times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock import Clock
from scripted import SCRIPT, ScriptedBackend, source, write_pictures

from yolact_deploy.benchmarks import latency
from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.benchmarks.record import from_json, to_json
from yolact_deploy.datasets.image_sets import plain_images
from yolact_deploy.machine import yardstick as yardstick_module
from yolact_deploy.machine.cpu_state import usable_cores
from yolact_deploy.machine.yardstick import VERSION, Yardstick
from yolact_deploy.runtime import stage_timer

PARTS = ["one core", "all cores", "memory"]


@pytest.mark.parametrize(("steps", "rounds"), [(1, 1), (60, 60), (61, 31), (600, 60), (1000, 59)])
def test_rounds_are_spread_over_the_run(steps: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Yardstick, "_parts", {name: lambda: None for name in PARTS})
    with Yardstick(steps) as yardstick:
        for step in range(steps):
            yardstick.after(step)
    assert {name: len(times) for name, times in yardstick.times.samples_ms.items()} == dict.fromkeys(PARTS, rounds)


def test_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    with Yardstick(2) as yardstick:
        yardstick.after(0)
        yardstick.after(1)
        times = yardstick.times
    assert times.version == VERSION
    assert list(times.samples_ms) == PARTS
    assert all(len(samples) == 2 and min(samples) > 0 for samples in times.samples_ms.values())
    expected = yardstick._factor @ yardstick._factor
    assert len(yardstick._products) == usable_cores()
    for product in yardstick._products:
        np.testing.assert_array_equal(product, expected)
    assert yardstick._target.all()


def test_a_slower_machine_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product takes 20 ms and a copy 30 ms; each thread on all cores does one at a time."""
    clock = Clock()
    monkeypatch.setattr(yardstick_module, "time", clock)
    monkeypatch.setattr(np, "matmul", clock.takes(20, np.matmul))
    monkeypatch.setattr(np, "copyto", clock.takes(30, np.copyto))
    with Yardstick(1) as yardstick:
        yardstick.after(0)
    one, everywhere, memory = (samples[0] for samples in yardstick.times.samples_ms.values())
    expected: Any = pytest.approx([40, 30])
    assert [one, memory] == expected
    assert everywhere >= 40


def test_it_is_outside_of_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = Clock(step=1), list[int]()  # a millisecond for each look at the clock
    for module in (stage_timer, latency):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Yardstick, "after", clock.takes(200, lambda self, step: done.append(step)))
    images = plain_images(write_pictures(tmp_path))
    result = run_bench([source("a", ScriptedBackend(SCRIPT))], images, repeats=2).record
    assert done == list(range(6))
    assert clock.seconds > 1.2
    assert max(result.engines[0].latency.samples_ms) < 100


def test_it_is_in_the_file(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    result = run_bench([source("a", ScriptedBackend(SCRIPT))], images, repeats=2).record
    content = json.loads(json.dumps(to_json(result)))
    assert [len(times) for times in content["yardstick"]["samples_ms"].values()] == [6, 6, 6]
    stored = from_json(content, "a.json").yardstick
    assert stored is not None
    assert stored.version == VERSION

"""Predictors in processes: results in order, errors of their kind, an end that leaves nothing behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import CONFIG, SCRIPT, ScriptedBackend, predictor

from yolact_deploy.errors import BackendError, InputError
from yolact_deploy.runtime import predictor_pool
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.predictor_pool import PredictorPool, worker_count

# Functions at the top: the processes import them from this module.


def load() -> Predictor:
    logging.getLogger("yolact_deploy.test").warning("said by each while it loads")
    return predictor(ScriptedBackend(SCRIPT))


def cannot_load() -> Predictor:
    raise InputError("no such model file: m.onnx")


def work(model: Predictor, item: Any) -> Any:
    if isinstance(item, Exception):
        raise item
    if item == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(item, float):
        time.sleep(item)
        return os.getpid()
    return item, model.config.name, os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def pool() -> Iterator[PredictorPool[Any, Any]]:
    with PredictorPool(load, work, 2) as both:
        yield both


def test_results_in_the_order_of_the_items(pool: PredictorPool[Any, Any]) -> None:
    assert pool.config == CONFIG
    assert list(pool.map(range(100))) == [(number, "scripted", "1") for number in range(100)]
    assert list(pool.map([])) == []
    slow_first = list(pool.map([0.3, *[0.0] * 40]))
    assert len(set(slow_first)) == 2, "one works on while the other is slow"


def test_few_items_are_taken_ahead(pool: PredictorPool[Any, Any]) -> None:
    taken: list[int] = []
    results = pool.map(taken.append(number) or number for number in range(1000))  # type: ignore[func-returns-value]
    for _ in range(10):
        next(results)
    assert len(taken) < 40
    assert len(list(results)) == 990


def test_large_items_and_results(pool: PredictorPool[Any, Any]) -> None:
    """More than fits into a pipe, both ways at once."""
    frames = [np.full((600, 800, 3), number, np.uint8) for number in range(12)]
    results = list(pool.map(frame.tobytes() for frame in frames))
    assert [item for item, *_ in results] == [frame.tobytes() for frame in frames]


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (InputError("cannot read a.jpg"), InputError, "cannot read a.jpg"),
        (ZeroDivisionError("by zero"), BackendError, "ZeroDivisionError: by zero"),
    ],
)
def test_errors_come_after_the_results_before_them(
    pool: PredictorPool[Any, Any], error: Exception, kind: type[Exception], text: str
) -> None:
    results = pool.map([1, 2, 3, error])
    assert [next(results)[0] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(kind, match=f"^{text}$"):
        next(results)


def test_a_model_that_cannot_be_loaded() -> None:
    with pytest.raises(InputError, match=r"^no such model file: m\.onnx$"):
        PredictorPool(cannot_load, work, 1)
    assert not multiprocessing.active_children() or all(p.is_alive() for p in multiprocessing.active_children())


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_process_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    with PredictorPool(load, work, 2) as both:
        assert caplog.messages == ["said by each while it loads"], "said once"
        with pytest.raises(BackendError, match=r"of 2 ended with -9: the system ended it.*Use fewer --workers"):
            list(both.map([1, "end", *range(100)]))
        processes = both._processes
    assert not any(process.is_alive() for process in processes)


def test_how_many_are_worth_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(predictor_pool, "usable_cores", lambda: 4)
    monkeypatch.setattr(predictor_pool, "ROOT", tmp_path)
    assert [worker_count(n) for n in (1, 99, 100, 199, 5000)] == [1, 1, 2, 3, 4]
    assert worker_count(5000, threads=3) == worker_count(5000, on_gpu=True) == 1
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 4000000 kB\n")
    assert worker_count(5000) == 4
    assert worker_count(5000, model_bytes=200 << 20) == 1
    monkeypatch.setattr(predictor_pool, "usable_cores", lambda: 64)
    assert worker_count(5000) == 4, "as many as fit into half of the memory"
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 64000000 kB\n")
    assert worker_count(5000) == 8


@pytest.mark.parametrize("workers", [0, -1, 10**9])
def test_impossible_numbers(workers: int) -> None:
    with pytest.raises(InputError, match="workers: expected a number from 1"):
        PredictorPool(partial(load), work, workers)

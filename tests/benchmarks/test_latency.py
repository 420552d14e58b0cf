"""Measuring: what is counted, in which order, and what it covers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import SCRIPT, HeadsBackend, ScriptedBackend, predictor, write_pictures

from yolact_deploy.benchmarks import latency as latency_module
from yolact_deploy.benchmarks.latency import Latency, measure, measure_interleaved
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.runtime import backend as runtime_backend
from yolact_deploy.runtime import predictor as runtime_predictor
from yolact_deploy.runtime import stage_timer as stages
from yolact_deploy.runtime.backend import Outputs
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL


def test_percentiles() -> None:
    latency = Latency(tuple(float(v) for v in range(1, 102)), {"network": 30.0, "paste": 2.5})
    assert (latency.p50, latency.percentile(90), latency.percentile(99)) == (51, 91, 100)
    assert latency.mean == 51
    assert latency.images_per_second == pytest.approx(1000 / 51)
    assert latency.to_json()["p99_ms"] == 100
    assert latency.unaccounted_ms == latency.to_json()["unaccounted_ms"] == 51 - 32.5
    assert latency.encode_ms is latency.to_json()["encode_mean_ms"] is None, "which was not measured"


def test_whole_and_stages(tmp_path: Path) -> None:
    backend = ScriptedBackend(SCRIPT, delay=0.02)
    latency = measure(predictor(backend), write_pictures(tmp_path), warmup=2, repeats=2)
    assert len(latency.samples) == 6
    assert backend.seen == [1, 2, 1, 2, 3, 1, 2, 3], "warm-up first, then two rounds"
    assert tuple(latency.stages) == ("decode", "preprocess", NETWORK_WITH_TAIL, "detect", "paste")
    assert latency.stages[NETWORK_WITH_TAIL] >= 20
    assert latency.stages["decode"] > 0, "pictures come from files"
    assert latency.stages["paste"] > 0
    assert 0 <= latency.unaccounted_ms < 10
    assert len(latency.encode_samples) == 3, "the first round only"
    assert latency.encode_ms is not None
    assert latency.encode_ms > 0


class Clock:
    """Stands for the module `time`: time passes only where a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def takes(self, milliseconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, but it takes so long."""

        def slowed(*args: Any, **options: Any) -> Any:
            self.seconds += milliseconds / 1e3
            return function(*args, **options)

        return slowed


def test_every_millisecond_is_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr(latency_module, "time", clock)
    model = predictor(HeadsBackend())
    for milliseconds, owner, name in (
        (1, runtime_predictor, "read_image"),
        (2, runtime_predictor, "resize_image"),
        (4, model.backend, "run"),
        (8, runtime_backend, "detect"),
        (16, runtime_backend, "mask_windows"),
        (32, Detections, "from_normalized"),
        (64, model.backend, "paste"),
        (128, model, "_check_open"),
        (256, Detections, "rle"),
    ):
        monkeypatch.setattr(owner, name, clock.takes(milliseconds, getattr(owner, name)))
    latency = measure(model, write_pictures(tmp_path), warmup=1, repeats=3)
    assert latency.samples == pytest.approx([255] * 9)
    expected = {"decode": 1, "preprocess": 2, "network": 4, "nms": 8, "assembly": 16, "detect": 32, "paste": 64}
    assert latency.stages == pytest.approx(expected)
    assert latency.stages_p50 == pytest.approx(expected)
    assert latency.unaccounted_ms == pytest.approx(128), "what is between the stages"
    assert latency.encode_samples == pytest.approx([256] * 3), "of the first round, and not in the whole"
    assert latency.to_json()["stages_p50_ms"] == pytest.approx(expected)


def test_a_slow_paste_shows_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models in turns, of which one sleeps for 5 ms in each paste: the least that its paste can then take.

    Other programs make a sleep, as all else, only longer; of the other stages the median must not grow by half of it.
    """
    models = {name: predictor(ScriptedBackend(SCRIPT, name=name)) for name in ("usual", "slow")}
    paste = models["slow"].backend.paste

    def slow(*args: Any) -> Any:
        end = time.perf_counter() + 0.005
        while (left := end - time.perf_counter()) > 0:  # a sleep may end a little early by this clock
            time.sleep(left)
        return paste(*args)

    monkeypatch.setattr(models["slow"].backend, "paste", slow)
    found = measure_interleaved(models, write_pictures(tmp_path), warmup=1, repeats=15)
    usual, slowed = found["usual"], found["slow"]
    assert min(slowed.samples) >= 5
    assert min(slowed.stages["paste"], slowed.stages_p50["paste"]) >= 5
    grown = {stage: spent - usual.stages_p50[stage] for stage, spent in slowed.stages_p50.items()}
    assert grown.pop("paste") > 2.5
    assert max(grown.values()) < 2.5, grown
    assert slowed.p50 - usual.p50 > 2.5
    assert sum(slowed.stages.values()) <= slowed.mean


def test_models_take_turns_in_changing_order(tmp_path: Path) -> None:
    order: list[str] = []

    class Told(ScriptedBackend):
        def run(self, images: Any) -> Outputs:
            order.append(self.name)
            return super().run(images)

    models = {name: predictor(Told(SCRIPT, name=name)) for name in "abc"}
    results: list[tuple[int, dict[str, Detections]]] = []
    latencies = measure_interleaved(
        models, write_pictures(tmp_path), warmup=0, repeats=2, on_result=lambda i, found: results.append((i, found))
    )
    assert "".join(order) == "abcbcacababcbcacab"
    assert {len(latency.samples) for latency in latencies.values()} == {6}
    assert [index for index, _ in results] == [0, 1, 2], "the first round only"
    assert [len(found["b"]) for _, found in results] == [3, 1, 0]


def test_results_are_handed_over_outside_the_measured_time(tmp_path: Path) -> None:
    backend = ScriptedBackend(SCRIPT)
    latencies = measure_interleaved(
        {"a": predictor(backend)}, write_pictures(tmp_path), warmup=1, on_result=lambda i, found: time.sleep(0.2)
    )
    assert latencies["a"].mean < 150


def test_wrong_uses(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path)
    model = predictor(ScriptedBackend(SCRIPT))
    with pytest.raises(InputError, match="nothing to measure"):
        measure(model, [])
    with pytest.raises(InputError, match="repeats >= 1, got 3 and 0"):
        measure(model, paths, repeats=0)
    with pytest.raises(InputError, match="lazy_masks=False"):
        measure(Predictor(ScriptedBackend(SCRIPT)), paths)
    with pytest.raises(InputError, match="no such image"):
        measure(model, [tmp_path / "absent.png"])


def test_environment_tells_no_names() -> None:
    found = environment()
    text = json.dumps(found)
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert {"cpu", "os", "python", "memory_gib", "yolact_deploy", "date"} <= set(found)
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text

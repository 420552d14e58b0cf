"""Measuring: what is counted, in which order, and what it covers."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock import Clock
from scripted import SCRIPT, HeadsBackend, ScriptedBackend, predictor, write_pictures

from yolact_deploy.benchmarks import latency as latency_module
from yolact_deploy.benchmarks.latency import measure_interleaved
from yolact_deploy.benchmarks.record import Latency
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.machine.environment import environment
from yolact_deploy.runtime import any_image, tails
from yolact_deploy.runtime import predictor as runtime_predictor
from yolact_deploy.runtime import stage_timer as stages
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.runtime.stage_timer import NETWORK_WITH_TAIL
from yolact_deploy.runtime.tails import Outputs


def measure(model: Predictor, images: Sequence[Path], **options: Any) -> Latency:
    return measure_interleaved({"": model}, images, **options)[""]


def test_percentiles() -> None:
    latency = Latency.of(tuple(float(v) for v in range(1, 102)), {"network": 30.0, "paste": 2.5})
    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (51, 91, 100)
    assert latency.mean_ms == 51
    assert latency.images_per_s == pytest.approx(1000 / 51)
    assert latency.unaccounted_ms == 51 - 32.5
    assert latency.encode_mean_ms is None, "which was not measured"


def test_whole_and_stages(tmp_path: Path) -> None:
    backend = ScriptedBackend(SCRIPT, delay=0.02)
    latency = measure(predictor(backend), write_pictures(tmp_path), warmup=2, repeats=2)
    assert len(latency.samples_ms) == 6
    assert backend.seen == [1, 2, 1, 2, 3, 1, 2, 3], "warm-up first, then two rounds"
    assert tuple(latency.stages_mean_ms) == ("decode", "preprocess", NETWORK_WITH_TAIL, "detect", "paste")
    assert latency.stages_mean_ms[NETWORK_WITH_TAIL] >= 20
    assert latency.stages_mean_ms["decode"] > 0, "pictures come from files"
    assert latency.stages_mean_ms["paste"] > 0
    assert latency.unaccounted_ms >= 0
    assert latency.encode_mean_ms is not None
    assert latency.encode_mean_ms > 0


def stop_clock(monkeypatch: pytest.MonkeyPatch, step: float = 0.0) -> Clock:
    clock = Clock(step)
    monkeypatch.setattr(stages, "time", clock)
    monkeypatch.setattr(latency_module, "time", clock)
    return clock


def test_every_millisecond_is_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stop_clock(monkeypatch)
    model = predictor(HeadsBackend())
    for milliseconds, owner, name in (
        (1, any_image, "read_image"),
        (2, runtime_predictor, "fit_image"),
        (4, model.backend, "run"),
        (8, tails, "detect"),
        (16, tails, "mask_windows"),
        (32, Detections, "from_normalized"),
        (64, tails, "paste_windows"),
        (128, model, "_check_open"),
        (256, Detections, "rle"),
    ):
        monkeypatch.setattr(owner, name, clock.takes(milliseconds, getattr(owner, name)))
    latency = measure(model, write_pictures(tmp_path), warmup=1, repeats=3)
    assert latency.samples_ms == pytest.approx([255] * 9)
    expected = {"decode": 1, "preprocess": 2, "network": 4, "nms": 8, "assembly": 16, "detect": 32, "paste": 64}
    assert latency.stages_mean_ms == pytest.approx(expected)
    assert latency.stages_p50_ms == pytest.approx(expected)
    assert latency.unaccounted_ms == pytest.approx(128), "what is between the stages"
    assert latency.encode_mean_ms == pytest.approx(256), "not in the whole"
    calls = 1 + 3 * 3
    assert clock.seconds == pytest.approx((calls * 255 + 3 * 256) / 1e3), "masks are encoded in the first round only"


def test_a_slow_paste_shows_in_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models in turns, of which one takes 5 ms longer in each paste."""
    clock = stop_clock(monkeypatch)
    models = {name: predictor(ScriptedBackend(SCRIPT, name=name)) for name in ("usual", "slow")}
    for name, model in models.items():
        monkeypatch.setattr(model.backend, "run", clock.takes(3, model.backend.run))
        tail = model.backend.tail
        monkeypatch.setattr(tail, "paste", clock.takes(7 if name == "slow" else 2, tail.paste))
    latencies = measure_interleaved(models, write_pictures(tmp_path), warmup=1, repeats=15)
    usual, slowed = latencies["usual"], latencies["slow"]
    grown = {stage: spent - usual.stages_p50_ms[stage] for stage, spent in slowed.stages_p50_ms.items()}
    assert grown.pop("paste") == pytest.approx(5)
    assert all(growth == pytest.approx(0) for growth in grown.values()), grown
    assert slowed.p50_ms - usual.p50_ms == pytest.approx(5)
    assert usual.p50_ms == pytest.approx(5)


def test_models_take_turns_in_changing_order(tmp_path: Path) -> None:
    order: list[str] = []

    class Noted(ScriptedBackend):
        def run(self, images: Any) -> Outputs:
            order.append(self.name)
            return super().run(images)

    models = {name: predictor(Noted(SCRIPT, name=name)) for name in "abc"}
    results: list[tuple[int, dict[str, Detections]]] = []
    latencies = measure_interleaved(
        models, write_pictures(tmp_path), warmup=0, repeats=2, on_result=lambda i, found: results.append((i, found))
    )
    assert "".join(order) == "abcbcacababcbcacab"
    assert {len(latency.samples_ms) for latency in latencies.values()} == {6}
    assert [index for index, _ in results] == [0, 1, 2], "the first round only"
    assert [len(found["b"]) for _, found in results] == [3, 1, 0]


def test_results_are_handed_over_outside_the_measured_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stop_clock(monkeypatch, step=1)  # a millisecond for each look at the clock
    take = clock.takes(200, lambda index, detections: None)
    backend = ScriptedBackend(SCRIPT)
    latencies = measure_interleaved({"a": predictor(backend)}, write_pictures(tmp_path), warmup=1, on_result=take)
    assert clock.seconds > 0.6
    assert max(latencies["a"].samples_ms) < 100


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

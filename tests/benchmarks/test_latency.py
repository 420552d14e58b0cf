"""Measuring: what is counted, in which order, and what it covers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import SCRIPT, ScriptedBackend, predictor, write_pictures

from yolact_deploy.benchmarks.environment import environment
from yolact_deploy.benchmarks.latency import Latency, OtherLoad, measure, measure_interleaved
from yolact_deploy.detections import Detections
from yolact_deploy.errors import InputError
from yolact_deploy.runtime.backend import Outputs
from yolact_deploy.runtime.predictor import STAGES, Predictor


def test_percentiles() -> None:
    latency = Latency(tuple(float(v) for v in range(1, 102)), dict.fromkeys(STAGES, 0.0))
    assert (latency.p50, latency.percentile(90), latency.percentile(99)) == (51, 91, 100)
    assert latency.mean == 51
    assert latency.images_per_second == pytest.approx(1000 / 51)
    assert latency.to_json()["p99_ms"] == 100


def test_whole_and_stages(tmp_path: Path) -> None:
    backend = ScriptedBackend(SCRIPT, delay=0.02)
    latency = measure(predictor(backend), write_pictures(tmp_path), warmup=2, repeats=2)
    assert len(latency.samples) == 6
    assert backend.seen == [1, 2, 1, 2, 3, 1, 2, 3], "warm-up first, then two rounds"
    assert latency.stages["network"] >= 20
    assert latency.stages["decode"] > 0, "pictures come from files"
    assert latency.stages["paste"] > 0
    assert sum(latency.stages.values()) <= latency.mean
    assert latency.mean < sum(latency.stages.values()) + 10


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


def test_memory_that_came_and_went_is_seen() -> None:
    """In a process of its own: what other tests left behind may be given back meanwhile."""
    code = """
import time
import numpy as np
from yolact_deploy.benchmarks.latency import MemorySampler
with MemorySampler() as sampler:
    block = np.ones(64 << 17)  # 64 MiB, touched
    time.sleep(0.1)
    del block
with MemorySampler() as idle:
    time.sleep(0.02)
print(sampler.growth_mib, idle.growth_mib)
"""
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    growth, idle = map(float, done.stdout.split())
    assert 60 < growth < 200
    assert idle < 30


def test_load_of_others_is_seen_and_our_own_is_not() -> None:
    def burn() -> float:
        with OtherLoad() as others:
            end = time.perf_counter() + 0.5
            while time.perf_counter() < end:
                pass
        return others.cores

    quiet = burn()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.1)
        loaded = burn()
        other.kill()
    if quiet > 0.3:
        pytest.skip("other programs are at work on this machine")
    assert loaded > 0.5


def test_environment_tells_no_names() -> None:
    found = environment()
    text = json.dumps(found)
    assert found["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__
    assert {"cpu", "os", "python", "memory_gib", "yolact_deploy", "date"} <= set(found)
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text

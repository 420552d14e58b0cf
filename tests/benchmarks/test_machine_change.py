"""A machine that was faster or slower in one of two runs is not taken for the engine."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from test_diff import ENVIRONMENT, result, row

from yolact_deploy.benchmarks.diff import FASTER, NO_DIFFERENCE, SLOWER, UNKNOWN, diff_records
from yolact_deploy.benchmarks.machine_change import machine_change
from yolact_deploy.benchmarks.record import EngineRecord, Record
from yolact_deploy.benchmarks.record_tables import diff_lines
from yolact_deploy.machine.yardstick import YardstickTimes

PARTS = {"one core": 3.0, "all cores": 4.0, "memory": 2.0}


def yardstick(factor: float, seed: int, rounds: int = 40, **factors: float) -> YardstickTimes:
    """Times of its parts times ``factor``, give or take 1 %."""
    rng = np.random.default_rng(seed)
    samples = {
        name: tuple((ms * factors.get(name.replace(" ", "_"), factor) * rng.normal(1, 0.01, rounds)).tolist())
        for name, ms in PARTS.items()
    }
    return YardstickTimes(1, samples)


def runs(before: EngineRecord, after: EngineRecord, machine: float, **changes: Any) -> tuple[Record, Record]:
    """Two runs, of which the machine took ``machine`` times as long in the second."""
    first = {"yardstick": yardstick(1, 50), **changes}
    return result("a.json", before, **first), result("b.json", after, **{**first, "yardstick": yardstick(machine, 51)})


@pytest.mark.parametrize("machine", [0.87, 0.92, 1.1])
def test_what_all_feel_is_the_machine(machine: float) -> None:
    for seed in range(10):
        a, b = runs(row("m", seed), row("m", seed + 100, machine), machine)
        diff = diff_records(a, b)
        (found,) = diff.rows
        assert found.verdict == NO_DIFFERENCE
        assert found.p50.value == pytest.approx(1, abs=0.03)
        assert found.measured == pytest.approx(machine, rel=0.03)
        assert f"on an equally fast machine ({found.measured:.3f} as measured)" in found.sentence
    assert diff.machine is not None
    assert diff.machine.ratio == pytest.approx(machine, rel=0.01)
    percent, word = abs(100 * (diff.machine.ratio - 1)), "slower" if machine > 1 else "faster"
    assert f"note: by the yardstick the machine was {percent:.1f} % {word} in b.json than in a.json (one core " in (
        "\n".join(diff_lines(diff))
    )
    values = json.loads(json.dumps(diff.to_json()))
    assert values["machine"]["ratio"] == diff.machine.ratio
    assert values["engines"][0]["machine_taken_off"]
    assert values["engines"][0]["measured_p50_ratio"] == found.measured


def test_an_engine_that_changed_beyond_it() -> None:
    a, b = runs(row("m", 1), row("m", 2, 1.2 * 0.9), 0.9)
    (found,) = diff_records(a, b).rows
    assert found.verdict == SLOWER
    assert found.p50.value == pytest.approx(1.2, abs=0.02)
    assert found.p50.low is not None
    assert found.p50.low > 1.1
    a, b = runs(row("m", 1), row("m", 2, 0.5 * 1.1), 1.1)
    assert diff_records(a, b).rows[0].verdict == FASTER
    one_run, _ = runs(row("m", 1), row("m", 2), 1.1)
    assert machine_change(one_run, one_run) == (None, "")


def test_parts_that_disagree_make_it_less_sure() -> None:
    before = row("m", 1)
    a, b = runs(before, row("m", 2, 1.1), 1.0)
    assert diff_records(a, b).rows[0].verdict == SLOWER
    uneven = yardstick(1.0, 51, one_core=0.9, all_cores=1.2, memory=1.0)
    b = result("b.json", row("m", 2, 1.1), yardstick=uneven)
    diff = diff_records(a, b)
    assert diff.rows[0].verdict == NO_DIFFERENCE
    assert "these calls cannot show less than" in diff.rows[0].sentence
    assert diff.machine is not None
    assert diff.machine.spread == pytest.approx(np.std(np.log([0.9, 1.2, 1.0]), ddof=1), rel=0.1)


def test_without_a_yardstick_it_is_unknown() -> None:
    a, b = result("a.json", row("m", 1)), result("b.json", row("m", 2, 1.1), yardstick=yardstick(1.1, 1))
    diff = diff_records(a, b)
    assert (diff.rows[0].verdict, diff.machine, diff.rows[0].machine) == (SLOWER, None, None)
    assert "on an equally fast machine" not in diff.rows[0].sentence
    (warning,) = diff.warnings
    assert warning.startswith("a.json has no yardstick: the speed of the machine in either run is unknown")
    assert diff_records(b, b).warnings == (), "of one run there is nothing to ask"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {**ENVIRONMENT, "cpu": "D"}}, r"cannot be compared \(cpu differs\)"),
        ({"environment": {**ENVIRONMENT, "versions": {"numpy": "3"}}}, r"\(versions.numpy differs\)"),
        ({"yardstick": YardstickTimes(2, yardstick(1, 3).samples_ms)}, r"\(version of the yardstick differs\)"),
        ({"yardstick": yardstick(1, 3, rounds=19)}, "fewer than 20 rounds of the yardstick"),
        ({"yardstick": YardstickTimes(1, {"one core": (1.0,) * 40})}, "fewer than 20 rounds"),
    ],
)
def test_yardsticks_of_different_work(changes: dict[str, Any], message: str) -> None:
    a, _ = runs(row("m", 1), row("m", 1), 1.0)
    b = result("b.json", row("m", 2), **{"yardstick": yardstick(1, 51), **changes})
    found, reason = machine_change(a, b)
    assert found is None
    assert re.search(message, reason)
    assert diff_records(a, b).warnings[-1] == reason


def test_all_cores_are_compared_of_the_same_engines_only() -> None:
    """Threads of another runtime may spin on a core that the yardstick wants."""
    a, _ = runs(row("m", 1), row("m", 1), 1.0)
    uneven = yardstick(1.0, 51, all_cores=2.0)
    same, other = (
        result("b.json", row("m", 2), yardstick=uneven),
        result("b.json", row("m", 2), row("n", 3), yardstick=uneven),
    )
    found, _ = machine_change(a, same)
    assert found is not None
    assert list(found.parts) == ["one core", "all cores", "memory"]
    found, _ = machine_change(a, other)
    assert found is not None
    assert list(found.parts) == ["one core", "memory"]
    assert found.ratio == pytest.approx(1, abs=0.01)


def test_a_gpu_is_not_compared_by_it() -> None:
    gpu = {"device": "cuda:0"}
    a, b = runs(row("m", 1, runtime=gpu), row("m", 2, runtime=gpu), 1.3)
    (found,) = diff_records(a, b).rows
    assert (found.machine, found.verdict) == (None, NO_DIFFERENCE)
    assert found.p50.value == pytest.approx(found.measured, rel=1e-12)


def test_other_programs_are_in_the_interval_where_the_yardstick_felt_them() -> None:
    a, b = runs(row("m", 1), row("m", 2, 2.0), 1.0, others=1.5)
    (found,) = diff_records(a, b).rows
    assert (found.verdict, found.busy) == (SLOWER, ())
    without = result("c.json", *b.engines, others=1.5)
    assert diff_records(a, without).rows[0].verdict == UNKNOWN

"""`bench diff`: the comparison of two records."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("msgspec")

from yolact_deploy.benchmarks.diff import FASTER, NO_DIFFERENCE, SLOWER, UNKNOWN, diff_records
from yolact_deploy.benchmarks.ratios import Ratio
from yolact_deploy.benchmarks.record import BenchSettings, EngineRecord, Latency, MeasuredImages, Record
from yolact_deploy.benchmarks.record_tables import diff_lines, diff_table, run_lines, run_rows, runs_table
from yolact_deploy.console import print_table
from yolact_deploy.errors import InputError
from yolact_deploy.evaluation.accuracy import Accuracy, AveragePrecision
from yolact_deploy.evaluation.agreement import AgreementMeter
from yolact_deploy.evaluation.bootstrap import Interval
from yolact_deploy.machine.conditions import ConditionsMeter

#: the warning about two runs of which the first has no yardstick; test_machine_change.py has runs with one
NO_YARDSTICK = (
    "a.json has no yardstick: the speed of the machine in either run is unknown, and the ratios include it; measure "
    "again with bench --output FILE"
)
ENVIRONMENT: Any = {"cpu": "C", "cores": 2, "date": "2026-01-01T00:00:00+00:00", "versions": {"numpy": "2"}}
DATASET = MeasuredImages(fingerprint="f" * 64, images=60, available=60, annotations="val.json", image_ids=None)


def accuracy(box_ap: float) -> Accuracy:
    return Accuracy(AveragePrecision(box_ap, None, None, None, None, None), None, 60, 100)


def row(name: str, seed: int, factor: float = 1.0, calls: int = 60, keep: bool = True, **values: Any) -> EngineRecord:
    """10 ms in the network and 2 in pasting, times ``factor``, give or take 2 %; AP 30 unless given."""
    samples = 12 * factor * np.random.default_rng(seed).normal(1, 0.02, calls)
    latency = Latency.of(tuple(samples.tolist()), {"network": 10.0 * factor, "paste": 2.0 * factor})
    values = {"accuracy": accuracy(0.3), "weights_sha256": "a" * 64, "runtime": {"threads": 2}, **values}
    return EngineRecord(
        name=name,
        latency=latency if keep else dataclasses.replace(latency, samples_ms=()),
        **{**FACTS, **values},
    )


FACTS: dict[str, Any] = {
    "backend": "onnxruntime",
    "precision": "fp32",
    "image_size": 550,
    "file_mib": 1.0,
    "memory_mib": 1.0,
    "speedup": 1.0,
    "agreement": None,
    "warnings": (),
}


def result(name: str, *rows: EngineRecord, others: float = 0.0, **changes: Any) -> Record:
    """The record of a run during which other programs used ``others`` cores."""
    settings = BenchSettings(warmup=3, repeats=1, agreement_score_threshold=0.15, cores_used_by_others=others)
    content = {"environment": ENVIRONMENT, "dataset": DATASET, "settings": settings, "reference": rows[0].name}
    return Record(name=name, engines=rows, worst_images=(), **{**content, **changes})


def test_two_runs_of_one_engine() -> None:
    for seed in range(20):
        (found,) = diff_records(result("a.json", row("m", seed)), result("b.json", row("m", seed + 100))).rows
        assert found.verdict == NO_DIFFERENCE
        assert found.sentence.startswith("no difference: takes ")
        assert found.paired


def test_a_faster_and_a_slower_engine() -> None:
    a, b = result("a.json", row("m", 1), row("n", 2)), result("b.json", row("m", 3, 0.5), row("n", 4, 1.2))
    m, n = diff_records(a, b).rows
    assert (m.verdict, n.verdict) == (FASTER, SLOWER)
    assert m.p50.value == pytest.approx(0.5, abs=0.02)
    assert m.p50.low is not None
    assert m.p50.high is not None
    assert 0.48 < m.p50.low < m.p50.value < m.p50.high < 0.52
    assert m.sentence.startswith(f"takes {m.p50} times as long: 5.99 instead of 12.00")
    assert m.sentence.endswith("ms at p50, most of it in network (5.00 instead of 10.00 ms)")


def test_what_is_within_the_margin_is_no_difference() -> None:
    a, b = result("a.json", row("m", 1)), result("b.json", row("m", 1, 1.02))
    (found,) = diff_records(a, b).rows
    assert found.p50.excludes_one
    assert found.verdict == NO_DIFFERENCE
    assert found.sentence == (
        "no difference: takes 1.020 (1.020 to 1.020) times as long, within the 3 % by which two runs may differ"
    )
    assert diff_records(a, b, margin=0.01).rows[0].verdict == SLOWER
    with pytest.raises(InputError, match="--margin: expected 0 or more"):
        diff_records(a, b, margin=-1)


def test_calls_that_cannot_show_a_difference_say_so() -> None:
    rng = np.random.default_rng(1)
    stages = {"network": 10.0}
    wild = [
        dataclasses.replace(row("m", i), latency=Latency.of(tuple(rng.uniform(5, 50, 24).tolist()), stages))
        for i in (1, 2)
    ]
    (found,) = diff_records(result("a.json", wild[0]), result("b.json", wild[1])).rows
    assert found.verdict == NO_DIFFERENCE
    assert "; these calls cannot show less than " in found.sentence
    assert found.sentence.endswith("measure more images or --repeats for that")


@pytest.mark.parametrize(
    ("paste", "network", "ratio", "verdict"),
    [
        ((1.0, 6.0), (10.0, 10.5), 1.3, SLOWER),  # several times as long
        ((1.0, 1.3), (10.0, 13.0), 1.3, NO_DIFFERENCE),  # as the whole, whose interval holds that
        ((0.1, 0.5), (10.0, 12.5), 1.3, NO_DIFFERENCE),  # next to nothing of the whole
        ((1.0, 6.0), (10.0, 4.0), 0.9, NO_DIFFERENCE),  # the call is no slower
        ((None, 6.0), (10.0, 7.0), 1.3, NO_DIFFERENCE),  # other stages: nothing to compare
    ],
)
def test_a_stage_that_stands_out_of_a_wide_interval(paste: Any, network: Any, ratio: float, verdict: str) -> None:
    (found,) = diff_records(result("a.json", row("m", 1)), result("b.json", row("m", 2))).rows
    wide = Ratio(ratio, ratio * 0.7, ratio * 1.4)
    assert not wide.excludes_one
    found = dataclasses.replace(found, p50=wide, stages={"network": network, "paste": paste})
    assert found.verdict == verdict
    assert (found.slowed_stage == "paste") == (paste == (1.0, 6.0))
    if verdict == SLOWER:
        assert found.sentence.endswith("most of it in paste (6.00 instead of 1.00 ms)")


@pytest.mark.parametrize("options", [{"keep": False}, {"calls": 19}])
def test_without_enough_calls_nobody_knows(options: dict[str, Any]) -> None:
    (found,) = diff_records(result("a.json", row("m", 1, **options)), result("b.json", row("m", 2, 2.0))).rows
    assert found.verdict == UNKNOWN
    assert found.p50.value == pytest.approx(2, rel=0.05)
    assert found.sentence.endswith("this may be chance")


def test_accuracy() -> None:
    a, b = result("a.json", row("m", 1)), result("b.json", row("m", 2, accuracy=accuracy(0.29)))
    (found,) = diff_records(a, b).rows
    assert list(found.ap) == ["box"]
    assert found.ap["box"].points == pytest.approx(-1)
    assert "m: box AP 29.00 instead of 30.00 (-1.00 points)" in list(diff_lines(diff_records(a, b)))
    interval: dict[str, Any] = {
        "ap_difference": {"box": Interval(-0.01, -0.01, -0.02, -0.001, 60, 1000, 0)},
        "accuracy": accuracy(0.29),
    }
    one_run = result("a.json", row("m", 1), row("n", 2, **interval))
    (against,) = diff_records(one_run, one_run, ("m", "n")).rows
    assert against.ap["box"].words == "-1.00 points, 95 % -2.00 to -0.10: a difference"
    assert diff_records(one_run, one_run, ("n", "m")).rows[0].ap["box"].words == "+1.00 points", "m is the reference"
    unscored = result("b.json", row("m", 2, accuracy=None))
    assert diff_records(a, unscored).rows[0].ap == {}


def test_other_images_are_not_paired() -> None:
    other = dataclasses.replace(DATASET, fingerprint="0" * 64, annotations=None)
    found = diff_records(result("a.json", row("m", 1)), result("b.json", row("m", 2, 1.5, calls=40), dataset=other))
    assert (found.rows[0].paired, found.rows[0].verdict) == (False, SLOWER)
    assert found.rows[0].ap["box"].points is None
    assert found.warnings[0].startswith("measured on other images")


def test_warnings() -> None:
    a = result("a.json", row("m", 1))
    b = result(
        "b.json",
        row("m", 2, weights_sha256="b" * 64, image_size=400, runtime={"threads": 1}),
        environment={**ENVIRONMENT, "cpu": "D"},
    )
    found = diff_records(a, b)
    assert found.warnings == ("environments differ in cpu: C and D", NO_YARDSTICK)
    assert found.rows[0].warnings == (
        "made from other weights (aaaaaaaaaaaa and bbbbbbbbbbbb)",
        "input sizes are 550 and 400",
        "threads is 2 and 1",
    )
    assert diff_records(a, a).rows[0].warnings == ()


def test_a_busy_machine_makes_differences_doubtful() -> None:
    busy = result("b.json", row("m", 2), others=1.5)
    warning, unknown = diff_records(result("a.json", row("m", 1)), busy).warnings
    assert unknown == NO_YARDSTICK
    assert warning.startswith("b.json: other programs used 1.5 of 2 cores: times")
    busy = result("b.json", row("m", 2, 1.5), row("n", 3), others=1.5)
    (found,) = diff_records(result("a.json", row("m", 1)), busy).rows
    assert (found.verdict, found.busy) == (UNKNOWN, ("b.json",))
    assert "; but other programs were running during b.json, which may explain it" in found.sentence
    turns = diff_records(busy, busy, ("m", "n")).rows[0]
    assert (turns.verdict, turns.busy) == (FASTER, ()), "in one run both had the same to bear"
    with ConditionsMeter() as meter:
        pass
    conditions = dataclasses.replace(meter.conditions, other_cores=0.0, debug=("a debug build: use another",))
    slow = result("b.json", row("m", 2), conditions=conditions)
    assert [line for line in diff_records(slow, slow).warnings if "debug" in line] == [
        "b.json: a debug build: use another"
    ]


def test_rows_that_are_named() -> None:
    a, b = result("a.json", row("m", 1), row("n", 2)), result("b.json", row("n", 3), row("o", 4, 3.0))
    found = diff_records(a, b)
    assert [r.a for r in found.rows] == ["n"]
    assert found.warnings == ("only a.json has m", "only b.json has o", NO_YARDSTICK)
    (named,) = diff_records(a, b, ("m", "o")).rows
    assert (named.a, named.b, named.verdict) == ("m", "o", SLOWER)
    assert [r.b for r in diff_records(a, b, (None, "n")).rows] == ["n"]
    with pytest.raises(InputError, match=r"b\.json has no engine 'm'"):
        diff_records(a, b, ("m", None))
    with pytest.raises(InputError, match="no common name: choose the engines as FILE:ENGINE FILE:ENGINE"):
        diff_records(a, result("c.json", row("o", 1)))
    (same,) = diff_records(a, a, ("m", "n")).rows
    assert same.paired, "two engines of one run"


def test_tables_fit_120_columns(capsys: pytest.CaptureFixture[str]) -> None:
    name = "yolact_resnet50.onnx@openvino-bf16"
    a = result("cpu_epyc2_resnet50_speed.json", row(name, 1), row("eager", 1))
    b = result("cpu_epyc2_resnet50_fp16_agreement.json", row(name, 2, 2.0), others=1.0)
    diff = diff_records(a, b, ("eager", name))
    for table in (diff_table(diff), runs_table([a, b])):
        print_table(table.columns, table.rows, title=table.title)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 120
    assert printed.count(name) == 3, "no name is folded"
    json.dumps(diff.to_json())
    assert next(iter(diff_lines(diff))).startswith(f"{name} against eager: takes 2.0")


def test_many_results() -> None:
    agreed = dataclasses.replace(AgreementMeter().result(), agreed_share=0.9)
    a, b = result("x/a.json", row("m", 1)), result("b.json", row("m", 2), row("n|o", 3, agreement=agreed))
    assert [(r["run"], r["engine"], r["agreed_share"]) for r in run_rows([a, b])] == [
        (1, "m", None),
        (2, "m", None),
        (2, "n|o", 0.9),
    ]
    wide = runs_table([a, b], wide=True)
    assert set(wide.columns) - set(runs_table([a, b]).columns) == {"backend", "size", "box AP"}
    assert dict(zip(wide.columns, wide.rows[2], strict=True))["agreed %"] == "90.00"
    lines = wide.markdown().splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * len(wide.columns)) + " |"
    assert "n\\|o" in lines[4]
    assert len(lines) == 5
    first, second = run_lines([a, b])
    assert first == "run 1: a.json: 60 images (val.json), C, 2 cores, 2026-01-01; reference m"
    busy = result("c.json", row("m", 1), others=1.5)
    assert "other programs used 1.5 of 2 cores" in list(run_lines([busy]))[1]
    assert second.startswith("run 2: b.json")

"""Limits: a wrong or slowed engine is caught, each with the right words, and a right one is not."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from scripted import SCRIPT, ScriptedBackend, bench, predictor, source, write_pictures

from yolact_deploy.benchmarks.gates import (
    GateCheck,
    Limits,
    baseline_warnings,
    judge,
    junit_xml,
    raise_missed,
    write_junit,
)
from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.benchmarks.record import Record, from_json, to_json
from yolact_deploy.config import YolactConfig
from yolact_deploy.datasets.image_sets import open_images, plain_images
from yolact_deploy.errors import DatasetError, GateError, InputError, OutputError
from yolact_deploy.evaluation.agreement import SCORE_THRESHOLD
from yolact_deploy.evaluation.engines import EngineSource
from yolact_deploy.machine.yardstick import Yardstick
from yolact_deploy.mask_forms import MaskCrops, MaskWindows
from yolact_deploy.model import YolactModel
from yolact_deploy.runtime.tails import GraphTail, HeadOutputs, Outputs
from yolact_deploy.runtime.torch.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Eager and one that loses a detection."""
    return bench(tmp_path_factory.mktemp("gates"), repeats=4)


def missed(result: Record, **limits: Any) -> str:
    with pytest.raises(GateError) as caught:
        raise_missed(judge(result, Limits(**limits)))
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_each_limit(result: Record) -> None:
    raise_missed(judge(result, Limits()))
    kept = judge(result, Limits(max_ap_drop=100, min_agreement=0.1, min_fps=0.1, max_p99_ms=1e6))
    assert [check.gate for check in kept] == ["max-ap-drop", "min-agreement", "min-fps", "max-p99-ms"]
    raise_missed(kept)
    fast = result.engines[1].latency
    assert re.fullmatch(
        r"fast loses \d+\.\d\d points of mask AP, 95 % -?\d+\.\d\d to \d+\.\d\d \(limit 1\)",
        missed(result, max_ap_drop=1),
    )
    assert missed(result, min_agreement=0.98).startswith(
        "fast agrees with eager on 33.33 % of the detections (limit 98 %): 1 missed, 0 extra, 0 of another class, "
        "mean box IoU 0.9"
    )
    fps = f"fast reaches {fast.images_per_s:.2f} images/s (limit 1e+06)"
    p99 = f"fast takes {fast.p99_ms:.2f} ms at p99 (limit 0.01)"
    assert missed(result, min_fps=1e6) == fps
    assert missed(result, max_p99_ms=0.01) == p99
    assert missed(result, max_ap_drop=100, min_fps=1e6, max_p99_ms=0.01) == f"{fps}; {p99}", "only what was missed"


def test_a_model_alone(result: Record) -> None:
    alone = dataclasses.replace(result, engines=result.engines[:1])
    assert missed(alone, min_fps=1e6).startswith("eager reaches")
    assert judge(alone, Limits(max_ap_drop=0)) == [], "it is the reference"


def test_what_cannot_be_judged_is_refused_before(result: Record) -> None:
    blind = dataclasses.replace(result, engines=tuple(dataclasses.replace(r, accuracy=None) for r in result.engines))
    with pytest.raises(DatasetError, match="needs ground truth"):
        judge(blind, Limits(max_ap_drop=1))
    with pytest.raises(DatasetError, match="needs ground truth"):
        Limits(max_ap_drop=1).check_usable(["a", "b"], has_truth=False)
    with pytest.raises(InputError, match="give --weights or a second --engine"):
        Limits(min_agreement=0.9).check_usable(["a"], has_truth=True)
    with pytest.raises(InputError, match="this run has no engine 'new'"):
        Limits(baseline=result).check_usable(["eager", "new"], has_truth=True)
    Limits(baseline=result).check_usable(["other reference", "fast"], has_truth=True)


def test_nothing_to_agree_on(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    silent = run_bench([source("a", ScriptedBackend({})), source("b", ScriptedBackend({}))], images).record
    with pytest.raises(DatasetError, match="neither a nor b detects anything: give images with objects"):
        judge(silent, Limits(min_agreement=0.9))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_agreement": 98}, "--min-agreement: expected a share from 0 to 1"),
        ({"tolerance": -0.1}, "--tolerance: expected a share"),
        ({"tolerance": float("nan")}, "--tolerance: expected a share"),
        ({"max_p99_ms": float("nan")}, "--max-p99-ms: expected a number"),
    ],
)
def test_limits_that_mean_nothing(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Limits(**limits)


# -- wrong engines --------------------------------------------------------------------------------------------------

TINY = YolactConfig(
    name="tiny", backbone="mobilenet_v2", image_size=96, num_classes=3, fpn_channels=8, top_k=20, max_detections=10
)


class TinyBackend(TorchBackend):
    """A small network of random weights, with a mistake before or after it."""

    def __init__(self, model: YolactModel, mistake: str) -> None:
        super().__init__(model)
        self.mistake = mistake

    def run(self, images: Any) -> HeadOutputs:
        if self.mistake == "channels":
            images = np.ascontiguousarray(images[..., ::-1])
        boxes, scores, coeff, proto = super().run(images)
        if self.mistake == "labels":
            scores = np.roll(scores, 1, axis=2)
        if self.mistake == "masks":
            proto = np.ascontiguousarray(proto[:, :, ::-1])
        return HeadOutputs(boxes, scores, coeff, proto)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch: so small a network gains nothing by a second, which waits for a core where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Record:
    """The tiny network against itself with each mistake, and without one; what it finds itself is the ground truth."""
    folder = tmp_path_factory.mktemp("wrong")
    torch.manual_seed(2)
    model = YolactModel(TINY).eval()
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [
        {"id": i, "name": name} for i, name in zip(TINY.category_ids, TINY.class_names, strict=True)
    ]
    (folder / "images").mkdir()
    with predictor(TinyBackend(model, "none")) as reference:
        for number in (1, 2, 3):
            patches = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            picture = cv2.resize(patches, (80, 60), interpolation=cv2.INTER_NEAREST)
            name = f"{number}.png"
            cv2.imwrite(str(folder / "images" / name), picture)
            content["images"].append({"id": number, "file_name": name, "height": 60, "width": 80})
            content["annotations"] += [
                {**found, "id": len(content["annotations"]) + i, "iscrowd": 0, "area": 100.0}
                for i, found in enumerate(reference(picture).to_coco(number, TINY.category_ids), 1)
                if found["score"] > SCORE_THRESHOLD
            ]
    (folder / "instances_val.json").write_text(json.dumps(content))
    sources = [
        EngineSource(mistake, lambda mistake=mistake: predictor(TinyBackend(model, mistake)))
        for mistake in ("none", "labels", "masks", "channels", "right")
    ]
    return run_bench(sources, open_images(coco=folder, lenient=True), warmup=1, find_mistakes=True).record


def test_wrong_engines_are_caught_and_a_right_one_is_not(wrong: Record) -> None:
    checks = judge(wrong, Limits(min_agreement=0.98, max_ap_drop=0.5))
    gates = ("min-agreement", "max-ap-drop")
    caught = {gate: [c.engine for c in checks if c.gate == gate and not c.passed] for gate in gates}
    assert caught == {gate: ["labels", "masks", "channels"] for gate in caught}
    said = {check.engine: check.sentence for check in checks if check.gate == "min-agreement"}
    words = {
        "labels": "labels are shifted by one",
        "masks": "masks are mirrored left to right",
        "channels": "input channels are swapped",
    }
    for engine, mistake in words.items():
        assert mistake in said[engine]
    assert said["right"] == "right agrees with none on 100.00 % of the detections (limit 98 %)"
    rows = {row.name: row.agreement for row in wrong.engines}
    labels, masks = rows["labels"], rows["masks"]
    assert labels is not None
    assert f"{labels.missed} missed, {labels.extra} extra, {labels.label_flips} of another class" in said["labels"]
    assert masks is not None
    assert (masks.missed, masks.extra, masks.matched_share_90) == (0, 0, 1), "boxes alone would not show it"
    assert f"mean box IoU 1.000, mean mask IoU {masks.mean_mask_iou:.3f}" in said["masks"]
    by_ap = judge(wrong, Limits(max_ap_drop=0.5))
    assert [check.sentence.partition(": ")[2].startswith(words.get(check.engine, "")) for check in by_ap] == [True] * 4


# -- the baseline ---------------------------------------------------------------------------------------------------


class Clock:
    """Takes the place of ``time.perf_counter``, so that a busy machine changes no test."""

    def __init__(self) -> None:
        self.now, self.rng = 0.0, np.random.default_rng(5)
        #: how many times as long everything takes
        self.machine = 1.0

    def __call__(self) -> float:
        return self.now

    def spend(self, milliseconds: float) -> None:
        self.now += milliseconds * 1e-3 * self.machine * self.rng.uniform(0.97, 1.03)


class TimedTail(GraphTail):
    """Takes ``milliseconds`` for pasting, give or take 3 %."""

    def __init__(self, clock: Clock, milliseconds: float) -> None:
        self.clock, self.milliseconds = clock, milliseconds

    def paste(self, masks: MaskWindows, height: int, width: int) -> MaskCrops:
        self.clock.spend(self.milliseconds)
        return super().paste(masks, height, width)


class TimedBackend(ScriptedBackend):
    """20 ms for the network and 2 ms for pasting, give or take 3 %; then ``slower`` ms more for pasting."""

    def __init__(self, clock: Clock, slower: float = 0.0) -> None:
        super().__init__(dict.fromkeys(SCRIPT, SCRIPT[1]))
        self.clock, self.tail = clock, TimedTail(clock, 2 + slower)

    def run(self, images: Any) -> Outputs:
        self.clock.spend(20)
        return super().run(images)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Record]:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    work = {"one core": lambda: clock.spend(3), "all cores": lambda: clock.spend(4), "memory": lambda: clock.spend(2)}
    monkeypatch.setattr(Yardstick, "_parts", work)
    images = plain_images(write_pictures(tmp_path))

    def run(slower: float = 0.0, repeats: int = 8, machine: float = 1.0) -> Record:
        clock.machine = machine
        sources = [source("eager", TimedBackend(clock)), source("fast", TimedBackend(clock, slower))]
        result = run_bench(sources, images, repeats=repeats).record
        # By this clock, nobody can say how busy the machine was.
        return dataclasses.replace(
            result, conditions=None, settings=dataclasses.replace(result.settings, cores_used_by_others=0.0)
        )

    return run


@pytest.mark.slow
def test_a_slowed_stage_is_caught_by_the_baseline(timed: Callable[..., Record]) -> None:
    baseline = from_json(json.loads(json.dumps(to_json(timed()))), "last.json")
    limits = Limits(baseline=baseline)
    (check,) = judge(timed(), limits)
    assert (check.engine, check.gate, check.passed) == ("fast", "baseline", True)
    assert check.sentence.startswith("fast against last.json: no difference: takes ")
    slow = timed(slower=5)
    sentence = missed(slow, baseline=baseline, tolerance=0.05)
    assert re.search(
        r"^fast against last\.json: takes 1\.2\d\d \(1\.\d+ to 1\.\d+\) times as long on an equally fast machine "
        r"\(1\.2\d\d as measured\): 2[67]\.\d\d instead of 2[12]\.\d\d ms at p50, "
        r"most of it in paste \([67]\.\d\d instead of [12]\.\d\d ms\) \(limit 1\.05\)$",
        sentence,
    )
    raise_missed(judge(timed(slower=5), Limits(baseline=baseline, tolerance=0.5)))
    busy = dataclasses.replace(
        slow, settings=dataclasses.replace(slow.settings, cores_used_by_others=100.0), yardstick=None
    )
    assert "; but other programs were running during this run, which may explain it" in (
        missed(busy, baseline=baseline)
    )


@pytest.mark.slow
def test_a_slower_machine_does_not_stop_a_release(timed: Callable[..., Record]) -> None:
    baseline = dataclasses.replace(timed(), name="last.json")
    limits = Limits(baseline=baseline)
    today = timed(machine=1.1)
    (check,) = judge(today, limits)
    assert check.passed
    assert re.search(
        r"^fast against last\.json: no difference: takes (0\.9|1\.0)\d\d \(0\.\d+ to 1\.\d+\) times as long on an "
        r"equally fast machine \((1\.09|1\.1)\d+ as measured\)",
        check.sentence,
    )
    (line,) = baseline_warnings(today, limits)
    assert re.search(r"^by the yardstick the machine was (9|10)\.\d % slower in this run than in last\.json", line)
    # Without a yardstick nobody can know.
    blind = dataclasses.replace(today, yardstick=None)
    assert "takes 1.1" in missed(blind, baseline=baseline)
    (line,) = baseline_warnings(blind, limits)
    assert line.startswith("this run has no yardstick")
    # A slower engine is caught on a slower machine, and on a faster one.
    for machine in (0.9, 1.1):
        assert "most of it in paste" in missed(timed(slower=5, machine=machine), baseline=baseline)


@pytest.mark.slow
def test_a_few_calls_are_judged_by_their_median(timed: Callable[..., Record]) -> None:
    baseline = timed(repeats=1)
    assert "this may be chance" in missed(timed(slower=5, repeats=1), baseline=baseline)
    raise_missed(judge(timed(repeats=1), Limits(baseline=baseline)))


def test_warnings_about_another_environment_than_the_baselines(result: Record) -> None:
    environment: Any = {**result.environment, "cpu": "Other CPU"}
    other = dataclasses.replace(
        result, environment=environment, dataset=dataclasses.replace(result.dataset, fingerprint="0" * 64)
    )
    limits = Limits(baseline=dataclasses.replace(other, name="last.json"))
    images, speed, cpu = baseline_warnings(result, limits)
    assert speed.startswith("the yardsticks cannot be compared (cpu differs)")
    assert images.startswith("the baseline last.json was measured on other images")
    assert cpu.startswith("the baseline last.json is from another environment: cpu: Other CPU and ")
    assert list(baseline_warnings(result, Limits(baseline=result))) == []
    assert list(baseline_warnings(result, Limits())) == []


# -- JUnit ----------------------------------------------------------------------------------------------------------


def test_junit(tmp_path: Path) -> None:
    checks = [
        GateCheck("a.onnx", "min-fps", True, "a.onnx is fast"),
        GateCheck("b <&>", "baseline", False, 'b <&> is "slow"'),
    ]
    write_junit(checks, tmp_path / "junit.xml")
    suites = ET.parse(tmp_path / "junit.xml").getroot()  # written by us
    assert (suites.tag, suites.attrib) == ("testsuites", {"tests": "2", "failures": "1", "errors": "0"})
    (suite,) = suites
    assert suite.get("name") == "yolact-deploy bench"
    kept, lost = suite
    assert (kept.get("classname"), kept.get("name"), kept.find("failure")) == ("a.onnx", "min-fps", None)
    failure = lost.find("failure")
    assert failure is not None
    assert (lost.get("classname"), failure.get("message")) == ("b <&>", 'b <&> is "slow"')
    with pytest.raises(OutputError, match="cannot write"):
        write_junit(checks, tmp_path / "junit.xml" / "x.xml")


def test_junit_without_failures() -> None:
    suites = ET.fromstring(junit_xml([GateCheck("a", "min-fps", True, "a is fast")]))
    assert suites.get("failures") == "0"
    assert suites.findtext("testsuite/testcase/system-out") == "a is fast"

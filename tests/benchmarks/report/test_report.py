"""The HTML report needs nothing else, shows what it should, can be read by a screen reader, and stays small."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scripted import SCRIPT, Instance, ScriptedBackend, bench, bench_run, detections, source, write_coco, write_pictures

from yolact_deploy.benchmarks.gates import GateCheck
from yolact_deploy.benchmarks.measure import run_bench
from yolact_deploy.benchmarks.published import PUBLISHED
from yolact_deploy.benchmarks.record import Latency
from yolact_deploy.benchmarks.report import report_accuracy, report_pictures
from yolact_deploy.benchmarks.report import report_page as report
from yolact_deploy.datasets.image_sets import open_images, plain_images
from yolact_deploy.detections import Detections
from yolact_deploy.errors import OutputError
from yolact_deploy.evaluation.bootstrap import Interval

VOID = {"meta", "img", "wbr", "link"}


class Checker(HTMLParser):
    """Notes tags, links and whether every tag is closed, and what a screen reader would miss."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.keys: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))
        if tag not in VOID:  # a <rect> with a title in it is no self-closing one
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def _note(self, tag: str, attrs: dict[str, str | None]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs.items() if name in ("src", "href", "srcset", "xlink:href")]
        self.keys += [value or "" for name, value in attrs.items() if name == "id"]
        assert not [name for name in attrs if name.startswith("on")], "no scripts in attributes"
        if tag == "img":
            assert attrs["alt"]
        if tag == "th":
            assert attrs["scope"] in ("row", "col")
        if tag == "svg" and "svg" not in self.open:
            assert attrs.get("aria-hidden") == "true" or (attrs["role"] == "img" and attrs["aria-label"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert len(set(checker.keys)) == len(checker.keys)
    assert "script" not in checker.counts
    for link in checker.links:
        assert link.startswith(("data:image/jpeg;base64,", "data:,")) or link.removeprefix("#") in checker.keys
    assert "http" not in text, "nothing is loaded, not even a namespace named"
    assert "url(" not in text.replace("url(#hatch)", "")
    return checker


def test_report(tmp_path: Path) -> None:
    run = bench_run(tmp_path)
    result = run.record
    path = tmp_path / "out" / "report.html"
    report.write_report(result, path, pictures=run.pictures)
    page = checked(path.read_text())
    assert page.counts["img"] == 6, "three images by two models"
    for word in (
        "eager",
        "fast",
        "000001.png",
        "1 detection: 1 missed (without 1 dog)",
        "1 detection: none missed, none extra",
        result.environment["cpu"],
        "mask AP",
        "instances_val",
        "unaccounted",
        "p99 is little more than its slowest call",
    ):
        assert word in page.text
    assert str(tmp_path) not in path.read_text()


def test_sentences(tmp_path: Path) -> None:
    result = bench(tmp_path)
    samples = tuple(np.linspace(10, 30, 101).tolist())
    slow = dataclasses.replace(result.engines[0], latency=Latency.of(samples, {"network": 12.0}))
    fast = dataclasses.replace(result.engines[1], speedup=2.0, ap_difference={})
    assert report._sentence(slow, result.engines[0]).startswith(
        "eager takes 20.0 ms (p50), 29.8 ms at p99: 50.00 images/s."
    )
    said = report._sentence(fast, result.engines[0])
    assert ", 2.00 times as fast as eager. Its mask AP is " in said
    assert " points below eager's. Both agree on " in said
    for speedup, words in ((1.001, "as fast as"), (0.5, "2.00 times as slow as"), (3, "3.00 times as fast as")):
        assert report._times(speedup) == words


def test_limits_stand_at_the_top(tmp_path: Path) -> None:
    result = bench(tmp_path)
    kept = GateCheck("fast", "min-fps", True, "fast makes 90 images/s (limit 2)")
    missed = GateCheck("fast", "max-ap-drop", False, "fast loses 9 points of mask AP (limit 1)")
    page = checked(report.render(result, checks=[kept, missed]))
    assert "1 of 2 limits were missed:" in page.text
    heading = page.text.rindex("Where the time goes")  # the first is a link
    assert page.text.index(missed.sentence) < page.text.index(kept.sentence) < heading
    assert "1 of 1 limits were kept" in checked(report.render(result, checks=[kept])).text
    assert "limits" not in checked(report.render(result)).text


def test_warnings_are_shown_once(tmp_path: Path) -> None:
    result = bench(tmp_path)
    busy = dataclasses.replace(result.settings, cores_used_by_others=float(result.environment["cores"]))
    row = dataclasses.replace(result.engines[1], warnings=("made from other weights",) * 2)
    page = checked(report.render(dataclasses.replace(result, settings=busy, engines=(result.engines[0], row))))
    assert page.text.count("fast: made from other weights") == 1
    assert "measure again on a quiet machine" in page.text


@pytest.mark.parametrize(
    ("annotations", "images", "together"),
    [("instances_val2017.json", 5000, True), ("instances_val2017.json", 20, False), ("instances_my.json", 5000, False)],
)
def test_published_figures_are_never_taken_for_ours(
    tmp_path: Path, annotations: str, images: int, together: bool
) -> None:
    result = bench(tmp_path)
    data = dataclasses.replace(result.dataset, annotations=annotations, images=images)
    text = report.render(dataclasses.replace(result, dataset=data))
    page = checked(text)
    charts = re.findall(r"<figure>.*?</figure>", text[text.index('id="trade"') :], re.DOTALL)
    of_ours, of_others = ([chart for chart in charts if word in chart] for word in ("measured here:", "RTMDet-Ins"))
    assert len(of_ours) == len(of_others) == 1
    assert (of_ours == of_others) is together
    assert ("a chart of their own" in page.text) is not together
    assert "not measured here" in page.text
    assert len(re.findall('class="measured"', of_ours[0])) == 2 + 1, "two models and the legend"
    for figure in PUBLISHED:
        assert figure.source in page.text
        assert f"{figure.mask_ap:.1f}" in page.text


def test_without_ground_truth(tmp_path: Path) -> None:
    images = plain_images(write_pictures(tmp_path))
    sources = [source("eager", ScriptedBackend(SCRIPT)), source("other", ScriptedBackend(SCRIPT))]
    page = checked(report.render(run_bench(sources, images).record))
    assert "mask AP is" not in page.text
    assert "RTMDet" not in page.text


def decoded(data: bytes) -> NDArray[Any]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_pictures_show_the_detections(tmp_path: Path) -> None:
    run = bench_run(tmp_path)
    text = report.render(run.record, pictures=run.pictures)
    first, second = (decoded(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)", text)[:2])
    assert first.shape == second.shape == (60, 80, 3)
    assert (first[15:45, 50:75].std(), second[15:45, 50:75].std()) > (5, 0), "eager's dog is drawn"
    assert first[20:40, 55:70].max() > second[20:40, 55:70].max() + 20
    assert 'alt="000001.png, with what eager detects: 1 cat, 1 dog"' in text
    assert 'alt="000003.png, with what fast detects: nothing"' in text


def test_differences_by_class() -> None:
    def seen(*labels: int) -> Detections:
        return detections([Instance(label, 0.9, (10, 10, 30, 30)) for label in labels])

    say = report_pictures._differences
    assert say(seen(0, 0, 1), seen(0, 1)) == " (without 1 cat)"
    assert say(seen(0), seen(0, 1, 1, 2)) == " (with 2 dog, 1 owl)"
    assert say(seen(0), seen(1)) == " (without 1 cat, with 1 dog)"
    assert say(seen(1, 0), seen(0, 1)) == ""


def test_names_are_escaped(tmp_path: Path) -> None:
    result = bench(tmp_path)
    evil = dataclasses.replace(result.engines[1], name="<script>alert('1')</script>\"", warnings=("a < b",))
    text = report.render(dataclasses.replace(result, engines=(result.engines[0], evil)))
    assert "a &lt; b" in text
    assert "<script>alert('1')</script>" in checked(text).text


def test_wide_pictures_shrink() -> None:
    wide = report_pictures._jpeg(np.zeros((500, 2000, 3), np.uint8))
    tall = report_pictures._jpeg(np.zeros((4000, 100, 3), np.uint8))
    for data, shape in ((wide, (120, 480, 3)), (tall, (960, 24, 3))):
        assert decoded(data).shape == shape


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_pictures, "PICTURE_BYTES", 5000)
    run = bench_run(tmp_path)
    page = checked(report.render(run.record, pictures=run.pictures))
    assert page.counts.get("img", 0) < 6
    assert "left out to keep this file small" in page.text


def test_many_calls_and_models_stay_below_three_megabytes(tmp_path: Path) -> None:
    result = bench(tmp_path)
    times = np.random.default_rng(0).gamma(4.0, 10.0, 20_000)
    latency = Latency.of(tuple(times.tolist()), {"network": 30.0, "paste": 5.0})
    rows = tuple(dataclasses.replace(result.engines[1], name=f"engine {i}", latency=latency) for i in range(30))
    text = report.render(dataclasses.replace(result, engines=(result.engines[0], *rows)))
    checked(text)
    assert len(text.encode()) + report_pictures.PICTURE_BYTES < 3e6


def test_one_model_alone(tmp_path: Path) -> None:
    write_coco(tmp_path)
    run = run_bench([source("only", ScriptedBackend(SCRIPT))], open_images(coco=tmp_path))
    page = checked(report.render(run.record, pictures=run.pictures))
    assert "disagree" not in page.text


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        report.write_report(bench(tmp_path), tmp_path / "file" / "report.html")


# -- accuracy in detail ---------------------------------------------------------------------------------------------


def test_changes_by_class_and_curves(tmp_path: Path) -> None:
    text = report.render(bench(tmp_path))
    page = checked(text)
    changes = re.findall(r"<span>(\w+)</span><span><svg.*?</span><span>([-+\d.]+)</span>", text, re.DOTALL)
    assert [name for name, _ in changes] == ["dog", "cat"], "the owl's is as it was; the worst first"
    assert float(changes[0][1]) == pytest.approx(-100, abs=5)
    assert float(changes[0][1]) < float(changes[1][1]) < 0
    assert "2 of 3 classes lose mask AP, 0 gain" in page.text
    assert text.count("<polyline") == 2 * 2 + 2, "two models at two IoUs, and two of latency"


def test_differences_with_intervals() -> None:
    first, second = Interval(-0.02, -0.021, -0.03, -0.01, 72, 1000, 0), Interval(0.0, 0.0, -0.005, 0.005, 72, 1000, 0)
    text = "".join(report_accuracy._differences([("a", first), ("b", second)], "eager"))
    page = checked(text)
    assert "-2.00 (-3.00 to -1.00)" in page.text
    assert "+0.00 (-0.50 to +0.50)" in page.text
    assert "1000 draws of the 72 images" in page.text


def test_no_intervals_without_them(tmp_path: Path) -> None:
    result = bench(tmp_path)
    rows = tuple(dataclasses.replace(row, ap_difference={}) for row in result.engines)
    assert "95 % interval" not in report.render(dataclasses.replace(result, engines=rows))

"""The HTML report in a real browser: no errors, nothing loaded, nothing cut off, on screens of any width and paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import chromium
import pytest
from scripted import bench_run

from yolact_deploy.benchmarks.gates import GateCheck
from yolact_deploy.benchmarks.report.report_page import write_report

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium here: apt-get install chromium")

#: texts and pictures that reach over the edge of the page, unless they stand in something that scrolls by itself
_CUT_OFF = """
[...document.querySelectorAll("svg text, p, li, td, th, img, figcaption, h1, h2, h3")]
  .filter(e => !e.closest(".scroll") && e.checkVisibility())
  .filter(e => { const r = e.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1; })
  .map(e => e.tagName + ": " + e.textContent)
"""
#: texts of the charts that lie on each other
_OVERLAPPING = """
[...document.querySelectorAll(".plot, .ticks")].flatMap(chart => {
  const texts = [...chart.querySelectorAll("text")].map(e => [e.getBoundingClientRect(), e.textContent]);
  return texts.flatMap(([a, one], i) => texts.slice(i + 1)
    .filter(([b]) => a.left < b.right && b.left < a.right && a.top < b.bottom - 3 && b.top < a.bottom - 3)
    .map(([, other]) => one + " / " + other));
})
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = bench_run(folder)
    result = run.record
    long = dataclasses.replace(result.engines[1], name="a_very_long_name_of_a_model_file.onnx@openvino-bf16:threads=2")
    checks = [GateCheck("fast", "min-fps", False, "fast makes 1 images/s (limit 2)")]
    data = dataclasses.replace(result.dataset, annotations="instances_val2017.json", images=5000)
    rows = (*result.engines, long)
    result = dataclasses.replace(result, engines=rows, dataset=data)
    write_report(result, folder / "report.html", pictures=run.pictures, checks=checks)
    return folder / "report.html"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_opens(browser: chromium.Chromium, page: Path, width: int, dark: bool) -> None:
    seen = browser.open(page, width, dark=dark)
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    assert browser.evaluate(_CUT_OFF) == []
    assert browser.evaluate(_OVERLAPPING) == []
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    ink, back = browser.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert (back == "rgb(255, 255, 255)") is not dark
    assert ink != back


def test_charts_are_drawn(browser: chromium.Chromium, page: Path) -> None:
    browser.open(page, 390)
    areas = browser.evaluate(
        """[...document.querySelectorAll(".strip > svg, .plot > svg")].map(chart => {
             const r = chart.getBoundingClientRect();
             return [r.width, r.height, chart.querySelectorAll("*").length]; })"""
    )
    assert len(areas) >= 8
    sides = "(e => { const r = document.querySelector(e).getBoundingClientRect(); return [r.left, r.right]; })"
    bars, axis = (browser.evaluate(f"{sides}('#latency {e} svg')") for e in (".strip", ".ticks"))
    assert bars == axis, "the times under the bars are theirs"
    assert all(width > 250 and height >= 14 and parts for width, height, parts in areas)


def test_paper(browser: chromium.Chromium, page: Path) -> None:
    height = "document.querySelector('details table').getBoundingClientRect().height"
    browser.open(page, 1280)
    assert not browser.evaluate("document.querySelector('details table').checkVisibility()"), "folded on the screen"
    seen = browser.open(page, 700, dark=True, media="print")
    assert seen.errors == []
    assert browser.evaluate(height) > 100, "what is folded on the screen is printed"
    assert browser.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(_CUT_OFF) == []
    assert browser.pdf().startswith(b"%PDF")

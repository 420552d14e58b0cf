"""The HTML report needs nothing else, shows what it should, and stays small."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from scripted import SCRIPT, ScriptedBackend, source, write_coco
from test_bench import bench

from yolact_deploy.benchmarks import report
from yolact_deploy.benchmarks.bench import run_bench
from yolact_deploy.benchmarks.coco import open_images
from yolact_deploy.errors import OutputError

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Notes tags, links and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:  # a <rect> with a title in it is no self-closing one
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    return checker


def test_report(tmp_path: Path) -> None:
    result = bench(tmp_path)
    path = tmp_path / "out" / "report.html"
    report.write_report(result, path)
    page = checked(path.read_text())
    assert page.counts["img"] == 6, "three images by two models"
    assert page.counts["svg"] == 2
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "http" not in page.text
    for word in (
        "eager",
        "fast",
        "000001.png",
        "1 missed, 0 extra",
        result.environment["cpu"],
        "mask AP",
        "instances_val",
    ):
        assert word in page.text
    assert str(tmp_path) not in path.read_text()


def test_pictures_show_the_detections(tmp_path: Path) -> None:
    text = report.render(bench(tmp_path))
    first, second = (
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        for data in re.findall(r"base64,([^\"]+)", text)[:2]
    )
    assert first.shape == second.shape == (60, 80, 3)
    assert (first[15:45, 50:75].std(), second[15:45, 50:75].std()) > (5, 0), "eager's dog is drawn"
    assert first[20:40, 55:70].max() > second[20:40, 55:70].max() + 20


def test_names_are_escaped(tmp_path: Path) -> None:
    result = bench(tmp_path)
    evil = dataclasses.replace(result.rows[1], name="<script>alert(1)</script>", warnings=("a < b",))
    text = report.render(dataclasses.replace(result, rows=(result.rows[0], evil)))
    assert "<script>" not in text
    assert "a &lt; b" in text
    checked(text)


def test_wide_pictures_shrink() -> None:
    wide = report._jpeg(np.zeros((500, 2000, 3), np.uint8))
    tall = report._jpeg(np.zeros((4000, 100, 3), np.uint8))
    for data, shape in ((wide, (120, 480, 3)), (tall, (960, 24, 3))):
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == shape


def test_the_file_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_PICTURE_BYTES", 5000)
    page = checked(report.render(bench(tmp_path)))
    assert page.counts.get("img", 0) < 6
    assert "left out to keep this file small" in page.text


def test_one_model_alone(tmp_path: Path) -> None:
    write_coco(tmp_path)
    result = run_bench([source("only", ScriptedBackend(SCRIPT))], open_images(coco=tmp_path), quiet=True)
    page = checked(report.render(result))
    assert "disagree" not in page.text


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        report.write_report(bench(tmp_path), tmp_path / "file" / "report.html")

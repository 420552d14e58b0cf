"""`eval --report`: the page of a model and of a results file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("pycocotools")

from scripted import CONFIG, SCRIPT, WORSE, detections, write_coco

from yolact_deploy.cli.main import main

ANNOTATIONS = "coco/annotations/instances_val2017.json"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A COCO folder, and results that lose one object and place another badly."""
    monkeypatch.chdir(tmp_path)
    write_coco(Path("coco"))
    for name, script in (("good.json", SCRIPT), ("worse.json", WORSE)):
        results = [r for n, found in script.items() for r in detections(found).to_coco(n, CONFIG.category_ids)]
        Path(name).write_text(json.dumps(results))


def report(results: str, *more: str) -> str:
    command = ["eval", "--results", results, "--annotations", ANNOTATIONS, "--report", "r.html", "--quiet", *more]
    assert main(command) == 0
    return Path("r.html").read_text()


def test_page_of_results() -> None:
    page = report("worse.json")
    for title in (
        "Average precision",
        "F1 over the score",
        "Errors by kind",
        "By size",
        "Per class",
        "Worst and best",
    ):
        assert title in page
    assert "--score-threshold" in page
    assert page.count("<img ") >= 2
    assert "000001.png" in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == [], "loads nothing"
    assert "<script" not in page


def test_figures_are_those_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    page = report("worse.json")
    assert main(["eval", "--results", "worse.json", "--annotations", ANNOTATIONS, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert f"Mask AP is {100 * printed['mask']['ap']:.2f}" in page
    for value in printed["mask"]["per_iou"].values():
        assert f"<td>{100 * value:.2f}</td>" in page


def test_without_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    for picture in Path("coco/images").iterdir():
        picture.unlink()
    assert main(["eval", "--results", "good.json", "--annotations", ANNOTATIONS, "--report", "r.html"]) == 0
    assert "note: the report has no pictures" in capsys.readouterr().err
    assert "<img " not in Path("r.html").read_text()


def test_boxes_alone() -> None:
    results = [{k: v for k, v in r.items() if k != "segmentation"} for r in json.loads(Path("worse.json").read_text())]
    Path("boxes.json").write_text(json.dumps(results))
    page = report("boxes.json")
    assert "pictures are about boxes" in page
    assert "Mask AP" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--evaluator", "faster-coco-eval"], "--report does not work with --evaluator faster-coco-eval"),
        (["--shards", "1/2"], "leave out --ray and --shards"),
        (["--report", "good.json/r.html"], "good.json"),
    ],
)
def test_refused(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--results", "good.json", "--annotations", ANNOTATIONS, "--report", "r.html"]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err

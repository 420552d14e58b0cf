"""The figures of `eval --report` on photographs and nuclei, against pycocotools and tidecv."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from data import data_dir
from tide import by_tidecv

from yolact_deploy.cli.main import main
from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.datasets.yolact_dets import convert
from yolact_deploy.samples import NUCLEI_MODEL


def by_pycocotools(annotations: Path, results: Path, ids: list[int], kind: str, most: int) -> list[str]:
    """AP, AP50, AP75 and AP of small, medium and large objects as the page has them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(annotations))
    records = json.loads(results.read_text())
    if kind == "segm":  # with boxes there, pycocotools would take a mask to be as large as its box
        records = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
    run = COCOeval(truth, truth.loadRes(records), kind)
    run.params.imgIds = ids
    run.params.maxDets = [1, 10, most]
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"]  # [iou, recall, class, area, most]

    def mean(values: Any) -> str:
        known = values[values > -1]
        return f"{100 * known.mean():.2f}" if known.size else ""

    whole = precision[..., 0, -1]
    return [*map(mean, (whole, whole[0], whole[5], *(precision[..., area, -1] for area in (1, 2, 3))))]


def row(page: str, title: str, name: str) -> list[str]:
    """The cells after a name in the table of a title."""
    table = page.partition(f'<table aria-label="{title}')[2].partition("</table>")[0]
    found = re.search(rf'<th scope="row" class="left">{name}</th>(.*?)</tr>', table)
    assert found, (title, name)
    return re.findall(r"<td[^>]*>(.*?)</td>", found[1])


def assert_figures(page: str, annotations: Path, results: Path, ids: list[int], most: int, folder: Path) -> None:
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        cells = row(page, "COCO average precision", name)
        assert cells[:6] == by_pycocotools(annotations, results, ids, kind, most)
    content = read_annotations(annotations)
    for key, field in (("images", "id"), ("annotations", "image_id")):
        content = {**content, key: [record for record in content[key] if record[field] in set(ids)]}
    errors = by_tidecv(content, json.loads(results.read_text()), "segm", folder, most)
    assert sum(errors.counts.values()) > 100
    for name, count in errors.counts.items():
        assert row(page, "Errors by kind", name)[:2] == [str(count), f"{errors.costs[name]:.2f}"]


@pytest.mark.parametrize("dump", ["yolact_base", "yolact_resnet50"])
def test_detections_of_the_original(dump: str, tmp_path: Path) -> None:
    """Seven pictures of val2017 that are in the dumps and in the annotations."""
    annotations = data_dir("photos", "instances_val_all.json")
    dets = json.loads(data_dir("yolact_dets", f"{dump}.json").read_text())
    results, ids = convert(dets, read_annotations(annotations), dump)
    assert len(ids) == 7
    file, page = tmp_path / "results.json", tmp_path / "page.html"
    file.write_text(json.dumps(results))
    words = ["eval", "--results", file, "--annotations", annotations, "--image-ids", ",".join(map(str, ids)),
             "--images-dir", data_dir(), "--report", page, "--quiet"]  # fmt: skip
    assert main([*map(str, words)]) == 0
    text = page.read_text()
    assert "on 7 of 231 images" in text
    assert_figures(text, annotations, file, ids, 100, tmp_path)


@pytest.mark.slow  # the network runs on sixty pictures
def test_nuclei(tmp_path: Path) -> None:
    for module in ("torch", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    annotations, folder = data_dir("nuclei", "instances_val.json"), data_dir("nuclei", "images")
    model, file, page = tmp_path / "nuclei.onnx", tmp_path / "results.json", tmp_path / "page.html"
    assert main(["export", "--weights", str(NUCLEI_MODEL), "--engine", "none", "-o", str(model), "--quiet"]) == 0
    words = ["eval", "--engine", model, "--annotations", annotations, "--images-dir", folder, "--max-detections",
             "500", "--workers", "1", "--save-results", file, "--report", page, "--quiet"]  # fmt: skip
    assert main([*map(str, words)]) == 0
    ids = [image["id"] for image in json.loads(annotations.read_text())["images"]]
    assert_figures(page.read_text(), annotations, file, ids, 500, tmp_path)

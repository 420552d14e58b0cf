"""COCO average precision: known figures of the original, and malformed files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import data_dir
from scripted import CONFIG, SCRIPT, coco_content, detections, write_coco

from yolact_deploy.config import COCO_CATEGORY_IDS, COCO_NAMES, YolactConfig
from yolact_deploy.datasets.rle import image_runs
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.accuracy import accuracy, score_results, scoring_limit
from yolact_deploy.mask_forms import compress_counts

IMAGES = (239627, 261712, 368212, 403385)


@pytest.mark.parametrize(
    ("dump", "count", "box", "mask"),
    [
        ("yolact_base", 110, (0.5686, 0.7356), (0.4263, 0.6989)),
        ("yolact_resnet50", 122, (0.4659, 0.7415), (0.3980, 0.6243)),
    ],
)
def test_dumps_of_the_original(
    tmp_path: Path, dump: str, count: int, box: tuple[float, float], mask: tuple[float, float]
) -> None:
    ids = dict(zip(COCO_NAMES, COCO_CATEGORY_IDS, strict=True))
    content = json.loads(data_dir("yolact_dets", f"{dump}.json").read_text())
    results = [
        {"image_id": image["image_id"], "category_id": ids[d["category"]], "bbox": d["bbox"]}
        | {"score": d["score"], "segmentation": d["mask"]}
        for image in content["images"]
        if image["image_id"] in IMAGES
        for d in image["dets"]
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    scored = score_results(data_dir("coco_mini", "instances_val_mini.json"), file, IMAGES)
    assert (scored.images, scored.detections) == (4, count)
    assert scored.box is not None
    assert scored.mask is not None
    assert (scored.box.ap, scored.box.ap50) == pytest.approx(box, abs=1e-4)
    assert (scored.mask.ap, scored.mask.ap50) == pytest.approx(mask, abs=1e-4)


def results_of(script: Any = SCRIPT) -> list[dict[str, Any]]:
    return [
        r for number, instances in script.items() for r in detections(instances).to_coco(number, CONFIG.category_ids)
    ]


def test_what_is_right_scores_one(capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    before = copy.deepcopy(content)
    scored = accuracy(content, results_of(), [1, 2, 3])
    assert scored.box is not None
    assert scored.mask is not None
    assert scored.box.ap == pytest.approx(1.0)
    assert scored.mask.ap50 == pytest.approx(1.0)
    assert scored.box.small == pytest.approx(1.0) or scored.box.small is None
    assert scored.box.large is None, "there is no large object"
    assert content == before, "pycocotools writes into what it is given"
    assert capsys.readouterr().out == "", "pycocotools prints"
    json.dumps(scored.to_json())


def test_an_annotation_with_id_zero_counts() -> None:
    content = coco_content()
    for i, annotation in enumerate(content["annotations"]):
        annotation["id"] = i
    scored = accuracy(content, results_of(), [1, 2, 3])
    assert scored.box is not None
    assert scored.box.ap == pytest.approx(1.0)


def test_wrong_classes_score_nothing() -> None:
    results = [{**r, "category_id": 9 if r["category_id"] == 5 else 5} for r in results_of()]
    scored = accuracy(coco_content(), results, [1, 2, 3])
    assert scored.box is not None
    assert scored.box.ap == 0


def test_no_results_score_zero(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path)
    (tmp_path / "r.json").write_text("[]")
    scored = score_results(annotations, tmp_path / "r.json")
    assert scored.box is not None
    assert scored.mask is not None
    assert (scored.box.ap, scored.mask.ap, scored.detections) == (0.0, 0.0, 0)


def test_no_ground_truth_has_no_score() -> None:
    scored = accuracy(coco_content(), results_of(), [3])
    assert scored.box is not None
    assert scored.box.ap is None


def test_boxes_alone_and_masks_alone() -> None:
    def without(key: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if k != key} for r in results_of()]

    boxes = accuracy(coco_content(), without("segmentation"), [1, 2])
    assert boxes.mask is None
    assert boxes.box is not None
    masks = accuracy(coco_content(), without("bbox"), [1, 2])
    assert masks.box is None
    assert masks.mask is not None


Edit = Callable[[list[Any]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.__setitem__(0, 3), "result number 0 is a int"),
        (lambda r: r[0].pop("score"), "has no score"),
        (lambda r: r[0].update(score="high"), "has the score 'high'"),
        (lambda r: r[0].update(score=float("nan")), "has the score nan"),
        (lambda r: r[0].update(mask_score=None), "has the mask_score None"),
        (lambda r: r[1].update(image_id=77), "result number 1 belongs to image 77"),
        (lambda r: r[0].update(category_id=1), "has category id 1, which"),
        (lambda r: r[0].update(bbox=[1, 2, 3]), "has the bbox"),
        (lambda r: r[0].pop("bbox"), "bbox, segmentation or both, and all results the same"),
        (lambda r: [x.pop(k) for x in r for k in ("bbox", "segmentation")], "bbox, segmentation or both"),
        (lambda r: r[0].update(segmentation=[[1, 2, 3, 4, 5, 6]]), "not a compressed RLE"),
        (lambda r: r[0]["segmentation"].update(size=[10, 10]), "mask of size"),
        (lambda r: r[0]["segmentation"].update(counts="0"), "damaged RLE"),
        (lambda r: r[0]["segmentation"].update(counts="\x00zz"), "damaged RLE"),
    ],
)
def test_malformed_results(tmp_path: Path, edit: Edit, message: str) -> None:
    annotations, results = write_coco(tmp_path), results_of()
    edit(results)
    file = tmp_path / "r.json"
    file.write_text(json.dumps(results))
    with pytest.raises(DatasetError, match=message):
        score_results(annotations, file)


@pytest.mark.parametrize(("text", "message"), [("{}", "expected a list of results, got a dict"), ("[1", "valid JSON")])
def test_files_that_are_no_results(tmp_path: Path, text: str, message: str) -> None:
    annotations = write_coco(tmp_path)
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        score_results(annotations, tmp_path / "r.json")
    with pytest.raises(DatasetError, match="no such results file"):
        score_results(annotations, tmp_path / "absent.json")


def test_unknown_images_asked_for(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(DatasetError, match="has no image 9"):
        score_results(annotations, tmp_path / "r.json", [1, 9])


def test_malformed_polygons_of_the_truth() -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = 5
    with pytest.raises(DatasetError, match="malformed segmentation"):
        accuracy(content, results_of(), [1])


def test_run_lengths_of_a_text() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(0, 10 ** int(rng.integers(1, 6)), int(rng.integers(1, 40)))
        runs = image_runs(compress_counts(counts), 1, int(counts.sum()))
        assert runs is not None
        assert np.array_equal(runs, counts)
        assert image_runs(compress_counts(counts), 1, int(counts.sum()) + 1) is None
    assert image_runs("", 0, 0) is None
    assert image_runs("o", 1, 1) is None, "ends in the middle of a number"


@pytest.mark.parametrize("evaluator", ["pycocotools", "faster-coco-eval"])
def test_more_than_a_hundred_detections_count_if_the_model_reports_them(evaluator: str) -> None:
    if evaluator != "pycocotools":
        pytest.importorskip("faster_coco_eval")
    objects = 150
    boxes = [[4 * (i % 15), 4 * (i // 15), 3, 3] for i in range(objects)]
    content = {
        "images": [{"id": 1, "height": 64, "width": 64, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 1 - i / 300} for i, box in enumerate(boxes)]
    cut = accuracy(content, results, [1], evaluator)
    whole = accuracy(content, results, [1], evaluator, max_detections=scoring_limit(YolactConfig(max_detections=300)))
    assert cut.box is not None
    assert whole.box is not None
    assert cut.box.ap == pytest.approx(67 / 101), "recall ends at 100 of 150"
    assert whole.box.ap == pytest.approx(1.0)
    assert (cut.max_detections, whole.max_detections) == (100, 300)
    assert scoring_limit(YolactConfig(max_detections=20)) == 100

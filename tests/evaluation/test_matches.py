"""Precision from kept matches: equal to COCOeval bit for bit, even if images count several times."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from random_coco import make_content, make_results

from yolact_deploy.datasets.coco_results import score_of
from yolact_deploy.errors import DatasetError
from yolact_deploy.evaluation.accuracy import KINDS, AccuracyMeter, accuracy, average_precision, by_image
from yolact_deploy.evaluation.coco_rules import areas_of
from yolact_deploy.evaluation.matches import Matcher, Matches
from yolact_deploy.mask_forms import compress_counts
from yolact_deploy.vocabulary import EVALUATORS


def of_kind(results: list[Any], kind: str) -> list[Any]:
    """Results of boxes ("bbox") or masks ("segm") alone, each with its own score, for other evaluators."""
    left_out = {"bbox": ("segmentation", "mask_score"), "segm": ("bbox", "mask_score")}[kind]
    return [
        {**{k: v for k, v in result.items() if k not in left_out}, "score": score_of(result, kind)}
        for result in results
    ]


def cocoeval(content: dict[str, Any], results: list[Any], ids: list[int], kind: str) -> Any:
    """pycocotools alone, from annotations to figures."""
    truth, detected = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {**content, "annotations": [{**a, "id": i} for i, a in enumerate(content["annotations"], 1)]}
        truth.createIndex()
        numbered = [{**r, "id": i, "iscrowd": 0, "area": area(r, kind)} for i, r in enumerate(results, 1)]
        detected.dataset = {**content, "annotations": numbered}
        detected.createIndex()
        evaluation = COCOeval(truth, detected, kind)
        evaluation.params.imgIds = ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def area(result: Any, kind: str) -> float:
    from pycocotools import mask

    box = result["bbox"]
    return float(mask.area(result["segmentation"])) if kind == "segm" else box[2] * box[3]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("areas", [1, 2, 4])
def test_some_areas_alone(kind: str, areas: int) -> None:
    content = make_content(9, 4)
    results, ids = make_results(content, 4), [image["id"] for image in content["images"]]
    expected = match(content, results, ids, kind).precision()
    matcher = Matcher(content, ids, kind, areas=areas)
    matcher.add(by_image(results))
    assert np.array_equal(matcher.precision()[..., :areas], expected[..., :areas])
    assert (matcher.precision()[..., areas:] == -1).all()


def match(content: dict[str, Any], results: list[Any], ids: list[int], kind: str, at_once: int = 5) -> Matches:
    matcher, of_image = Matcher(content, ids, kind), by_image(results)
    order = np.random.default_rng(0).permutation(ids).tolist()  # images may come in any order
    for first in range(0, len(order), at_once):
        matcher.add({image_id: of_image.get(image_id, []) for image_id in order[first : first + at_once]})
    return matcher.matches()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identical_with_cocoeval(kind: str, seed: int) -> None:
    content = make_content(24, seed)
    results = make_results(content, seed)
    ids = [image["id"] for image in content["images"]][:20]
    expected = cocoeval(content, results, ids, kind)
    precision = match(content, results, ids, kind).precision()
    assert np.array_equal(precision, expected.eval["precision"][..., -1])
    assert 0 < expected.stats[0] < 0.9, "some objects are hit and some are missed"
    figures = average_precision(precision)
    given = (figures.ap, figures.ap50, figures.ap75, figures.small, figures.medium, figures.large)
    assert given == tuple(expected.stats[:6])
    assert getattr(accuracy(content, results, ids, kinds=(kind,)), KINDS[kind]).ap == expected.stats[0]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_masks_are_ranked_by_scores_of_their_own(evaluator: str) -> None:
    """As if boxes and masks were two files, each with its scores."""
    pytest.importorskip(evaluator.replace("-", "_"))
    content = make_content(24, 3)
    plain = make_results(content, 3)
    rng = np.random.default_rng(3)
    results = [{**result, "mask_score": float(rng.random())} for result in plain]
    ids = [image["id"] for image in content["images"]]
    scored = accuracy(content, results, ids, evaluator)
    assert scored.box == accuracy(content, plain, ids, evaluator).box
    masks = of_kind(results, "segm")
    assert [set(mask) for mask in masks] == [set(plain[0]) - {"bbox"}] * len(plain)
    assert scored.mask is not None
    assert scored.mask.ap == pytest.approx(float(cocoeval(content, with_boxes(masks, plain), ids, "segm").stats[0]))
    plain_scored = accuracy(content, plain, ids, evaluator)
    assert scored.mask is not None
    assert plain_scored.mask is not None
    assert scored.mask.ap != plain_scored.mask.ap
    boxes = of_kind(results, "bbox")
    assert boxes == [{k: v for k, v in result.items() if k != "segmentation"} for result in plain]


def with_boxes(masks: list[Any], plain: list[Any]) -> list[Any]:
    """Results as :func:`cocoeval` of this file expects them: it also reads boxes."""
    return [{**mask, "bbox": result["bbox"]} for mask, result in zip(masks, plain, strict=True)]


def test_more_than_100_detections_of_an_image() -> None:
    content = make_content(3, 5)
    results = [{**r, "category_id": 3} for seed in range(120) for r in make_results(content, seed, decimals=6)]
    ids = [10, 11, 12]
    assert min(len(of_image) for of_image in by_image(results).values()) > 100
    expected = cocoeval(content, results, ids, "bbox")
    assert np.array_equal(match(content, results, ids, "bbox").precision(), expected.eval["precision"][..., -1])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equal_weights_change_nothing(kind: str) -> None:
    content = make_content(20, 3)
    matches = match(content, make_results(content, 3), list(range(10, 30)), kind)
    weights = np.stack([np.full(20, count, np.int32) for count in (1, 1, 3)])
    ap = average_precision(matches.precision()).ap
    assert matches.average_precision(weights) == pytest.approx([ap] * 3, abs=1e-14)


def test_weights_are_copies_of_images() -> None:
    """With no equal scores, an image of weight 3 counts like three copies of the image."""
    content = make_content(16, 4)
    results = make_results(content, 4, decimals=12)
    ids = list(range(10, 26))
    weights = np.random.default_rng(1).multinomial(16, np.full(16, 1 / 16), size=3).astype(np.int32)
    scored = match(content, results, ids, "bbox").average_precision(weights)
    for row, ap in zip(weights.tolist(), scored.tolist(), strict=True):
        assert 0 in row
        assert max(row) > 1
        copied: dict[str, Any] = {"categories": content["categories"], "images": [], "annotations": []}
        copied_results = []
        for number, (old, count) in enumerate(zip(ids, row, strict=True)):
            for copy in range(count):
                new = 1000 * copy + number
                copied["images"].append({"id": new, "height": 240, "width": 320})
                copied["annotations"] += [
                    {**a, "image_id": new} for a in content["annotations"] if a["image_id"] == old
                ]
                copied_results += [{**r, "image_id": new} for r in results if r["image_id"] == old]
        new_ids = [image["id"] for image in copied["images"]]
        assert ap == pytest.approx(cocoeval(copied, copied_results, new_ids, "bbox").stats[0], abs=1e-12)


def test_images_without_objects_have_no_figure() -> None:
    content = make_content(8, 6)
    objects = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
    weights = np.array([[0 if i in objects else 1 for i in range(10, 18)], [1] * 8], np.int32)
    assert weights[0].any()
    ap = match(content, make_results(content, 6), list(range(10, 18)), "bbox").average_precision(weights)
    assert np.isnan(ap).tolist() == [True, False]


@pytest.mark.parametrize("seed", [0, 1])
def test_faster_coco_eval_gives_the_same(seed: int) -> None:
    pytest.importorskip("faster_coco_eval")
    content = make_content(24, seed)
    results = make_results(content, seed)
    slow, fast = (accuracy(content, results, range(10, 30), evaluator) for evaluator in EVALUATORS)
    assert (slow.images, slow.detections) == (fast.images, fast.detections)
    for a, b in ((slow.box, fast.box), (slow.mask, fast.mask)):
        assert a is not None
        assert b is not None
        for name in ("ap", "ap50", "ap75", "small", "medium", "large"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-9)
        assert a.per_class == pytest.approx(b.per_class, abs=1e-9)
        assert a.per_class["kind 21"] is None
    assert slow.curves["mask"].iou50 == pytest.approx(fast.curves["mask"].iou50, abs=1e-5)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_result_can_be_computed_again(evaluator: str) -> None:
    if evaluator != EVALUATORS[0]:
        pytest.importorskip("faster_coco_eval")
    content = make_content(6, 1)
    meter = AccuracyMeter(content, range(10, 16), evaluator=evaluator)
    for image_id, of_image in by_image(make_results(content, 1)).items():
        meter.add(image_id, of_image)
    first = meter.result()
    assert first.box is not None
    assert first.box.ap
    assert meter.result() == first


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_malformed_polygons(evaluator: str) -> None:
    if evaluator != EVALUATORS[0]:
        pytest.importorskip("faster_coco_eval")
    content = make_content(3)
    content["annotations"][0]["segmentation"] = 5
    with pytest.raises(DatasetError, match=f"{evaluator} cannot score these annotations: a malformed segmentation"):
        accuracy(content, make_results(content), range(10, 13), evaluator)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_every_threshold_and_the_recall_are_pycocotools_figures(evaluator: str) -> None:
    if evaluator != EVALUATORS[0]:
        pytest.importorskip("faster_coco_eval")
    content = make_content(20, 3)
    results = make_results(content)
    ids = sorted(image["id"] for image in content["images"])
    scored = accuracy(content, results, ids, evaluator, kinds=("bbox",)).box
    truth = COCO()
    truth.dataset = json.loads(json.dumps(content))
    truth.createIndex()
    found = truth.loadRes(json.loads(json.dumps([{k: r[k] for k in ("image_id", "category_id", "bbox", "score")}
                                                 for r in results])))  # fmt: skip
    expected = COCOeval(truth, found, "bbox")
    expected.params.imgIds = ids
    expected.evaluate()
    expected.accumulate()
    precision, recall = expected.eval["precision"][..., 0, -1], expected.eval["recall"][..., 0, -1]
    assert scored is not None
    assert list(scored.per_iou) == [f"0.{percent}" for percent in range(50, 100, 5)]
    for place, value in enumerate(scored.per_iou.values()):
        assert value == pytest.approx(precision[place][precision[place] > -1].mean(), abs=1e-12)
    assert scored.ar == pytest.approx(recall[recall > -1].mean(), abs=1e-12)
    assert sum(filter(None, scored.per_iou.values())) / 10 == pytest.approx(scored.ap)


@pytest.mark.parametrize("count", [255, 256, 300])
def test_more_masks_than_eight_bits_count(count: int) -> None:
    results = [rle_result(row) for row in range(count)]
    assert areas_of(results, "segm") == [float(row % 7 + 1) for row in range(count)]


def rle_result(row: int) -> dict[str, Any]:
    """A mask of ``row % 7 + 1`` pixels in a picture of 8 x 8."""
    pixels = row % 7 + 1
    counts = np.array([row % 9, pixels, 64 - row % 9 - pixels])
    return {"segmentation": {"size": [8, 8], "counts": compress_counts(counts)}}

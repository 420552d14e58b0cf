"""Errors by kind against the package tidecv, and operating points against plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from data import data_dir
from random_coco import make_content, make_results
from tide import by_tidecv

from yolact_deploy.datasets.annotations import read_annotations
from yolact_deploy.datasets.yolact_dets import convert
from yolact_deploy.evaluation.accuracy import by_image
from yolact_deploy.evaluation.confusion import count_confusions
from yolact_deploy.evaluation.error_kinds import KINDS, ErrorCosts, JudgedImage, KindMeter, error_costs
from yolact_deploy.evaluation.operating_points import LEAST_OBJECTS, THRESHOLDS, BestThresholds, Counts
from yolact_deploy.runtime.selection import Selection


def judged(content: Any, results: Any, kind: str, ids: Any = None) -> list[JudgedImage]:
    image_ids = ids or [image["id"] for image in content["images"]]
    meter = KindMeter(content, image_ids, kind)
    for image_id, of_image in by_image(results).items():
        if image_id in set(image_ids):
            meter.add(image_id, of_image)
    return meter.images()


def assert_equal(ours: ErrorCosts, theirs: ErrorCosts) -> None:
    assert ours.counts == theirs.counts
    assert ours.costs == pytest.approx(theirs.costs, abs=1e-9)
    assert ours.ap50 == pytest.approx(theirs.ap50, abs=1e-9)
    assert (ours.false_positives, ours.false_negatives) == pytest.approx(theirs[3:], abs=1e-9)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_as_tidecv(kind: str, seed: int, tmp_path: Path) -> None:
    """Random pictures with crowds, equal scores, classes without objects, images without objects or detections."""
    content = make_content(30, seed)
    results = make_results(content, seed, decimals=1 + seed, noise=4.0 + 6 * seed)
    ours = error_costs(judged(content, results, kind), len(content["categories"]))
    assert sum(count > 0 for count in ours.counts.values()) >= 5
    assert_equal(ours, by_tidecv(content, results, kind, tmp_path))


@pytest.mark.parametrize("dump", ["yolact_base", "yolact_resnet50"])
def test_dumps_of_the_original_as_tidecv(dump: str, tmp_path: Path) -> None:
    content = read_annotations(data_dir("coco_mini", "instances_val_mini.json"))
    dets = json.loads(data_dir("yolact_dets", f"{dump}.json").read_text())
    results, ids = convert(dets, content, dump)
    only = {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
    for kind in ("bbox", "segm"):
        ours = error_costs(judged(only, results, kind), len(only["categories"]))
        assert ours.ap50 > 0
        assert_equal(ours, by_tidecv(only, results, kind, tmp_path))


# -- operating points -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> list[JudgedImage]:
    content = make_content(60, 7)
    return judged(content, make_results(content, 7, decimals=3), "segm")


def test_counts_are_plain_sums(images: list[JudgedImage]) -> None:
    counts = Counts.of(images, 4)
    assert counts.objects.sum() == sum(len(image.truth_labels) for image in images)
    for place in (0, 30, 77):
        for label in range(4):
            right = wrong = 0
            for image in images:
                for score, own, partner, ignored in zip(
                    image.scores, image.labels, image.partner, image.ignored, strict=True
                ):
                    if own == label and np.float32(score) > np.float32(THRESHOLDS[place]):
                        right += partner >= 0
                        wrong += partner < 0 and not ignored
            assert (counts.right[place, label], counts.wrong[place, label]) == (right, wrong)
    with np.errstate(invalid="ignore"):
        f1 = 2 * counts.precision * counts.recall / (counts.precision + counts.recall)
    assert np.nanmax(np.abs(f1 - counts.f1)) < 1e-12


def test_the_best_thresholds_are_what_the_option_says(images: list[JudgedImage]) -> None:
    counts = Counts.of(images, 4)
    best = BestThresholds.of(counts)
    names = ["person", "dog", "traffic light", "owl"]
    few = [n for n, objects in zip(names, counts.objects, strict=True) if objects < LEAST_OBJECTS]
    assert few == ["owl"], "a class without objects takes the threshold of all"
    selection = Selection.of(names, best.option(names))
    thresholds = selection.of_class if selection.of_class is not None else np.full(4, selection.floor)
    assert thresholds == pytest.approx(best.each(), abs=1e-6)
    for label in range(3):
        place = round(100 * best.each()[label])
        assert counts.f1[place, label] == np.nanmax(counts.f1[:, label])


def test_a_name_that_cannot_be_written_is_left_out() -> None:
    best = BestThresholds(0.3, (0.5, 0.3, 0.4))
    assert best.option(["a,b", "same", "dog"]) == "0.3,dog=0.4"


def test_confusion_adds_up(images: list[JudgedImage]) -> None:
    counts = Counts.of(images, 4)
    thresholds = BestThresholds.of(counts).each()
    matrix = count_confusions(images, thresholds)
    place = [round(100 * value) for value in thresholds]
    rows = np.arange(4)
    assert matrix.diagonal()[:4].tolist() == counts.right[place, rows].tolist()
    assert matrix[:4].sum(axis=1).tolist() == counts.objects.tolist(), "each object is detected as one thing"
    assert matrix[:, :4].sum(axis=0).tolist() == (counts.right + counts.wrong)[place, rows].tolist()
    assert matrix[4, 4] == 0
    assert matrix[:4, :4].sum() > matrix.diagonal()[:4].sum(), "some objects are taken for another class"


def test_nothing_at_all() -> None:
    content = make_content(3, 1)
    content["annotations"] = []
    images = judged(content, [], "segm")
    assert error_costs(images, 4).counts == dict.fromkeys(KINDS, 0)
    assert count_confusions(images, np.full(4, 0.5)).sum() == 0

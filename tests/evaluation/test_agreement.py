"""Agreement of an engine's detections with the reference's."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pytest
from scripted import CONFIG, SCRIPT, Instance, detections

from yolact_deploy.detections import Detections
from yolact_deploy.evaluation.agreement import Agreement, AgreementMeter, compare_detections, mask_iou
from yolact_deploy.mask_forms import MaskCrops

INSTANCES = (Instance(0, 0.9, (10, 15, 40, 45)), Instance(0, 0.7, (50, 15, 75, 45)), Instance(1, 0.5, (0, 0, 20, 15)))


def agree(reference: Sequence[Instance], engine: Sequence[Instance]) -> Agreement:
    meter = AgreementMeter()
    a, b = detections(reference), detections(engine)
    meter.add(a, b)
    return meter.result(a.to_coco(1, CONFIG.category_ids), b.to_coco(1, CONFIG.category_ids))


def test_identical() -> None:
    meter = AgreementMeter()
    results = []
    for number, instances in SCRIPT.items():
        meter.add(detections(instances), detections(instances))
        results += detections(instances).to_coco(number, CONFIG.category_ids)
    a = meter.result(results, results)
    assert (a.images, a.reference_detections) == (3, 3), "the one that scores 0.05 is not judged"
    assert (a.matched_share, a.matched_share_90, a.missed, a.extra, a.label_flips) == (1, 1, 0, 0, 0)
    assert (a.mean_box_iou, a.min_box_iou, a.mean_mask_iou, a.min_mask_iou) == (1, 1, 1, 1)
    assert (a.mean_score_difference, a.max_score_difference) == (0, 0)
    assert (a.box_ap, a.mask_ap) == (pytest.approx(1), pytest.approx(1))
    assert all(image.badness == 0 for image in meter.images)
    json.dumps(a.to_json())


def test_mask_scores_that_rank_otherwise() -> None:
    """A detection with a low box score and a high mask score is not judged and does not affect the others."""
    instances = (*INSTANCES, Instance(0, 0.1, (60, 50, 90, 60)))
    ours = dataclasses.replace(detections(instances), mask_scores=np.array([0.1, 0.2, 0.3, 0.9], np.float32))
    other = dataclasses.replace(ours, mask_scores=np.array([0.1, 0.25, 0.3, 0.9], np.float32))
    meter = AgreementMeter()
    image = meter.add(ours, other)
    assert image.mask_score_differences == pytest.approx([0, 0.05, 0])
    results = [side.to_coco(1, CONFIG.category_ids) for side in (ours, other)]
    a = meter.result(*results)
    assert (a.box_ap, a.mask_ap) == (pytest.approx(1), pytest.approx(1))
    assert compare_detections(ours, detections(instances)).mask_score_differences == []


def test_shifted_boxes() -> None:
    moved = [dataclasses.replace(INSTANCES[0], box=(15, 15, 45, 45)), *INSTANCES[1:]]
    a = agree(INSTANCES, moved)
    assert a.matched_share == 1
    assert a.matched_share_90 == pytest.approx(2 / 3)
    assert a.min_box_iou == pytest.approx(25 / 35)
    assert a.mean_box_iou == pytest.approx((2 + 25 / 35) / 3)
    assert a.min_mask_iou is not None
    assert 0.6 < a.min_mask_iou < 0.8
    assert a.box_ap is not None
    assert a.box_ap < 1


def test_shifted_too_far() -> None:
    a = agree(INSTANCES, [dataclasses.replace(INSTANCES[0], box=(26, 15, 56, 45)), *INSTANCES[1:]])
    assert (a.missed, a.extra, a.label_flips) == (1, 1, 0)
    assert a.matched_share == pytest.approx(2 / 3)


def test_missing_and_extra() -> None:
    a = agree(INSTANCES, INSTANCES[:2])
    assert (a.missed, a.extra) == (1, 0)
    assert a.box_ap == pytest.approx(0.5), "one of two classes is lost"
    b = agree(INSTANCES[:2], INSTANCES)
    assert (b.missed, b.extra) == (0, 1)


def test_label_flip() -> None:
    a = agree(INSTANCES, [dataclasses.replace(INSTANCES[0], label=2), *INSTANCES[1:]])
    assert (a.missed, a.extra, a.label_flips) == (1, 1, 1)


def test_scores_that_slip_over_the_threshold_are_no_miss() -> None:
    low, high = [Instance(0, 0.14, (10, 15, 40, 45))], [Instance(0, 0.16, (10, 15, 40, 45))]
    for a in (agree(high, low), agree(low, high)):
        assert (a.missed, a.extra) == (0, 0)
    assert agree(high, low).max_score_difference == pytest.approx(0.02, abs=1e-6)


def test_the_better_reference_chooses_first() -> None:
    near, far = (10, 15, 40, 45), (14, 15, 44, 45)
    reference = [Instance(0, 0.5, near), Instance(0, 0.9, far)]
    image = compare_detections(detections(reference), detections([Instance(0, 0.9, near)]))
    assert (image.missed, image.box_ious) == (1, [pytest.approx(26 / 34)]), "the one of 0.9 takes what there is"


def test_the_threshold_of_overlap() -> None:
    a, b = detections([Instance(0, 0.9, (0, 0, 20, 20))]), detections([Instance(0, 0.9, (0, 0, 20, 10))])
    assert compare_detections(a, b).missed == 0, "an overlap of just 0.5 is enough"
    assert compare_detections(a, b, iou_threshold=0.51).missed == 1


def test_nothing_to_compare() -> None:
    a = agree([], [])
    assert (a.reference_detections, a.matched_share, a.mean_box_iou, a.box_ap) == (0, None, None, None)
    assert agree([], INSTANCES).extra == 3
    assert agree(INSTANCES, []).box_ap == 0


def test_detections_without_area_agree() -> None:
    instances = [Instance(0, 0.9, (10, 10, 10, 10)), *INSTANCES]
    a = agree(instances, instances)
    assert (a.box_ap, a.mask_ap) == (pytest.approx(1), pytest.approx(1))


def test_mask_iou_is_that_of_full_masks() -> None:
    rng = np.random.default_rng(1)
    full = rng.random((12, 30, 40)) < 0.5
    crops, offsets = [], []
    for mask in full:
        x, y = int(rng.integers(0, 30)), int(rng.integers(0, 20))
        h, w = int(rng.integers(0, 30 - y)), int(rng.integers(0, 40 - x))
        outside = np.ones_like(mask)
        outside[y : y + h, x : x + w] = False
        mask[outside] = False
        crops.append(mask[y : y + h, x : x + w].copy())
        offsets.append((x, y))
    masks = MaskCrops(30, 40, np.array(offsets), tuple(crops))
    for i in range(12):
        for j in range(12):
            union = np.count_nonzero(full[i] | full[j])
            expected = np.count_nonzero(full[i] & full[j]) / union if union else 1.0
            assert mask_iou(masks, i, masks, j) == expected


def test_a_box_beside_the_image_agrees_with_itself() -> None:
    # The original's clamping leaves such boxes with swapped ends, so that their IoU with themselves is 0.
    boxes = np.array([[0.2, -0.3, 0.9, -0.1]], dtype=np.float32)
    masks = np.zeros((1, 8, 8), dtype=np.float32)
    ours = Detections.from_normalized(
        boxes, np.ones(1, np.float32), np.zeros(1, np.int64), masks, class_names=("a",), height=40, width=60
    )
    assert ours.boxes[0, 3] < ours.boxes[0, 1]
    agreement = compare_detections(ours, ours)
    assert (agreement.missed, agreement.extra) == (0, 0)
    assert agreement.box_ious == [1.0]

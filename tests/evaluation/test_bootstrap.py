"""The interval of a difference in AP: its position, pairing and reproducibility."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from random_coco import ap_difference, make_content, make_results

from yolact_deploy.errors import DatasetError, InputError
from yolact_deploy.evaluation.accuracy import accuracy
from yolact_deploy.evaluation.bootstrap import PairedBootstrap, read_matches
from yolact_deploy.evaluation.detection_cache import DetectionCache

CONTENT = make_content(40, 1)
IDS = [image["id"] for image in CONTENT["images"]]
GOOD = make_results(CONTENT, 2, decimals=6, noise=2)
BAD = make_results(CONTENT, 2, decimals=6, noise=12)


def ap(results: list[Any], kind: str, content: dict[str, Any] = CONTENT, image_ids: Sequence[int] = IDS) -> float:
    scored = accuracy(content, results, image_ids, kinds=(kind,))
    figures = scored.box or scored.mask
    assert figures is not None
    assert figures.ap is not None
    return figures.ap


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_worse_model_is_detected(kind: str) -> None:
    interval = ap_difference(CONTENT, GOOD, BAD, IDS, kind, samples=300)
    assert interval.difference == pytest.approx(ap(BAD, kind) - ap(GOOD, kind), abs=1e-12)
    assert interval.low < interval.difference < interval.high < 0
    assert interval.low < interval.mean < interval.high
    assert interval.excludes_zero
    assert (interval.images, interval.samples, interval.seed) == (40, 300, 0)
    json.dumps(interval.to_json())


def test_a_model_does_not_differ_from_itself() -> None:
    interval = ap_difference(CONTENT, GOOD, GOOD, IDS, "bbox", samples=50)
    assert (interval.difference, interval.low, interval.high) == (0, 0, 0), "both see the same draws"
    assert not interval.excludes_zero


def test_the_seed_makes_the_draws() -> None:
    first, again, other = (ap_difference(CONTENT, GOOD, BAD, IDS, "bbox", 100, seed) for seed in (3, 3, 4))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_the_draws_are_those_of_coco_ap_on_drawn_images() -> None:
    """A draw by hand: its images are copied and scored as a separate set."""
    draws = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=2)
    by_hand = []
    for draw in draws.tolist():
        copies = [(i, 1000 * copy + i) for i, count in zip(IDS, draw, strict=True) for copy in range(count)]
        content = {
            "categories": CONTENT["categories"],
            "images": [{"id": new, "height": 240, "width": 320} for _, new in copies],
            "annotations": [
                {**a, "image_id": new} for old, new in copies for a in CONTENT["annotations"] if a["image_id"] == old
            ],
        }
        new_ids = [new for _, new in copies]
        good, bad = (
            [{**r, "image_id": new} for old, new in copies for r in results if r["image_id"] == old]
            for results in (GOOD, BAD)
        )
        by_hand.append(ap(bad, "bbox", content, new_ids) - ap(good, "bbox", content, new_ids))
    interval = ap_difference(CONTENT, GOOD, BAD, IDS, "bbox", samples=2, seed=0)
    assert interval.mean == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(np.percentile(by_hand, (2.5, 97.5)), abs=1e-12)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 draws"):
        ap_difference(CONTENT, GOOD, BAD, IDS, "bbox", samples=1)
    with pytest.raises(DatasetError, match="none of the 40 images has an object"):
        ap_difference({**CONTENT, "annotations": []}, GOOD, BAD, IDS, "bbox")
    file = tmp_path / "r.json"
    file.write_text(json.dumps(GOOD))
    some, others = (read_matches(file, CONTENT, ids)["box"] for ids in (IDS[:5], IDS[5:10]))
    with pytest.raises(InputError, match="same images and categories"):
        PairedBootstrap(some).difference(others)


def test_matches_of_files(tmp_path: Path) -> None:
    file, cache = tmp_path / "r.json", tmp_path / "r.jsonl"
    file.write_text(json.dumps(GOOD))
    with DetectionCache(cache, {}, IDS) as writer:
        for image_id in IDS[:-1]:
            writer.add(image_id, [r for r in GOOD if r["image_id"] == image_id])
        with pytest.raises(DatasetError, match="lacks 1 of the 40 images: finish it with --resume"):
            read_matches(cache, CONTENT, IDS)
        writer.add(IDS[-1], [r for r in GOOD if r["image_id"] == IDS[-1]])
    expected = accuracy(CONTENT, GOOD, IDS)
    for path in (file, cache):
        matches = read_matches(path, CONTENT, IDS)
        for kind, figures in (("box", expected.box), ("mask", expected.mask)):
            assert figures is not None
            assert matches[kind].average_precision(np.ones((1, 40), np.int32)) == pytest.approx(figures.ap, abs=1e-14)
    with pytest.raises(DatasetError, match="cannot read"):
        read_matches(tmp_path / "absent", CONTENT, IDS)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolact_deploy.config import get_config
from yolact_deploy.priors import make_priors as config_priors

torch = pytest.importorskip("torch")

import scenes
from plain_loss import plain_match

from yolact_deploy.model.torch_ops import decode_boxes
from yolact_deploy.training import matching
from yolact_deploy.training.matching import Match, encode_boxes, match_priors
from yolact_deploy.training.targets import GroundTruth

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")


def _truth(*images: tuple[Any, Any, Any], classes: int = 80) -> GroundTruth:
    """Ground truth without masks of images with (boxes normalized, labels, crowd)."""
    targets = [
        {
            "boxes": torch.as_tensor(np.asarray(boxes, np.float32)).reshape(-1, 4),
            "labels": torch.as_tensor(np.asarray(labels, np.int64)),
            "iscrowd": torch.as_tensor(np.asarray(crowd, bool)),
            "masks": torch.zeros((len(labels), 1, 1)),
            "width": 1,
            "height": 1,
        }
        for boxes, labels, crowd in images
    ]
    return GroundTruth.of(targets, classes, CPU)


def _index(truth: GroundTruth, match: Match) -> list[list[int]]:
    """The object of each prior, counted within its image; -1 without."""
    first = np.cumsum([0, *truth.counts])[:-1, None]
    rows: list[list[int]] = np.where(match.rows.numpy() == truth.size, -1, match.rows.numpy() - first).tolist()
    return rows


def _golden_matches() -> list[Any]:
    found = []
    for path in sorted(GOLDEN.glob("pure_*.npz")):
        with np.load(path) as golden:
            names = [key.removesuffix(".conf_t") for key in golden.files if key.endswith(".conf_t")]
        found += [pytest.param(path, name, id=f"{path.stem}-{name}") for name in names]
    return found


@pytest.mark.golden
@pytest.mark.parametrize(("path", "name"), _golden_matches())
def test_golden_matching(path: Path, name: str) -> None:
    with np.load(path) as golden:
        objects, labels, priors = (golden[f"{name}.{key}"] for key in ("truths", "labels", "priors"))
        crowds = golden[f"{name}.crowd"] if f"{name}.crowd" in golden else np.zeros((0, 4), np.float32)
        want = {key: golden[f"{name}.{key}"] for key in ("conf_t", "idx_t", "loc_t")}
    crowd = np.arange(len(objects) + len(crowds)) >= len(objects)
    truth = _truth((np.concatenate([objects, crowds]), np.append(labels, [0] * len(crowds)), crowd))
    match = match_priors(truth, torch.from_numpy(priors))
    np.testing.assert_array_equal(match.labels[0], want["conf_t"])
    np.testing.assert_array_equal(match.rows[0], want["idx_t"])
    loc = encode_boxes(truth.boxes[match.rows], torch.from_numpy(priors))
    np.testing.assert_allclose(loc[0], want["loc_t"], rtol=1e-6, atol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("loss_case*.npz")), ids=lambda path: path.stem)
def test_golden_matching_of_the_loss(path: Path) -> None:
    flags = json.loads(path.with_suffix(".json").read_text())["flags"]
    with np.load(path) as golden:
        images = [golden[f"targets.{i}"] for i in range(len(golden["conf_t"]))]
        want = {key: golden[key] for key in ("conf_t", "idx_t", "loc_t_pos", "loc_t.idx", "loc_t.val")}
        priors = torch.from_numpy(config_priors(get_config(str(golden["config"]))).copy())
    truth = _truth(*((image[:, :4], image[:, 4], image[:, 4] < 0) for image in images))
    match = match_priors(
        truth,
        priors,
        positive_iou=flags["positive_iou_threshold"],
        negative_iou=flags["negative_iou_threshold"],
        crowd_iou=flags["crowd_iou_threshold"],
    )
    np.testing.assert_array_equal(match.labels, want["conf_t"])
    np.testing.assert_array_equal(_index(truth, match), want["idx_t"])
    loc = encode_boxes(truth.boxes[match.rows], priors)
    np.testing.assert_allclose(loc[match.labels > 0], want["loc_t_pos"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loc.flatten()[want["loc_t.idx"]], want["loc_t.val"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(24))
def test_against_plain_loops(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    grid = [scenes.SIZE, 6][seed % 2]  # a coarse grid: equal boxes and equal overlaps
    priors = scenes.make_priors(rng, [60, 9][seed % 3 == 2], 2 * grid)
    images = [scenes.make_image(rng, int(rng.integers(0, 13)), int(rng.integers(0, 3)), grid) for _ in range(4)]
    if seed % 4 == 3:
        monkeypatch.setattr(matching, "_OVERLAPS_AT_ONCE", 10 * len(priors))
    truth = _truth(*((image["boxes"], image["labels"], image["crowd"]) for image in images))
    match = match_priors(truth, priors)
    for n, image in enumerate(images):
        labels, index = plain_match(image["boxes"], image["labels"], image["crowd"], priors)
        assert match.labels[n].tolist() == labels
        if image["crowd"].all():  # without an object the row is of no meaning
            continue
        assert _index(truth, match)[n] == index


def test_an_image_is_matched_alike_in_any_batch() -> None:
    rng = np.random.default_rng(5)
    priors = scenes.make_priors(rng, 80)
    images = [scenes.make_image(rng, n, 1) for n in (1, 12, 0, 5)]
    triples = [(image["boxes"], image["labels"], image["crowd"]) for image in images]
    together = match_priors(_truth(*triples), priors).labels
    for n, triple in enumerate(triples):
        torch.testing.assert_close(match_priors(_truth(triple), priors).labels[0], together[n], rtol=0, atol=0)


PRIORS = torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.25, 0.75, 0.2, 0.2]])


def _labels(*images: tuple[Any, Any, Any]) -> list[list[int]]:
    labels: list[list[int]] = match_priors(_truth(*images), PRIORS).labels.tolist()
    return labels


def test_two_objects_that_want_the_same_prior() -> None:
    near, nearer = [0.15, 0.15, 0.36, 0.36], [0.15, 0.15, 0.35, 0.35]
    # The better one has it; the other is forced on the first of the priors that are left, which it does not touch.
    assert _labels(([near, nearer], [4, 7], [0, 0])) == [[8, 5, 0]]
    assert _labels(([nearer, near], [7, 4], [0, 0])) == [[8, 5, 0]]
    assert _labels(([nearer, nearer, nearer], [1, 2, 3], [0, 0, 0])) == [[2, 3, 4]]


def test_an_object_that_no_prior_overlaps_is_forced_on_the_first() -> None:
    assert _labels(([[0.5, 0.1, 0.6, 0.2]], [6], [0])) == [[7, 0, 0]]


def test_an_image_or_a_batch_without_objects() -> None:
    nothing: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    assert _labels(nothing) == [[0, 0, 0]]
    assert _labels(nothing, nothing) == [[0, 0, 0]] * 2
    assert _labels(nothing, ([[0.65, 0.65, 0.85, 0.85]], [2], [0]), nothing) == [[0, 0, 0], [0, 3, 0], [0, 0, 0]]


def test_crowds_only_make_priors_neutral() -> None:
    left = [0.0, 0.0, 0.5, 1.0]
    assert _labels(([left], [0], [1])) == [[-1, 0, -1]]
    # The forced prior is positive although it lies in the crowd, wherever the crowd stands among the rows.
    box = [0.15, 0.65, 0.35, 0.85]
    assert _labels(([left, box], [-1, 3], [1, 0])) == [[-1, 0, 4]]
    assert _labels(([box, left], [3, -1], [0, 1])) == [[-1, 0, 4]]


def test_bad_boxes_still_give_a_matching() -> None:
    nan = float("nan")
    for box in ([nan] * 4, [0.2, 0.2, 0.2, 0.2], [0.4, 0.4, 0.1, 0.1]):
        labels = match_priors(_truth(([box], [1], [0])), PRIORS).labels
        assert (labels == 2).sum() == 1
        assert ((labels >= -1) & (labels <= 2)).all()


def test_encoding_undoes_decoding() -> None:
    rng = np.random.default_rng(0)
    priors = scenes.make_priors(rng, 50)
    loc = torch.from_numpy(rng.standard_normal((2, 50, 4)).astype(np.float32))
    torch.testing.assert_close(encode_boxes(decode_boxes(loc, priors), priors), loc, rtol=1e-4, atol=1e-4)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolact_deploy.errors import InputError

torch = pytest.importorskip("torch")

import scenes
from torch.nn.functional import interpolate

from yolact_deploy.training.targets import GroundTruth

CPU = torch.device("cpu")


def _targets() -> list[Any]:
    rng = np.random.default_rng(0)
    return [scenes.target(scenes.make_image(rng, *count)) for count in ((2, 1), (0, 0), (20, 0))]


def test_rows_of_a_batch() -> None:
    targets = _targets()
    truth = GroundTruth.of(targets, scenes.CLASSES, CPU)
    assert truth.counts == (3, 0, 20)
    assert truth.size == 23
    assert truth.image.tolist() == [0] * 3 + [2] * 20 + [0]
    assert truth.rows.tolist() == [[0, 1, 2] + [23] * 17, [23] * 20, list(range(3, 23))]
    torch.testing.assert_close(truth.boxes[:3], targets[0]["boxes"] / scenes.SIZE)
    assert truth.boxes[-1].tolist() == [0, 0, 1, 1]
    assert truth.crowd[:3].tolist() == targets[0]["iscrowd"].tolist()
    assert truth.crowd[-1]
    assert truth.labels.min() == 0  # crowds had -1


def test_masks_at_other_sizes() -> None:
    targets = _targets()
    sizes = (12, 9), (7, 7)
    for masks, size in zip(GroundTruth.of(targets, scenes.CLASSES, CPU).masks_at(*sizes), sizes, strict=True):
        together = torch.cat([target["masks"] for target in targets]).float()
        want = interpolate(together[None], size, mode="bilinear", align_corners=False)[0] > 0.5
        assert torch.equal(masks[:-1], want)
        assert not masks[-1].any()


def test_sides_of_their_own_and_other_types() -> None:
    target = {
        "boxes": np.array([[10, 20, 30, 40]]),
        "labels": np.array([3]),
        "masks": np.ones((1, 80, 50), bool),
        "width": 50,
        "height": torch.tensor(80),
    }
    truth = GroundTruth.of([target], 4, CPU)
    torch.testing.assert_close(truth.boxes[0], torch.tensor([0.2, 0.25, 0.6, 0.5]))
    assert not truth.crowd[0]
    assert truth.masks_at((4, 4))[0][0].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, r"target 1: expected boxes \[2, 4\], got \[2, 5\]"),
        ({"labels": torch.zeros(3)}, r"target 1: expected labels \[2\], got \[3\]"),
        ({"iscrowd": torch.zeros(1)}, r"target 1: expected iscrowd \[2\], got \[1\]"),
        ({"masks": torch.zeros(2, 48, 47)}, r"target 1: expected masks \[2, 48, 48\], got \[2, 48, 47\]"),
        (
            {"height": 640},
            r"target 1: expected masks \[2, 640, 48\], got \[2, 48, 48\]: .* in whose pixels the boxes are",
        ),
        ({"labels": torch.tensor([0, 4])}, r"target 1: expected labels from 0 to 3, got \[4\]"),
        ({"labels": torch.tensor([-1, 2])}, r"got \[-1\]: labels are 0-based and without the background"),
    ],
)
def test_targets_that_do_not_fit_are_refused(changes: Any, message: str) -> None:
    rng = np.random.default_rng(0)
    good = scenes.target(scenes.make_image(rng, 2))
    with pytest.raises(InputError, match=message):
        GroundTruth.of([good, good | changes], 4, CPU)


def test_a_missing_key_is_named() -> None:
    good = scenes.target(scenes.make_image(np.random.default_rng(0), 2))
    with pytest.raises(InputError, match="target 0 has no masks, width"):
        GroundTruth.of([{key: good[key] for key in ("boxes", "labels", "height")}], 4, CPU)

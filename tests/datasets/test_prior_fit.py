"""Priors fitted to a dataset: the best possible recall, checked against all priors of the network, rises."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from yolact_deploy.config import YolactConfig, get_config
from yolact_deploy.datasets.prior_fit import fit_priors, prior_quality
from yolact_deploy.errors import ConfigError, DatasetError
from yolact_deploy.priors import make_priors

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


def boxes_of(count: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    """Boxes within the image whose sides are between the limits."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(low, high, (count, 2))
    corner = rng.uniform(0, 1 - size)
    return np.concatenate([corner, corner + size], axis=1)


def all_overlaps(boxes: np.ndarray, config: YolactConfig) -> np.ndarray:
    """IoU [T, P] with every prior of the network."""
    priors = make_priors(config).astype(np.float64)
    corners = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], axis=1)
    low = np.maximum(boxes[:, None, :2], corners[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], corners[None, :, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] + priors[:, 2:].prod(axis=1)
    return np.asarray(inter / (area - inter))


@pytest.mark.parametrize("square", [True, False])
def test_quality_is_that_of_all_priors(square: bool) -> None:
    config = dataclasses.replace(get_config("yolact_base").with_size(160), square_priors=square)
    boxes = boxes_of(60, 0.03, 0.5)
    best = all_overlaps(boxes, config).max(axis=1)
    quality = prior_quality(boxes, config)
    assert quality.mean_iou == pytest.approx(best.mean(), abs=1e-5)
    assert quality.recall == pytest.approx((best >= 0.5).mean(), abs=0.02)
    assert sum(quality.per_level) == pytest.approx(1)


def test_small_objects_get_small_priors() -> None:
    config = get_config("yolact_edge_mobilenetv2").with_size(320)
    boxes = boxes_of(300, 0.02, 0.08)
    fit = fit_priors(boxes, config, scales_per_level=2)
    assert fit.quality_after.recall > fit.quality_before.recall + 0.02
    assert fit.quality_after.mean_iou > fit.quality_before.mean_iou
    assert [len(level) for level in fit.after.prior_scales] == [2] * 5
    assert dataclasses.replace(fit.after, prior_scales=config.prior_scales) == config


def test_it_never_gets_worse() -> None:
    config = get_config("yolact_base").with_size(200)
    for low, high in ((0.01, 0.02), (0.9, 1.0), (0.02, 0.95)):
        fit = fit_priors(boxes_of(100, low, high), config)
        assert fit.quality_after.mean_iou >= fit.quality_before.mean_iou


def test_what_cannot_be_fitted() -> None:
    config = get_config("yolact_base")
    with pytest.raises(DatasetError, match="no object with an area"):
        fit_priors(np.zeros((3, 4)), config)
    with pytest.raises(ConfigError, match="scales per level: expected 1 to 8, got 9"):
        fit_priors(boxes_of(3, 0.1, 0.2), config, scales_per_level=9)


def test_the_command_prints_what_train_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pycocotools")
    import tiny

    from yolact_deploy.cli import main as cli
    from yolact_deploy.training.overrides import override
    from yolact_deploy.training.recipes import get_recipe

    data = str(tiny.tiny_set(tmp_path / "set"))
    command = ["data", "priors", data, "--recipe", "yolact_base", "--size", "128", "--scales", "2"]
    assert cli.main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["after"]["mean_iou"] >= facts["before"]["mean_iou"]
    assert cli.main(command) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line == facts["set"]
    setting = line.removeprefix("--set '").removesuffix("'")
    recipe = override(get_recipe("yolact_base"), ["config.image_size=128", setting])
    assert [list(level) for level in recipe.config.prior_scales] == facts["after"]["prior_scales"]
    assert cli.main(["data", "priors", str(tmp_path / "none.yaml")]) == 2
    assert cli.main(["data", "priors", data, "--recipe", "nothing"]) == 2

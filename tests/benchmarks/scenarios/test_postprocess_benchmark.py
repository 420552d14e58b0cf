"""The script that measures what follows the network: its scene is realistic, and both ways find the same."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from yolact_deploy.benchmarks.scenarios import postprocess_speed as postprocess
from yolact_deploy.benchmarks.scenarios.scene import Scene, make_scene
from yolact_deploy.config import get_config


def test_the_scene_is_the_same_each_time_and_realistic() -> None:
    config = get_config("yolact_base")
    scene, again, other = (make_scene(config, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(scene, again, strict=True))
    assert not np.array_equal(scene.scores, other.scores)
    assert [array.shape for array in scene] == [(19248, 4), (19248, 80), (19248, 32), (138, 138, 32)]
    assert all(array.dtype == np.float32 for array in scene)
    assert 200 < (scene.scores.max(axis=1) > 0.05).sum() < 600
    assert scene.proto.min() >= 0


@pytest.mark.slow
def test_both_ways_find_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert postprocess.main(["--repeats", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scene"]["detections"] == 100
    assert 0.02 < result["scene"]["mean_box_area"] < 0.08
    assert result["mask_iou"]["min"] >= 0.999
    assert result["ratio"] > 1
    assert postprocess.main(["--repeats", "1"]) == 0
    assert "times faster" in capsys.readouterr().out


@pytest.mark.slow
def test_other_masks_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = postprocess.ours

    def wrong(scene: Scene) -> tuple[list[float], dict[str, Any]]:
        times, found = right(scene)
        masks = found["masks"]
        offsets = np.maximum(masks.offsets - 1, 0)
        return times, {**found, "masks": dataclasses.replace(masks, offsets=offsets)}

    monkeypatch.setattr(postprocess, "ours", wrong)
    assert postprocess.main(["--repeats", "1"]) == 1

"""What a training writes for TensorBoard is what TensorBoard reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorboard")

import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yolact_deploy.training.fit import fit
from yolact_deploy.training.monitors import read_log, scalars, tensorboard


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_the_curves_of_a_training(tmp_path: Path) -> None:
    recipe = tiny.tiny_recipe("iterations=3", "eval_interval=2")
    fit(recipe, tiny.tiny_set(tmp_path / "set"), tmp_path / "run", workers=0, device="cpu")
    curves = _curves(tmp_path / "run")
    assert [step for step, _ in curves["loss/box"]] == [1, 2, 3]
    assert [step for step, _ in curves["mask/ap"]] == [2, 3]
    assert {"loss/class", "loss/mask", "loss/semantic", "train/lr", "box/ap50"} <= set(curves)
    logged = {r["step"]: r["loss"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["event"] == "step"}
    for step, value in curves["train/loss"]:
        assert value == pytest.approx(logged[step], rel=1e-6)


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "event": "step", "step": 7, "losses": {"box": float("nan"), "class": 1.0}, "loss": float("nan"), "lr": 1e-3,
        "gradient": 2.0, "skipped": 1, "images_per_second": 5.0,
    }  # fmt: skip
    assert "loss/box" not in scalars(record)
    board = tensorboard(tmp_path)
    assert board is not None
    board.write(record)
    board.write({"event": "saved", "step": 7, "path": "state_7.pt"})
    board.close()
    curves = _curves(tmp_path)
    assert set(curves) == {"loss/class", "train/lr", "train/gradient", "train/skipped", "train/images_per_second"}
    assert curves["loss/class"] == [(7, 1.0)]

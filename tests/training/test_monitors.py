"""What a training writes for TensorBoard is what TensorBoard reads."""

from __future__ import annotations

import importlib.util
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorboard")

import cv2
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yolact_deploy.progress import Progress, ReportStep
from yolact_deploy.training.fit import fit
from yolact_deploy.training.model_card import NAME
from yolact_deploy.training.monitors import read_log, scalars, tensorboard


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of three iterations, each evaluated."""
    folder = tmp_path_factory.mktemp("training")
    recipe = tiny.tiny_recipe("iterations=3", "eval_interval=1")
    fit(recipe, tiny.tiny_set(folder / "set"), folder / "run", workers=0, device="cpu")
    return folder / "run"


def test_the_curves_of_a_training(run: Path) -> None:
    curves = _curves(run)
    assert [step for step, _ in curves["loss/box"]] == [1, 2, 3]
    assert [step for step, _ in curves["mask/ap"]] == [1, 2, 3]
    assert {"loss/class", "loss/mask", "loss/semantic", "train/lr", "box/ap50"} <= set(curves)
    logged = {r["step"]: r["loss"] for r in read_log(run / "log.jsonl") if r["event"] == "step"}
    for step, value in curves["train/loss"]:
        assert value == pytest.approx(logged[step], rel=1e-6)


def test_pictures_of_predictions_and_what_a_person_looks_at(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    (tag,) = events.Tags()["images"]
    pictures = events.Images(tag)
    assert (tag, [picture.step for picture in pictures]) == ("predictions", [1, 2, 3])
    assert pictures[0].height == 320
    assert pictures[0].width == pytest.approx(2 * 320 * 96 / 72, abs=2)
    card = (run / NAME).read_text()
    assert "| val | 2 |" in card
    assert "3 iterations of 4 images" in card
    assert "pace" not in (run / "log.jsonl").read_text()
    if importlib.util.find_spec("matplotlib") is not None:
        assert cv2.imread(str(run / "curves.png")) is not None


def test_every_step_is_shown_from_the_first_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[str, int, int]] = []

    class Recorder(Progress):
        def steps(self, description: str) -> AbstractContextManager[ReportStep]:
            return nullcontext(lambda phase, done, total: lines.append((phase, done, total)))

    recipe = tiny.tiny_recipe("iterations=4", "log_interval=3", "eval_interval=0")
    fit(recipe, tiny.tiny_set(tmp_path / "set"), tmp_path / "run", workers=0, device="cpu", progress=Recorder())
    assert [done for _, done, _ in lines] == [0, 1, 2, 3, 3, 4, 4]
    assert {total for _, _, total in lines} == {4}
    assert all(re.match(r"[\d.]+ images/s, 0:00:\d\d left", phase) for phase, _, _ in lines[1:])
    assert "loss" not in lines[2][0]
    assert "loss" in lines[-1][0]


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

"""The benchmark of the training loader: its steps make what the loader makes, and all of them are timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools")

from yolact_deploy.benchmarks.scenarios import loader_speed as loader
from yolact_deploy.datasets.shapes import write_shapes
from yolact_deploy.training.data import training_loader


@pytest.fixture(autouse=True)
def threads() -> object:
    """The benchmark takes one thread; the other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(write_shapes(tmp_path, {"train": 4}, height=96, width=128))
    arguments = [str(tmp_path), "--size", "100", "--batch", "2", "--workers", "0", "--seconds", "0.1"]
    assert loader.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["steps_ms_per_image"]) == set(loader.STEPS)
    assert all(value > 0 for value in result["steps_ms_per_image"].values())
    assert result["images_per_second"]["0"] > 0
    assert result["same"]
    assert loader.main(arguments) == 0
    assert "images/s" in capsys.readouterr().out


def test_other_batches_than_the_steps_made_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(write_shapes(tmp_path, {"train": 4}, height=96, width=128))
    genuine = training_loader
    monkeypatch.setattr(loader, "training_loader", lambda *a, **k: genuine(*a, **{**k, "seed": 9}))
    assert loader.main([str(tmp_path), "--batch", "2", "--workers", "0", "--seconds", "0", "--json"]) == 1

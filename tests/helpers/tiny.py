"""A training small enough for tests: generated shapes at 64 pixels, and a network with few channels."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_deploy.datasets.shapes import write_shapes
from yolact_deploy.training.overrides import override
from yolact_deploy.training.recipe import Recipe
from yolact_deploy.training.recipes import get_recipe

ROOT = Path(__file__).resolve().parents[2]

SETTINGS = (
    "config.image_size=64", "config.fpn_channels=16", "config.num_prototypes=4",
    "batch=4", "iterations=12", "save_interval=4", "log_interval=1", "ema_decay=0.9",
    "optimizer=sgd", "lr=1e-3", "amp=fp32", "channels_last=no", "freeze_stages=0",
    "weights=none",  # with trained weights, such a high rate amplifies rounding, which would hide the comparison
)  # fmt: skip


def tiny_recipe(*settings: str) -> Recipe:
    """Twelve iterations with four images each."""
    return override(get_recipe("shapes_demo"), [*SETTINGS, *settings])


def tiny_set(folder: Path, train: int = 8, val: int = 2) -> Path:
    """The dataset file of a set of shapes."""
    for _ in write_shapes(folder, {"train": train, "val": val}, seed=0, height=72, width=96):
        pass
    return folder / "shapes.yaml"


def as_arguments(settings: tuple[str, ...] = SETTINGS) -> list[str]:
    """The same for a command line."""
    return [part for setting in settings for part in ("--set", setting)]


def leave_out_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves.png and no files for TensorBoard, which take longer than the steps: see test_monitors.py."""
    fit = importlib.import_module("yolact_deploy.training.fit")
    for name in ("draw_curves", "draw_confusion", "tensorboard"):
        monkeypatch.setattr(fit, name, lambda *arguments: None)


def environment() -> dict[str, str]:
    """Environment of a child process that computes like the tests: one thread, the fastest for such small layers."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}


def run_python(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout
    )

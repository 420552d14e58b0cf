"""Saved states: what is kept, what comes back, what is refused."""

from __future__ import annotations

import errno
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from yolact_deploy.errors import CheckpointError, OutputError
from yolact_deploy.training.distributed import World
from yolact_deploy.training.interrupt import StopRequest
from yolact_deploy.training.monitors import JsonLog, TensorBoard
from yolact_deploy.training.state import (
    StateFolder,
    random_states,
    read_state,
    require_same,
    set_random_states,
    set_seed,
)

WORLD = World(torch.device("cpu"))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    states = StateFolder(tmp_path / "run", keep=2)
    assert states.latest() is None
    for step in (3, 20, 100):
        states.save(step, {"value": torch.full((2,), float(step))})
    assert [path.name for path in states.states()] == ["state_00000020.pt", "state_00000100.pt"]
    latest = states.latest()
    assert latest is not None
    assert latest["step"] == 100
    assert latest["value"].tolist() == [100, 100]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = StateFolder(tmp_path, keep=1)
    states.save(1, {})

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        states.save(2, {})
    assert [path.name for path in tmp_path.iterdir()] == ["state_00000001.pt"]


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps({"format": 1, "step": 1, "x": pytest.approx})])
def test_damaged_or_dangerous_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state_00000001.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state_00000001.pt is damaged .*remove it"):
        read_state(path)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = StateFolder(tmp_path).save(5, {"value": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged"):
        StateFolder(tmp_path).latest()


def test_weights_are_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state_00000001.pt"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a state"):
        read_state(path)


def test_another_recipe_is_told() -> None:
    saved = {"recipe": {"lr": 1e-3, "batch": 8}, "data": {"images": 3}}
    require_same(Path("s.pt"), saved, saved)
    with pytest.raises(CheckpointError, match=r"recipe\.lr 0\.001, now 0\.01.*same recipe"):
        require_same(Path("s.pt"), saved, {"recipe": {"lr": 1e-2, "batch": 8}, "data": {"images": 3}})


def test_random_states_come_back(tmp_path: Path) -> None:
    def draw() -> tuple[object, ...]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    set_seed(3)
    draw()
    StateFolder(tmp_path).save(1, {"random": random_states(WORLD)})
    expected = draw()
    draw()
    state = StateFolder(tmp_path).latest()
    assert state is not None
    set_random_states(state["random"], WORLD)
    assert draw() == expected


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = StateFolder(tmp_path, keep=2)
    states.save(10, {"value": 1})
    write = torch.save

    def to_a_full_disk(value: Any, target: Path) -> None:
        write({"value": torch.zeros(10_000)}, "/dev/full")

    monkeypatch.setattr(torch, "save", to_a_full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*state_00000020\.pt, is the disk full\?.*--resume"):
        states.save(20, {"value": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state_00000010.pt"]


def test_a_log_on_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl", None)
    log.write({"event": "start", "step": 0})
    log._file.close()
    with open("/dev/full", "ab", buffering=0) as log._file:
        with pytest.raises(OutputError, match=r"cannot write .*log\.jsonl: No space left on device"):
            log.write({"event": "step", "step": 1})
        log.close()


def test_curves_on_a_full_disk_are_an_output_error(tmp_path: Path) -> None:
    class Writer:
        log_dir = str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    record = {"event": "evaluation", "step": 1, "box": {"ap": 0.5}}
    with pytest.raises(OutputError, match="No space left on device"):
        TensorBoard(Writer()).write(record)


# -- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request_to_stop(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.wanted
        signal.raise_signal(number)
        assert stop.wanted
        if number == signal.SIGHUP:  # the shell and the kernel both send it
            signal.raise_signal(number)
        else:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ignored_signals_stay_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert not stop.wanted
    finally:
        signal.signal(number, before)

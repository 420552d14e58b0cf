"""States of a training on disk: all that is needed to go on as if nothing had happened.

A state is one file, written under another name and then renamed, so that a process killed at any moment leaves whole
files only. It is read with ``weights_only=True``: reading it runs no code. The files of a training are in one folder:

    state_00002000.pt     after 2000 iterations; the last few are kept
    best.safetensors      weights that scored best, for `export` and `predict`
    last.safetensors      weights at the end
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolact_deploy.artifact import atomic_write
from yolact_deploy.errors import CheckpointError
from yolact_deploy.training.distributed import World

FORMAT = 1
_NAME = re.compile(r"state_(\d{8})\.pt")


class StateFolder:
    """The saved states of one training.

    Args:
        folder: where; made when the first state is written
        keep: how many of the last states stay
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def states(self) -> list[Path]:
        """The saved states, the latest last."""
        return sorted(path for path in self.folder.glob("state_*.pt") if _NAME.fullmatch(path.name))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` iterations, and remove all but the last few.

        Raises:
            OutputError: it cannot be written; what was there stays.
        """
        path = self.folder / f"state_{step:08d}.pt"
        with atomic_write(path) as temporary:
            torch.save({"format": FORMAT, "step": step, **state}, temporary)
        for old in self.states()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """The last state, with tensors on the CPU; None where nothing was saved.

        Raises:
            CheckpointError: it cannot be read; the message says which file to remove to go on from the one before.
        """
        found = self.states()
        return read_state(found[-1]) if found else None


def read_state(path: Path) -> dict[str, Any]:
    """A state as :meth:`StateFolder.save` was given it, with ``step`` and ``format``."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(
            f"{path} is damaged or not a state of a training: remove it, and --resume goes on from the one before it, "
            "or from the beginning"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not isinstance(state.get("step"), int):
        raise CheckpointError(f"{path} is not a state of a training by this version: remove it, or train anew")
    return state


def require_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises :class:`CheckpointError` where a state was made by another recipe, or on other data."""
    other = _differences(saved, now)
    if other:
        raise CheckpointError(
            f"{path} was made with {'; '.join(other[:4])}: give the same recipe, data and --set to resume, or another "
            "--output to train anew"
        )


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted(set(saved) | set(now)):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} {old!r}, now {new!r}")
    return found


# -- random states --------------------------------------------------------------------------------------------------


def random_states(world: World) -> list[Any]:
    """The states of the random generators of each process; empty but in the main one."""
    generator = np.random.get_state(legacy=True)
    assert isinstance(generator, tuple)
    own = {
        "python": list(random.getstate()[1]),
        "numpy": torch.from_numpy(np.asarray(generator[1], np.int64)),
        "numpy_position": int(generator[2]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(world.device) if world.device.type == "cuda" else None,
    }
    return world.gather(own)


def set_random_states(states: list[Any], world: World) -> None:
    """Put back what :func:`random_states` told; with more processes than then, the others take those of the first."""
    own = states[world.rank % len(states)]
    random.setstate((3, tuple(own["python"]), None))
    np.random.set_state(("MT19937", own["numpy"].numpy().astype(np.uint32), own["numpy_position"], 0, 0.0))
    torch.set_rng_state(own["torch"])
    if world.device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], world.device)


def set_seed(seed: int) -> None:
    """Seed all generators alike in all processes, so that they begin with the same weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

"""States of a training on disk: everything needed to continue as if it had not been interrupted.

A state is one file, written under a temporary name and then renamed, so that a killed process leaves only complete
files. It is read with ``weights_only=True``, which runs no code from the file. The files of a training are in one
folder:

    state_00002000.pt     after 2000 iterations; the last few are kept
    best.safetensors      weights with the best score, for `export` and `predict`
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
from yolact_deploy.errors import CheckpointError, OutputError
from yolact_deploy.training.distributed import World
from yolact_deploy.untrusted import require_packed_size

FORMAT = 1
_NAME = re.compile(r"state_(\d{8})\.pt")


class StateFolder:
    """The saved states of one training.

    Args:
        folder: where to keep them; created with the first state
        keep: how many of the last states to keep
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def states(self) -> list[Path]:
        """The saved states, the latest last."""
        return sorted(path for path in self.folder.glob("state_*.pt") if _NAME.fullmatch(path.name))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after ``step`` iterations, and remove all but the last few.

        Raises:
            OutputError: it cannot be written; earlier states remain.
        """
        path = self.folder / f"state_{step:08d}.pt"
        with atomic_write(path) as temporary:
            try:
                torch.save({"format": FORMAT, "step": step, **state}, temporary)
            except RuntimeError as error:  # of torch's own writer, for a full disk, too
                raise OutputError(
                    f"cannot write {path}, is the disk full? ({str(error).splitlines()[0]}). Free some space; --resume "
                    "continues from the state before"
                ) from error
        for old in self.states()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """The last state, with tensors on the CPU; None if nothing was saved.

        Raises:
            CheckpointError: it cannot be read; the message names the file to remove to continue from the previous one.
        """
        states = self.states()
        return read_state(states[-1]) if states else None


def read_state(path: Path) -> dict[str, Any]:
    """The state given to :meth:`StateFolder.save`, with ``step`` and ``format``."""
    require_packed_size(path, "state of a training", CheckpointError)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(
            f"{path} is damaged or not a state of a training: remove it, and --resume continues from the previous one, "
            "or starts anew"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not isinstance(state.get("step"), int):
        raise CheckpointError(
            f"{path} is not a state of a training of this version: remove it, or start a new training"
        )
    return state


def require_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` if a state was made with another recipe or other data."""
    other = _differences(saved, now)
    if other:
        raise CheckpointError(
            f"{path} was made with {'; '.join(other[:4])}: give the same recipe, data and --set to resume, or another "
            "--output for a new training"
        )


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    differences = []
    for key in sorted(set(saved) | set(now)):
        old, new = saved.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            differences.append(f"{prefix}{key} {old!r}, now {new!r}")
    return differences


# -- random states --------------------------------------------------------------------------------------------------


def random_states(world: World) -> list[Any]:
    """The states of the random generators of each process; empty except in the main process."""
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
    """Restore the result of :func:`random_states`; with more processes than then, the states are used in turn."""
    own = states[world.rank % len(states)]
    random.setstate((3, tuple(own["python"]), None))
    np.random.set_state(("MT19937", own["numpy"].numpy().astype(np.uint32), own["numpy_position"], 0, 0.0))
    torch.set_rng_state(own["torch"])
    if world.device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], world.device)


def set_seed(seed: int) -> None:
    """Seed all generators equally in all processes, so that they start from the same weights."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

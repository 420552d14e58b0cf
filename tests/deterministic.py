"""Checkpoints with the deterministic weights of the golden files, for tests that need a loadable network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detweights import det_state, load_keys  # tests/golden is on sys.path, see conftest.py

from yolact_deploy.config import YolactConfig, get_config

GOLDEN = Path(__file__).parent / "golden"

#: for tests that need a whole network but none of the originals': a ninth of the weights of ResNet-50
SMALL = YolactConfig(name="small", backbone="mobilenet_v2", fpn_channels=64)
#: the same with a mask-IoU network; only a ResNet can also have deformable convolutions, in 130 MB
SMALL_PLUS = replace(SMALL, name="small_plus", mask_iou=True)
_OWN = {config.name: config for config in (SMALL, SMALL_PLUS)}


def named_config(name: str, size: int | None = None) -> YolactConfig:
    """The named configuration, or :data:`SMALL` for "small" and :data:`SMALL_PLUS`, at another size."""
    config = _OWN.get(name) or get_config(name)
    return config if size is None else config.with_size(size)


def golden_networks() -> list[str]:
    """The configurations with golden outputs of whole images; files of other inputs have tests of their own."""
    names = (path.stem.removeprefix("net_") for path in GOLDEN.glob("net_*.npz"))
    return sorted(name for name in names if not name.startswith("nonsquare_"))


def deterministic_state(config_name: str) -> dict[str, Any]:
    """State dict of torch tensors for a named configuration, the same on every machine.

    Names and shapes come from the golden keys file, or from the model if there is none.
    """
    import torch

    keys_file = GOLDEN / f"keys_{config_name}.json"
    if keys_file.exists():
        keys = load_keys(keys_file)
    else:
        from yolact_deploy.model import YolactModel

        with torch.device("meta"):
            model = YolactModel(named_config(config_name))
        keys = [(name, list(value.shape)) for name, value in model.state_dict().items()]
    return {name: torch.from_numpy(np.asarray(array)) for name, array in det_state(keys).items()}


def write_checkpoint(path: str | Path, config_name: str) -> Path:
    """Write the deterministic weights of a configuration as a ``.pth`` state dict, as the original saves them."""
    import torch

    torch.save(deterministic_state(config_name), path)
    return Path(path)

"""Checkpoints of other implementations of YOLACT, from the names and golden numbers in tests/golden/foreign.

Files put there are picked up: ``keys_<name>.json`` (names and shapes) and ``net_<name>.npz`` with ``.json`` (numbers).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from deterministic import GOLDEN
from detweights_foreign import det_state, load_keys

from yolact_deploy.config import YolactConfig
from yolact_deploy.preprocess import fit_image, normalize, read_image

FOREIGN = GOLDEN / "foreign"
KEYS = sorted(path.stem.removeprefix("keys_") for path in FOREIGN.glob("keys_*.json"))
NETS = sorted(path.stem.removeprefix("net_") for path in FOREIGN.glob("net_*.npz"))
IMAGES = (0, 1)


def family(name: str) -> str:
    """Which implementation a file is of: "mmdet", "yolact_edge" or "yolact_minimal"."""
    return next(known for known in ("mmdet", "yolact_edge", "yolact_minimal") if name.startswith(known))


def keys(name: str) -> list[Any]:
    return list(load_keys(FOREIGN / f"keys_{name}.json"))


def write_checkpoint(path: Path, name: str) -> Path:
    """The file as its implementation publishes it, with the deterministic weights of the golden numbers."""
    import torch

    stored = name if (FOREIGN / f"keys_{name}.json").exists() else name.removesuffix("_3x")
    state = {key: torch.from_numpy(np.asarray(array)) for key, array in det_state(keys(stored)).items()}
    torch.save({"meta": {"epoch": 55}, "state_dict": state} if family(name) == "mmdet" else state, path)
    return path


def picture(image: int) -> Any:
    return read_image(GOLDEN / f"input{image}.png")


def golden_input(name: str, image: int, config: YolactConfig) -> Any:
    """The picture as the implementation resizes it: float32 BGR [1, S, S, 3]; mmdetection's is rounded."""
    bgr = picture(image)
    if family(name) == "yolact_edge":
        import torch
        from torch.nn.functional import interpolate

        planes = torch.from_numpy(bgr).permute(2, 0, 1)[None].float()
        resized = interpolate(planes, config.input_shape, mode="bilinear", align_corners=False)
        return resized[0].permute(1, 2, 0).numpy()[None]
    dtype = "uint8" if family(name) == "mmdet" else "float32"
    return fit_image(bgr, config, dtype)[None].astype(np.float32)


def trunk_input(pixels: Any, config: YolactConfig) -> Any:
    """Normalized RGB [1, 3, S, S] of pixels [1, S, S, 3]."""
    return normalize(pixels, config)


def theirs(name: str, scores: Any) -> Any:
    """Scores with the background first [..., C + 1] in the implementation's order of channels."""
    return np.roll(scores, -1, axis=-1) if family(name) == "mmdet" else scores


def golden_boxes(name: str, boxes: Any, config: YolactConfig) -> Any:
    """Golden boxes after NMS, normalized."""
    return boxes / config.image_size if family(name) == "mmdet" else boxes


def facts(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOREIGN / f"net_{name}.json").read_text())
    return content

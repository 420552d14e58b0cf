"""Reads backbone weights from ``.npz`` files of 8-bit networks.

For each convolution, the file has ``NAME.weight_q``, ``NAME.zero_point``, ``NAME.scale`` (one, or one per output
channel) and ``NAME.bias``, with batch normalization folded in and torchvision's names. ``meta_input_mean`` and
``meta_input_std`` are the normalization of that network's input, in RGB pixel values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import CheckpointError
from yolact_deploy.untrusted import require_packed_size

_EPSILON = 1e-5  # of torch's batch normalization


def read_quantized(path: Path, config: YolactConfig) -> dict[str, torch.Tensor]:
    """Weights under torchvision's names, in FP32, for images normalized as in ``config``.

    The folded batch normalizations become ones that only add the bias: mean 0, variance 1. They are right while frozen;
    `unfold` gives them real statistics before these are trained.

    Raises:
        CheckpointError: no such file, or it has no such weights.
    """
    arrays = _arrays(path)
    names = [
        key.removesuffix(".weight_q") for key in arrays if key.startswith("features.") and key.endswith("weight_q")
    ]
    if not names:
        raise CheckpointError(f"{path} has no features.*.weight_q: give a file of 8-bit weights, or a .pth file")
    state: dict[str, torch.Tensor] = {}
    for name in names:
        try:
            weight, bias = _dequantized(arrays, name), arrays[f"{name}.bias"].astype(np.float64)
        except KeyError as error:
            raise CheckpointError(f"{path} lacks {error} of {name}: give a complete file") from error
        if weight.shape[1] == 3:  # the first layer, which sees the image
            weight, bias = _for_input(weight, bias, arrays, config)
        state |= _layer(name, weight, bias)
    return state


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    require_packed_size(path, "weights file", CheckpointError)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise CheckpointError(f"no such weights file: {path}. Check the path and the current folder") from error
    except Exception as error:  # a damaged archive can raise nearly anything
        raise CheckpointError(f"{path} is not a complete .npz file: copy or download it again") from error


def _dequantized(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
    levels = arrays[f"{name}.weight_q"].astype(np.float64) - _per_channel(arrays[f"{name}.zero_point"])
    return np.asarray(levels * _per_channel(arrays[f"{name}.scale"]))


def _per_channel(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(-1, 1, 1, 1)


def _for_input(
    weight: NDArray[np.float64], bias: NDArray[np.float64], arrays: dict[str, NDArray[Any]], config: YolactConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first convolution for our normalization, which differs from the file's by a factor and an offset."""
    if "meta_input_mean" not in arrays or "meta_input_std" not in arrays:
        return weight, bias
    mean, std = (np.broadcast_to(arrays[f"meta_input_{k}"].astype(np.float64).ravel(), 3) for k in ("mean", "std"))
    own_mean, own_std = np.array(config.pixel_mean[::-1]), np.array(config.pixel_std[::-1])
    offset = ((own_mean - mean) / std).reshape(1, 3, 1, 1)
    return weight * (own_std / std).reshape(1, 3, 1, 1), bias + (weight * offset).sum(axis=(1, 2, 3))


def _layer(name: str, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> dict[str, torch.Tensor]:
    """The convolution and its batch normalization, whose number in torchvision is one higher."""
    head, _, last = name.rpartition(".")
    norm = f"{head}.{int(last) + 1}"
    count = len(bias)
    return {
        f"{name}.weight": torch.from_numpy(weight.astype(np.float32)),
        f"{norm}.weight": torch.full((count,), (1 + _EPSILON) ** 0.5),
        f"{norm}.bias": torch.from_numpy(bias.astype(np.float32)),
        f"{norm}.running_mean": torch.zeros(count),
        f"{norm}.running_var": torch.ones(count),
    }

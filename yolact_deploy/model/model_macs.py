"""Multiply-accumulates of a network in PyTorch, for checkpoints, which have no graph."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from yolact_deploy.config import YolactConfig
from yolact_deploy.graph.macs import LayerMacs, Macs, part_of
from yolact_deploy.model import YolactModel
from yolact_deploy.model.deformable import DeformableConv
from yolact_deploy.model.fuse import fuse_batch_norm


def count_model_macs(config_or_model: YolactConfig | YolactModel, *, batch: int = 1) -> Macs:
    """Count the multiply-accumulates of a network's trunk without running it.

    Layers have the same names as in an exported file, and batch normalizations count as folded, like there.

    Args:
        batch: images per call

    Raises:
        ConfigError: the configuration cannot be built.
    """
    config = config_or_model if isinstance(config_or_model, YolactConfig) else config_or_model.config
    with torch.device("meta"):
        model = fuse_batch_norm(YolactModel(config))
    layers: list[LayerMacs] = []
    uses: Counter[str] = Counter()

    def count(name: str, module: Any, inputs: Any, output: Any) -> None:
        uses[name] += 1
        layers.append(_layer(name + (f"#{uses[name]}" if uses[name] > 1 else ""), module, inputs[0], output))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(partial(count, name))
    model.heads(torch.empty(batch, 3, *config.input_shape, device="meta"))
    return Macs(batch, "fp32", tuple(layers))


def _layer(name: str, module: nn.Module, values: Tensor, output: Tensor) -> LayerMacs:
    assert isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    transposed, moved = isinstance(module, nn.ConvTranspose2d), 0
    op_type = "ConvTranspose" if transposed else "MatMul" if isinstance(module, nn.Linear) else "Conv"
    if isinstance(module, DeformableConv):
        op_type, moved = "DeformConv", 3 * math.prod(module.kernel_size) * output[:, 0].numel()  # offsets and weights
    return LayerMacs(
        name=name,
        part=part_of(name),
        op_type=op_type,
        macs=(values if transposed else output).numel() * module.weight[0].numel(),  # a kernel each
        inputs=values.numel() + moved,
        weights=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        outputs=output.numel(),
    )

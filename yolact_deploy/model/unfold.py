"""Makes batch normalizations trainable again that were folded into their convolutions.

Folded ones have mean 0 and variance 1. In training they would start to normalize, and the network would change at the
first step. With the real statistics of their inputs, and weights that undo them, each computes the same as before and
can be trained from there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def unfold_batch_norms(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Give all batch normalizations of a network the statistics of images, without changing its outputs.

    Args:
        network: computes the same as before in evaluation mode; keeps its mode
        images: batches [N, 3, S, S] of network input, at least one
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].to(torch.float64).transpose(0, 1).flatten(1)
        sums[norm] += torch.stack([torch.ones(len(values)) * values.shape[1], values.sum(1), values.square().sum(1)])  # type: ignore[index]

    was_training = network.training
    network.eval()
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        for batch in images:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    for norm, (count, total, squares) in sums.items():
        if not count.any():
            continue  # the network never runs it
        mean = total / count
        _move(norm, mean, (squares / count - mean.square()).clamp(min=0))


def _move(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Set new statistics, float64 [C], and the weights that keep the output the same."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    norm.bias.copy_(norm.bias + (mean - norm.running_mean) * slope)
    norm.weight.copy_(slope * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)

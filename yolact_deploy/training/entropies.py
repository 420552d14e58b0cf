"""Cross-entropies in few passes over memory, for the largest tensors of the loss.

PyTorch's own keep two or three temporaries of the size of the logits, and a CPU spends its time on allocating them.
Values and gradients are the same up to rounding. Second derivatives are not supported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``-log softmax(logits)[label]``, float32 [N, P].

    Args:
        logits: float32 [N, P, C]
        labels: int64 [N, P] in 0..C-1
    """
    entropy: Tensor = _CrossEntropy.apply(logits, labels)
    return entropy


def binary_cross_entropy(logits: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """The sum of ``-log p(wanted)`` with p = sigmoid(logits), weighted: a float32 scalar.

    Exact for logits of any size: nothing saturates or is clipped.

    Args:
        logits: float32, any shape
        wanted: float32 in 0..1, of the same shape; no gradient
        weights: float32 of the same shape, 1 by default; no gradient
    """
    entropy: Tensor = _BinaryCrossEntropy.apply(logits, wanted, weights)
    return entropy


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        # Image by image, so that the temporaries fit in the processor's cache.
        total = torch.stack([image.logsumexp(dim=1) for image in logits])
        ctx.save_for_backward(logits, total, labels)
        return total - logits.gather(2, labels[:, :, None])[:, :, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, total, labels = ctx.saved_tensors
        result = (logits - total[:, :, None]).exp_().mul_(grad[:, :, None])
        return result.scatter_add_(2, labels[:, :, None], -grad[:, :, None]), None


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, weights: Tensor | None) -> Tensor:
        probability = logits.sigmoid()
        # log(1 + exp(x)) = max(x, 0) - log(max(p, 1 - p)), where the argument of the logarithm is in 0.5..1.
        entropy = torch.maximum(probability, 1 - probability).log_().neg_()
        entropy.add_(logits.clamp(min=0)).addcmul_(logits, wanted, value=-1)
        residual = probability.sub_(wanted)
        if weights is not None:
            entropy.mul_(weights)
            residual.mul_(weights)
        ctx.save_for_backward(residual)
        return entropy.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (residual,) = ctx.saved_tensors
        return residual * grad, None, None

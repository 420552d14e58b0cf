"""Cross-entropies in few passes over memory, for the largest tensors of the loss.

PyTorch's own keep two or three temporaries of the size of the logits, and on a CPU the time goes into fresh memory for
them. Values and gradients are the same up to rounding; there is no gradient of the gradient.
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
        weights: float32 of the same shape, 1 where left out; no gradient
    """
    entropy: Tensor = _BinaryCrossEntropy.apply(logits, wanted, weights)
    return entropy


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        # Image by image: the temporaries stay in the processor's cache.
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
        found = logits.sigmoid()
        # log(1 + exp(x)) = max(x, 0) - log(max(p, 1 - p)), where the logarithm is of something from 0.5 to 1.
        entropy = torch.maximum(found, 1 - found).log_().neg_()
        entropy.add_(logits.clamp(min=0)).addcmul_(logits, wanted, value=-1)
        residual = found.sub_(wanted)
        if weights is not None:
            entropy.mul_(weights)
            residual.mul_(weights)
        ctx.save_for_backward(residual)
        return entropy.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (residual,) = ctx.saved_tensors
        return residual * grad, None, None

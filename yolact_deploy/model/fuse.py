"""Folds batch normalization into the preceding convolutions, for inference and export."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Model = TypeVar("Model", bound=nn.Module)


def fuse_batch_norm(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode with batch normalizations folded into the convolutions.

    Computed in float32; the outputs differ only by rounding. ``model`` itself does not change.

    Raises:
        ValueError: a batch normalization does not directly follow a convolution.
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        _fuse_children(parent)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ValueError(f"expected batch normalization right after a convolution, got {', '.join(left[:3])} alone")
    return fused


def _fuse_children(parent: nn.Module) -> None:
    """Fold each (convolution, batch normalization) pair of adjacent children.

    In all blocks used here, the children are registered in the order in which they run.
    """
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, nn.Identity())

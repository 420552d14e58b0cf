"""Folds batch normalization into the preceding convolutions, for inference and export."""

from __future__ import annotations

import copy
import itertools
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolact_deploy.model.timm_backbone import TimmBackbone

Model = TypeVar("Model", bound=nn.Module)


def fuse_batch_norm(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode with batch normalizations folded into the convolutions.

    Computed in float32; the outputs differ only by rounding. ``model`` itself does not change.

    Raises:
        ValueError: a batch normalization does not directly follow a convolution.
    """
    fused = copy.deepcopy(model).eval()
    for name, module in fused.named_children():
        if isinstance(module, TimmBackbone):
            setattr(fused, name, _fuse_as_it_runs(module))
    for parent in list(fused.modules()):
        _fuse_children(parent)
    left = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if left:
        raise ValueError(f"expected batch normalization right after a convolution, got {', '.join(left[:3])} alone")
    return fused


class _Affine(nn.Module):
    """A batch normalization that no convolution precedes, as a product and a sum."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.detach())
        shift = (0 if norm.bias is None else norm.bias.detach()) - norm.running_mean * scale
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", shift.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _fuse_as_it_runs(backbone: TimmBackbone) -> TimmBackbone:
    """Fold where the result of a convolution is what a batch normalization reads, in the blocks of another library.

    Convolutions whose results others read as well would be wrong afterwards, so the outputs are compared.
    """
    folded = _replace_norms(copy.deepcopy(backbone), _pairs(backbone))
    parameter = next(backbone.parameters())
    if parameter.is_meta:
        return folded
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(parameter)
    with torch.no_grad():
        for expected, actual in zip(backbone(images), folded(images), strict=True):
            if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
                return _replace_norms(copy.deepcopy(backbone), {})
    return folded


def _pairs(backbone: nn.Module) -> dict[str, str]:
    """The convolution whose result a batch normalization reads, by the name of the latter."""
    results: dict[int, tuple[str, Tensor]] = {}
    pairs: dict[str, str] = {}

    def made(name: str, output: Tensor) -> None:
        results[id(output)] = name, output  # kept, so that its id is not given to another one

    def read(name: str, values: Tensor) -> None:
        if id(values) in results:
            pairs[name] = results[id(values)][0]

    copied = copy.deepcopy(backbone).to("meta")
    for name, module in copied.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, values, output, name=name: made(name, output))
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, values, name=name: read(name, values[0]))
    with torch.no_grad():
        copied(torch.empty(1, 3, 96, 96, device="meta"))
    convolutions = list(pairs.values())
    return {norm: conv for norm, conv in pairs.items() if convolutions.count(conv) == 1}


def _replace_norms(backbone: TimmBackbone, pairs: dict[str, str]) -> TimmBackbone:
    """Fold the paired batch normalizations and turn the others into products and sums, in place."""
    modules: dict[str, Any] = dict(backbone.named_modules())
    for name, norm in [(name, module) for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)]:
        parts = (getattr(norm, part, None) for part in ("drop", "act"))  # of timm's own class
        rest: list[nn.Module] = [part for part in parts if isinstance(part, nn.Module)]
        if name in pairs:
            conv = modules[pairs[name]]
            fused = fuse_conv_bn_eval(conv, norm)
            _set_module(backbone, pairs[name], fused)
        else:
            rest.insert(0, _Affine(norm))
        _set_module(backbone, name, nn.Sequential(*rest) if rest else nn.Identity())
    return backbone


def _set_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


def _fuse_children(parent: nn.Module) -> None:
    """Fold each (convolution, batch normalization) pair of adjacent children.

    In all blocks used here, the children are registered in the order in which they run.
    """
    for (conv_name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, nn.Identity())

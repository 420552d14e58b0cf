"""Networks from patterns of layers, under the tensor names of the original's ``make_net``: ``0.weight``, ``2.weight``,
and within a concatenation ``0.nets.1.0.weight``.

Legend: N images, h x w a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact_deploy.config.layer_patterns import CONCATENATION, Pattern, channels_of, transposed_padding


def make_net(channels: int, pattern: Pattern, *, align_corners: bool = False) -> nn.Sequential:
    """A network [N, channels, h, w] to [N, channels_of(pattern, channels), h * scale, w * scale], not negative.

    Args:
        pattern: as `layer_patterns` describes; a ReLU follows each layer
        align_corners: of bilinear upsampling
    """
    modules: list[nn.Module] = []
    for layer in pattern:
        modules += [_make_layer(channels, *layer, align_corners=align_corners), nn.ReLU(inplace=True)]
        channels = channels_of((layer,), channels)
    return nn.Sequential(*modules)


class Concatenation(nn.Module):
    """Networks side by side: each gets [N, channels, h, w], and their outputs are joined along the channels."""

    def __init__(self, nets: list[nn.Sequential]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x) for net in self.nets], dim=1)


def _make_layer(
    channels: int, width: int | str, kernel: int | Pattern, stride: int = 0, *, align_corners: bool
) -> nn.Module:
    if width == CONCATENATION:
        assert isinstance(kernel, tuple)
        return Concatenation([make_net(channels, part, align_corners=align_corners) for part in kernel])
    assert isinstance(width, int)
    assert isinstance(kernel, int)
    if not width:
        return nn.Upsample(scale_factor=kernel, mode="bilinear", align_corners=align_corners)
    if kernel > 0:
        return nn.Conv2d(channels, width, kernel, padding=kernel // 2)
    stride = stride or -kernel
    return nn.ConvTranspose2d(channels, width, -kernel, stride, padding=transposed_padding(-kernel, stride))

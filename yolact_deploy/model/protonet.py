"""Protonet: P3 to the prototype masks. Source: YOLACT (arXiv:1904.02689), section 3.1 and figure 3."""

from __future__ import annotations

from torch import nn


def make_protonet(channels: int, num_prototypes: int, *, align_corners: bool = False) -> nn.Sequential:
    """A network [N, channels, h, w] to [N, num_prototypes, 2h, 2w], not negative.

    The positions in the sequence are the tensor names of the original (``proto_net.0`` to ``proto_net.10``).
    """
    return nn.Sequential(
        *_conv3x3(channels),
        *_conv3x3(channels),
        *_conv3x3(channels),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners),
        nn.ReLU(inplace=True),
        *_conv3x3(channels),
        nn.Conv2d(channels, num_prototypes, kernel_size=1),
        nn.ReLU(inplace=True),
    )


def _conv3x3(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True)

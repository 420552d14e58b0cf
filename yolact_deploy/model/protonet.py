"""Protonet: P3 to the prototype masks. Source: YOLACT (arXiv:1904.02689), section 3.1 and figure 3."""

from __future__ import annotations

from torch import nn

from yolact_deploy.config.layer_patterns import Pattern, channels_of
from yolact_deploy.model.pattern_net import make_net


def make_protonet(
    channels: int, num_prototypes: int, pattern: Pattern, *, align_corners: bool = False
) -> nn.Sequential:
    """A network [N, channels, h, w] to [N, num_prototypes, h * scale, w * scale], not negative.

    The positions in the sequence are the tensor names of the original (``proto_net.0`` to ``proto_net.10``).

    Args:
        pattern: the layers before the last convolution, see `layer_patterns`
        align_corners: of the upsampling
    """
    last = nn.Conv2d(channels_of(pattern, channels), num_prototypes, kernel_size=1)
    return nn.Sequential(*make_net(channels, pattern, align_corners=align_corners), last, nn.ReLU(inplace=True))

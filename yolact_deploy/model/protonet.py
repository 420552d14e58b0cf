"""Protonet: P3 to the prototype masks. Source: YOLACT (arXiv:1904.02689), section 3.1 and figure 3."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def make_protonet(
    channels: int, num_prototypes: int, layers: Sequence[tuple[int, int]] = (), *, align_corners: bool = False
) -> nn.Sequential:
    """A network [N, channels, h, w] to [N, num_prototypes, 2h, 2w], not negative; other ``layers``, another scale.

    The positions in the sequence are the tensor names of the original (``proto_net.0`` to ``proto_net.10``).

    Args:
        layers: before the last convolution, as in `YolactConfig`; a ReLU follows each
        align_corners: of the upsampling
    """
    if not layers:
        layers = ((channels, 3), (channels, 3), (channels, 3), (0, 2), (channels, 3))
    modules: list[nn.Module] = []
    for width, kernel in layers:
        if width and kernel < 0:
            modules.append(nn.ConvTranspose2d(channels, width, -kernel, stride=-kernel))
            channels = width
        elif width:
            modules.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2))
            channels = width
        else:
            modules.append(nn.Upsample(scale_factor=kernel, mode="bilinear", align_corners=align_corners))
        modules.append(nn.ReLU(inplace=True))
    last = nn.Conv2d(channels, num_prototypes, kernel_size=1)
    return nn.Sequential(*modules, last, nn.ReLU(inplace=True))

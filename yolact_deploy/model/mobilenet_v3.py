"""MobileNetV3-Large as a backbone: torchvision's blocks, cut at strides 8, 16 and 32.

Source: Searching for MobileNetV3 (arXiv:1905.02244), table 1, without its last 1x1 convolution.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large

#: first block of each stage in torchvision's `features`, and the end
STAGE_STARTS = (0, 2, 4, 7, 13, 16)


class MobileNetV3Backbone(nn.Module):
    """Image [N, 3, S, S] to C3, C4, C5 with 40, 112 and 160 channels at strides 8, 16 and 32.

    Blocks keep torchvision's numbers: ``features.4`` is ``layers.2.4``.
    """

    out_channels = (40, 112, 160)

    def __init__(self) -> None:
        super().__init__()
        features = mobilenet_v3_large(weights=None).features
        self.layers = nn.ModuleList(features[first:end] for first, end in itertools.pairwise(STAGE_STARTS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layers[1](self.layers[0](images))
        c3 = self.layers[2](x)
        c4 = self.layers[3](c3)
        return c3, c4, self.layers[4](c4)

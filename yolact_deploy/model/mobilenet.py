"""MobileNets as backbones: V2 (width 1.0) under YolactEdge's tensor names, and V3 (large), which no one published.

Both have torchvision's blocks. Sources: MobileNetV2 (arXiv:1801.04381), table 2; MobileNetV3 (arXiv:1905.02244), table
1; YolactEdge (arXiv:2012.12259).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

#: expansion, output channels, blocks and first stride of each stage
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class MobileNetBackbone(nn.Module):
    """Image [N, 3, S, S] to C3, C4, C5 with 32, 64 and 160 channels at strides 8, 16 and 32.

    As in YolactEdge, C4 comes before the 96-channel stage of the same stride. Its 320-channel stage feeds nothing: the
    weights exist because YolactEdge's files and its 8.6 M parameters include them, but are frozen and never run.
    """

    out_channels = (32, 64, 160)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Conv2dNormActivation(3, 32, stride=2, activation_layer=nn.ReLU6)])
        channels = 32
        for expansion, out_channels, blocks, stride in STAGES:
            self.layers.append(_stage(channels, out_channels, blocks, stride, expansion))
            channels = out_channels
        self.layers[-1].requires_grad_(False)  # distributed training refuses parameters without a gradient

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images
        for stage in self.layers[:3]:
            x = stage(x)
        c3 = self.layers[3](x)
        c4 = self.layers[4](c3)
        return c3, c4, self.layers[6](self.layers[5](c4))


#: blocks of each stage of MobileNetV3, the stem first
V3_STAGES = (1, 1, 2, 3, 4, 2, 3)


class MobileNetV3Backbone(nn.Module):
    """Image [N, 3, S, S] to C3, C4, C5 with 40, 112 and 160 channels at strides 8, 16 and 32.

    Without the last convolution of MobileNetV3, to 960 channels, which serves its classifier.
    """

    out_channels = (40, 112, 160)

    def __init__(self) -> None:
        super().__init__()
        blocks = iter(mobilenet_v3_large(weights=None).features)
        self.layers = nn.ModuleList(nn.Sequential(*(next(blocks) for _ in range(count))) for count in V3_STAGES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = images
        for stage in self.layers[:3]:
            x = stage(x)
        c3 = self.layers[3](x)
        c4 = self.layers[5](self.layers[4](c3))
        return c3, c4, self.layers[6](c4)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(in_channels, out_channels, stride, expansion)
    return nn.Sequential(
        first, *(InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(blocks - 1))
    )

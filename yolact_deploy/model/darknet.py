"""Darknet-53 as YOLACT's backbone. Source: YOLOv3 (arXiv:1804.02767), table 1."""

from __future__ import annotations

from torch import Tensor, nn

#: residual blocks in each of the five stages
STAGE_BLOCKS = (1, 2, 8, 8, 4)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.1, inplace=True),
    )


class DarknetBlock(nn.Module):
    """1x1 to half the channels, 3x3 back, plus the input; the activation comes before the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels // 2, kernel_size=1)
        self.conv2 = _conv(channels // 2, channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(self.conv1(x))
        return residual + x


class DarknetBackbone(nn.Module):
    """Image [N, 3, S, S] to C3, C4, C5 with 256, 512 and 1024 channels at strides 8, 16 and 32."""

    out_channels = (256, 512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels = 32
        for blocks in STAGE_BLOCKS:
            halve = _conv(channels, 2 * channels, kernel_size=3, stride=2)
            channels *= 2
            self.layers.append(nn.Sequential(halve, *(DarknetBlock(channels) for _ in range(blocks))))
        # After the stages, so that the state dict keeps the order of the original's files.
        self._preconv = _conv(3, 32, kernel_size=3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self._preconv(images)
        for stage in self.layers[:2]:
            x = stage(x)
        c3 = self.layers[2](x)
        c4 = self.layers[3](c3)
        return c3, c4, self.layers[4](c4)

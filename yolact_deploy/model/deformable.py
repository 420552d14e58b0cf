"""Modulated deformable convolution, as in the backbone of YOLACT++.

Source: Deformable ConvNets v2 (arXiv:1811.11168); YOLACT++ (arXiv:1912.06218), section 3.3.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import deform_conv2d

_TAPS = 9


class DeformableConv(nn.Conv2d):
    """A 3x3 convolution with padding 1 whose taps are moved and weighted for each output pixel.

    ``conv_offset_mask`` predicts 18 offsets (y and x of each tap in turn, in pixels) and 9 weights before sigmoid.
    Initialized with zeros, it is a plain convolution with all taps halved. It is a Conv2d because it has its weights.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=stride, padding=1)
        self.conv_offset_mask = nn.Conv2d(in_channels, 3 * _TAPS, kernel_size=3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, in, H, W] to [N, out, H / stride, W / stride]."""
        offset, weight = self.conv_offset_mask(x).split([2 * _TAPS, _TAPS], dim=1)
        return self.sample(x, offset, weight.sigmoid())

    def sample(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """The convolution with its taps moved by ``offset`` [N, 18, h, w] and weighted by ``mask`` [N, 9, h, w]."""
        output: Tensor = deform_conv2d(
            x, offset, self.weight, self.bias, stride=self.stride, padding=self.padding, mask=mask
        )
        return output

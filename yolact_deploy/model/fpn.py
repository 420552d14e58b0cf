"""Feature pyramid: C3, C4, C5 of the backbone to P3..P7.

Source: FPN (arXiv:1612.03144) with the changes of YOLACT (arXiv:1904.02689, section 3.4): no P2, and P6 and P7 by
strided convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu


class FeaturePyramid(nn.Module):
    """C3, C4, C5 to five maps [N, channels, h, w], largest first.

    The lateral and prediction modules are ordered deepest first (C5, C4, C3), as in the original's files.

    Args:
        in_channels: of C3, C4, C5
        relu: after the 3x3 convolutions of P3, P4, P5
        from_c5: compute P6 from C5 and not from P5
        extra_relu: after P6 and P7
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        *,
        relu: bool = True,
        from_c5: bool = False,
        extra_relu: bool = False,
    ) -> None:
        super().__init__()
        self.relu, self.from_c5, self.extra_relu = relu, from_c5, extra_relu
        self.lat_layers = nn.ModuleList(nn.Conv2d(c, channels, kernel_size=1) for c in reversed(in_channels))
        self.pred_layers = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        below = (in_channels[-1] if from_c5 else channels, channels)
        self.downsample_layers = nn.ModuleList(nn.Conv2d(c, channels, 3, stride=2, padding=1) for c in below)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, ...]:
        merged: list[Tensor] = [self.lat_layers[0](c5)]
        for lateral, feature in zip(list(self.lat_layers)[1:], (c4, c3), strict=True):
            # To the exact size: with odd sides, a factor of two would overshoot.
            above = interpolate(merged[-1], size=feature.shape[-2:], mode="bilinear", align_corners=False)
            merged.append(above + lateral(feature))
        levels = [predict(x) for predict, x in zip(self.pred_layers, merged, strict=True)]
        p5, p4, p3 = map(relu, levels) if self.relu else levels
        p6 = _halve(self.downsample_layers[0], c5 if self.from_c5 else p5)
        if self.extra_relu:
            p6 = relu(p6)
        p7 = _halve(self.downsample_layers[1], p6)
        return p3, p4, p5, p6, relu(p7) if self.extra_relu else p7


def _halve(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer, but in FP32 on one cell, where PyTorch on a CPU has random gradients in BF16 for a stride of 2."""
    if x.shape[-2:] == (1, 1) and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return layer(x.float())  # type: ignore[no-any-return]
    return layer(x)  # type: ignore[no-any-return]

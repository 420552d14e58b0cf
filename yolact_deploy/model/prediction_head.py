"""Prediction head shared by the five pyramid levels. Source: YOLACT (arXiv:1904.02689), section 3.2 and figure 4."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolact_deploy.config.layer_patterns import Pattern, channels_of, convolutions
from yolact_deploy.model.pattern_net import make_net


class PredictionHead(nn.Module):
    """One level [N, channels, h, w] to box regression, class logits and mask coefficients of its h * w * A priors.

    Returns ``loc [N, hwA, 4]``, ``logits [N, hwA, num_scores]`` (background first) and ``coeff [N, hwA, K]`` in -1..1.

    Args:
        pattern: layers that the branches share, of the same size as their input (see `layer_patterns`)
        branches: 3x3 convolutions of each branch (boxes, classes, coefficients) before its last one
    """

    def __init__(
        self,
        channels: int,
        anchors: int,
        num_scores: int,
        num_prototypes: int,
        pattern: Pattern,
        branches: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__()
        self.upfeature = make_net(channels, pattern)
        channels = channels_of(pattern, channels)
        self.bbox_layer = nn.Conv2d(channels, anchors * 4, kernel_size=3, padding=1)
        self.conf_layer = nn.Conv2d(channels, anchors * num_scores, kernel_size=3, padding=1)
        self.mask_layer = nn.Conv2d(channels, anchors * num_prototypes, kernel_size=3, padding=1)
        self.bbox_extra, self.conf_extra, self.mask_extra = (
            make_net(channels, convolutions(count, channels)) for count in branches
        )
        self.anchors = anchors

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.upfeature(feature)
        loc = self._per_prior(self.bbox_layer(self.bbox_extra(x)))
        logits = self._per_prior(self.conf_layer(self.conf_extra(x)))
        return loc, logits, torch.tanh(self._per_prior(self.mask_layer(self.mask_extra(x))))

    def _per_prior(self, x: Tensor) -> Tensor:
        """[N, A * V, h, w] to [N, hwA, V]; only the batch is dynamic, so an exported graph has constant shapes."""
        _, values, height, width = x.shape
        return x.permute(0, 2, 3, 1).reshape(-1, height * width * self.anchors, values // self.anchors)

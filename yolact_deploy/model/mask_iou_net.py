"""The network that predicts the quality of a mask from the mask alone (YOLACT++, arXiv:1912.06218, section 3.4)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.functional import pad

from yolact_deploy.mask_iou import SMALLEST_SIDE

CHANNELS = (1, 8, 16, 32, 64, 128)


class MaskIouNet(nn.Module):
    """Cropped masks at prototype resolution, probabilities [m, 1, h, w], to IoUs [m, C], one per possible class.

    Predicts the IoU with the object's true mask. Masks with a side under 63 pixels, which the original cannot process,
    are padded with zeros on the right and below.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(CHANNELS):
            layers += [nn.Conv2d(narrow, wide, kernel_size=3, stride=2), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(CHANNELS[-1], num_classes, kernel_size=1), nn.ReLU(inplace=True)]
        self.maskiou_net = nn.Sequential(*layers)  # in a module of the same name: the tensor names of the original

    def forward(self, masks: Tensor) -> Tensor:
        missing = [max(SMALLEST_SIDE - side, 0) for side in masks.shape[2:]]
        if any(missing):
            masks = pad(masks, (0, missing[1], 0, missing[0]))
        iou: Tensor = self.maskiou_net(masks).amax(dim=(2, 3))
        return iou

"""ResNets as YOLACT's backbone: torchvision's blocks under the original's tensor names.

Source: Deep Residual Learning (arXiv:1512.03385), with the stride on the 3x3 convolution as torchvision has it. Blocks
with deformable convolutions: YOLACT++ (arXiv:1912.06218), section 3.3. The original has ResNet-50 and ResNet-101.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from yolact_deploy.model.deformable import DeformableConv

#: blocks in the stages that end in C2, C3, C4 and C5
STAGE_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
#: those with blocks of two 3x3 convolutions, which keep the channels
BASIC = ("resnet18", "resnet34")


class ResNetBackbone(nn.Module):
    """Image [N, 3, S, S] to C3, C4, C5 at strides 8, 16 and 32, with the channels of ``out_channels``.

    Args:
        stage_blocks: blocks of each stage
        deformable_blocks: how many of the last blocks of each stage may be deformable, as in `YolactConfig`
        interval: of those, only blocks whose number within the stage (from 0) is a multiple of this are deformable
        basic: blocks of two 3x3 convolutions instead of bottlenecks; they are never deformable
    """

    def __init__(
        self,
        stage_blocks: Sequence[int],
        deformable_blocks: Sequence[int] = (0, 0, 0, 0),
        interval: int = 1,
        *,
        basic: bool = False,
    ) -> None:
        super().__init__()
        kind: type[BasicBlock | Bottleneck] = BasicBlock if basic else Bottleneck
        #: of C3, C4 and C5
        self.out_channels = (128 * kind.expansion, 256 * kind.expansion, 512 * kind.expansion)
        # The stages come before the stem, so that the state dict keeps the order of the original's files.
        self.layers = nn.ModuleList()
        channels = 64
        for stage, blocks in enumerate(stage_blocks):
            planes = 64 * 2**stage
            layer = _stage(kind, channels, planes, blocks, stride=1 if stage == 0 else 2)
            for number, block in enumerate(layer):
                if number >= blocks - deformable_blocks[stage] and number % interval == 0:
                    assert isinstance(block, Bottleneck)
                    block.conv2 = DeformableConv(planes, planes, block.stride)
            self.layers.append(layer)
            channels = planes * kind.expansion
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c2 = self.layers[0](x)
        c3 = self.layers[1](c2)
        c4 = self.layers[2](c3)
        return c3, c4, self.layers[3](c4)


def _stage(
    kind: type[BasicBlock | Bottleneck], in_channels: int, planes: int, blocks: int, stride: int
) -> nn.Sequential:
    """A sequence of blocks; the first one changes the size and the channels."""
    out_channels = planes * kind.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = kind(in_channels, planes, stride, downsample=shortcut)
    return nn.Sequential(first, *(kind(out_channels, planes) for _ in range(blocks - 1)))

"""A small RepVGG (Ding et al., 2021, https://arxiv.org/abs/2101.03697) for 1x32x32 grey images.

While it trains, every block is three branches, each with its own batch normalization:

    y = ReLU(BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x))        the last one where shapes allow it

All three are linear, so one 3x3 convolution with a bias computes the same. ``deploy`` finds that
in the graph; this file does nothing to help it.
"""

import torch
from torch import nn

CLASSES = 10
IMAGE_SIZE = 32


class RepVGGBlock(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        keeps_shape = inputs == outputs and stride == 1
        self.bn_identity = nn.BatchNorm2d(inputs) if keeps_shape else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.bn3(self.conv3(x)) + self.bn1(self.conv1(x))
        if self.bn_identity is not None:
            total = total + self.bn_identity(x)
        return torch.relu(total)


class RepVGGDigits(nn.Module):
    """[N, 1, 32, 32] float32 in 0..1 -> logits [N, 10]."""

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 96, 128),
        blocks: tuple[int, ...] = (1, 3, 4, 2),
        strides: tuple[int, ...] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        channels = 1
        stages = []
        for width, count, stride in zip(widths, blocks, strides, strict=True):
            stage = []
            for index in range(count):
                stage.append(RepVGGBlock(channels, width, stride if index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(images).mean(dim=(2, 3))
        return self.head(features)

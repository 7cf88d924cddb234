"""Small networks that several test files share; seeded, with batch norms far from the identity."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Calls `function(self, x)` over named submodules."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self._function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        return self._function(self, x)


def randomize_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics far from 0 and 1, and gammas negative and near zero."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            continue
        if child.running_mean is not None and child.running_var is not None:
            child.running_mean.copy_(torch.randn(child.num_features, generator=generator))
            child.running_var.copy_(torch.rand(child.num_features, generator=generator) * 3 + 0.2)
        if child.affine:
            with torch.no_grad():
                child.weight.copy_(torch.randn(child.num_features, generator=generator))
                child.weight[0] = 1e-3
                child.bias.copy_(torch.randn(child.num_features, generator=generator))
    return module


class Bottleneck(nn.Module):
    """The residual block of ResNet-50: 1x1, 3x3, 1x1, and a projection where shapes differ."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class BottleneckNet(nn.Module):
    """A ResNet of bottleneck blocks; ``(3, 4, 6, 3)`` at width 64 has ResNet-50's size."""

    def __init__(self, depths: tuple[int, ...] = (1, 1), width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        stages, inputs = [], width
        for index, depth in enumerate(depths):
            inner = width * 2**index
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inputs, inner, 4 * inner, 2 if index and not block else 1))
                inputs = 4 * inner
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


def bottleneck_net(
    depths: tuple[int, ...] = (1, 1), width: int = 8, classes: int = 10, seed: int = 0
) -> BottleneckNet:
    """A seeded `BottleneckNet` in eval mode; its norms are randomized without blowing up."""
    torch.manual_seed(seed)
    net = BottleneckNet(depths, width, classes)
    randomize_norms(net, seed)
    for block in net.modules():
        if isinstance(block, Bottleneck):
            block.bn3.weight.data.mul_(0.3)
    return net.eval()


class Returning(nn.Module):
    """Returns what `make` makes of its two inputs."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.make(x, y)


class KeywordOnly(nn.Module):
    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        return x * mask


class Anchored(nn.Module):
    """A detector that keeps the anchors of the last size: ``[N, 3, H, W]`` → ``[N, H * W]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.shape: object = None
        self.anchors: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.shape != y.shape:
            self.anchors, self.shape = torch.arange(y.shape[2] * y.shape[3]) + 0.5, y.shape
        return y.flatten(1) * self.anchors

    def exact(self, x: Tensor) -> Tensor:
        """The answer, whatever is kept."""
        return self.conv(x).flatten(1) * (torch.arange(x.shape[2] * x.shape[3]) + 0.5)

"""Blocks that are trained with branches and deployed as one convolution, built as their authors do.

Each block also knows its deploy form: `Block.deploy` computes it by the formulas of its paper, in
float64, from the block's tensors alone. It is the oracle for what merging may leave behind.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


class Kernel(NamedTuple):
    """A convolution's tensors in float64: ``(out, in / groups, height, width)`` and ``(out,)``."""

    weight: Tensor
    bias: Tensor

    def __add__(self, other: object) -> "Kernel":
        """The sum of two branches with kernels of one size."""
        assert isinstance(other, Kernel)
        return Kernel(self.weight + other.weight, self.bias + other.bias)

    def embed(self, size: int) -> "Kernel":
        """The same map with a kernel of ``size`` x ``size``, zero around the middle."""
        height, width = self.weight.shape[2:]
        vertical, horizontal = (size - height) // 2, (size - width) // 2
        sides = (horizontal, horizontal, vertical, vertical)
        return Kernel(F.pad(self.weight, sides), self.bias)

    def dilate(self, dilation: int) -> "Kernel":
        """The same map undilated: ``dilation - 1`` zeros between the taps."""
        height, width = (dilation * (size - 1) + 1 for size in self.weight.shape[2:])
        spread = self.weight.new_zeros(*self.weight.shape[:2], height, width)
        spread[:, :, ::dilation, ::dilation] = self.weight
        return Kernel(spread, self.bias)

    def norm(self, norm: nn.BatchNorm2d) -> "Kernel":
        """This and then the norm."""
        scale, shift = scale_and_shift(norm)
        return Kernel(self.weight * scale.reshape(-1, 1, 1, 1), self.bias * scale + shift)

    def scale(self, factors: Tensor | float) -> "Kernel":
        """This times a number, or one for each output channel."""
        factors = torch.as_tensor(factors, dtype=torch.float64).flatten()
        return Kernel(self.weight * factors.reshape(-1, 1, 1, 1), self.bias * factors)

    def after(self, first: "Kernel", groups: int) -> "Kernel":
        """`first`, which is 1x1 in as many groups, and then this."""
        parts = zip(self.weight.chunk(groups), first.weight.flatten(1).chunk(groups), strict=True)
        weight = torch.cat([torch.einsum("omhw,mi->oihw", part, inner) for part, inner in parts])
        sums = self.weight.sum((2, 3)).chunk(groups)
        biases = zip(sums, first.bias.chunk(groups), strict=True)
        return Kernel(weight, self.bias + torch.cat([part @ bias for part, bias in biases]))


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A norm in inference as ``y = x * scale + shift``, float64."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    scale = norm.weight.detach().double() / deviation
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def read(conv: nn.Conv2d) -> Kernel:
    """The kernel of a layer."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    return Kernel(weight, bias)


def fold(branch: nn.Sequential) -> Kernel:
    """The kernel of a convolution and its norm."""
    return read(branch[0]).norm(branch[1])


def identity(channels: int, groups: int) -> Kernel:
    """The 1x1 kernel that changes nothing."""
    width = channels // groups
    weight = torch.zeros(channels, width, 1, 1, dtype=torch.float64)
    weight[torch.arange(channels), torch.arange(channels) % width] = 1
    return Kernel(weight, torch.zeros(channels, dtype=torch.float64))


def average(channels: int, groups: int, size: int) -> Kernel:
    """The kernel of an average pool that counts its padding."""
    weight = identity(channels, groups).weight.expand(-1, -1, size, size) / size**2
    return Kernel(weight, torch.zeros(channels, dtype=torch.float64))


def conv_norm(
    inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias that keeps the size but for its stride, and its norm."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(side // 2 for side in sides)
    conv = nn.Conv2d(inputs, outputs, sides, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def make_conv(kernel: Kernel, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """The float64 convolution of a kernel, padded by half of it."""
    outputs, width, height, breadth = kernel.weight.shape
    padding = (height // 2, breadth // 2)
    conv = nn.Conv2d(
        width * groups, outputs, (height, breadth), stride, padding, groups=groups
    ).double()
    conv.weight.data.copy_(kernel.weight)
    conv.bias.data.copy_(kernel.bias)
    return conv


class Block(nn.Module):
    """Branches from one input, summed, and an activation."""

    stride: int = 1
    groups: int = 1

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.act = act or nn.Identity()

    def branches(self, x: Tensor) -> Tensor:
        """What stands before the activation."""
        raise NotImplementedError

    def merge(self) -> Kernel:
        """The one kernel that equals `branches`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branches(x))

    def deploy(self) -> nn.Module:
        """What the authors deploy, in float64."""
        return nn.Sequential(make_conv(self.merge(), self.stride, self.groups), self.act)


class RepVgg(Block):
    """3x3, 1x1 and identity, a norm in each. Ding et al., CVPR 2021."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__(nn.ReLU() if act else None)
        self.stride, self.groups = stride, groups
        self.rbr_dense = conv_norm(inputs, outputs, 3, stride, groups)
        self.rbr_1x1 = conv_norm(inputs, outputs, 1, stride, groups)
        same = inputs == outputs and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inputs) if same else None

    def branches(self, x: Tensor) -> Tensor:
        kept = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.rbr_dense(x) + self.rbr_1x1(x) + kept

    def merge(self) -> Kernel:
        kernel = fold(self.rbr_dense) + fold(self.rbr_1x1).embed(3)
        if self.rbr_identity is not None:
            channels = self.rbr_identity.num_features
            kernel += identity(channels, self.groups).norm(self.rbr_identity).embed(3)
        return kernel


class RepConv(RepVgg):
    """RepVGG's branches as YOLOv7 has them: SiLU, and norms with a large epsilon."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, stride)
        self.act = nn.SiLU()
        for child in self.modules():
            if isinstance(child, nn.BatchNorm2d):
                child.eps = 1e-3


class QaRepVgg(Block):
    """A norm in the 3x3 branch and one behind the sum alone; V2 adds an average pool.

    Chu et al., AAAI 2024.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, groups: int = 1, average: bool = False
    ) -> None:
        super().__init__(nn.ReLU())
        self.stride, self.groups = stride, groups
        self.rbr_dense = conv_norm(inputs, outputs, 3, stride, groups)
        self.rbr_1x1 = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)
        same = inputs == outputs and stride == 1
        self.rbr_identity = nn.Identity() if same else None
        self.rbr_avg = nn.AvgPool2d(3, stride, 1) if same and average else None
        self.bn = nn.BatchNorm2d(outputs)

    def branches(self, x: Tensor) -> Tensor:
        kept = 0 if self.rbr_identity is None else self.rbr_identity(x)
        mean = 0 if self.rbr_avg is None else self.rbr_avg(x)
        return self.bn(self.rbr_dense(x) + self.rbr_1x1(x) + kept + mean)

    def merge(self) -> Kernel:
        kernel = fold(self.rbr_dense) + read(self.rbr_1x1).embed(3)
        channels = self.rbr_1x1.in_channels
        if self.rbr_identity is not None:
            kernel += identity(channels, self.groups).embed(3)
        if self.rbr_avg is not None:
            kernel += average(channels, self.groups, 3)
        return kernel.norm(self.bn)


class AcBlock(Block):
    """3x3, 1x3 and 3x1, a norm in each. Ding et al., ICCV 2019."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(nn.ReLU())
        self.stride, self.groups = stride, groups
        self.square = conv_norm(inputs, outputs, 3, stride, groups)
        self.ver = conv_norm(inputs, outputs, (3, 1), stride, groups)
        self.hor = conv_norm(inputs, outputs, (1, 3), stride, groups)

    def branches(self, x: Tensor) -> Tensor:
        return self.square(x) + self.ver(x) + self.hor(x)

    def merge(self) -> Kernel:
        return fold(self.square) + fold(self.ver).embed(3) + fold(self.hor).embed(3)


class NormAndPad(nn.Module):
    """A norm, then a border of what the norm makes of zero, so that a k x k may follow unpadded."""

    def __init__(self, channels: int, pad: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        if self.pad > 0:
            deviation = torch.sqrt(self.bn.running_var + self.bn.eps)
            border = self.bn.bias.detach() - self.bn.running_mean * self.bn.weight / deviation
            border = border.view(1, -1, 1, 1)
            y = F.pad(y, [self.pad] * 4)
            y[:, :, 0 : self.pad, :] = border
            y[:, :, -self.pad :, :] = border
            y[:, :, :, 0 : self.pad] = border
            y[:, :, :, -self.pad :] = border
        return y


class IdentityBased1x1(nn.Module):
    """A 1x1 convolution whose weight is learned beside the identity; the latter is no buffer."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.id_tensor = identity(channels, groups).weight.float()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight + self.id_tensor.type_as(self.conv.weight)
        return F.conv2d(x, weight, None, groups=self.conv.groups)

    def read(self) -> Kernel:
        """Its kernel."""
        weight = self.conv.weight.detach().double() + self.id_tensor.double()
        return Kernel(weight, weight.new_zeros(len(weight)))


class DiverseBranch(Block):
    """k x k; 1x1; 1x1 and k x k; 1x1 and average pool. Ding et al., CVPR 2021.

    A depthwise block has no 1x1 alone, none before its pool, and twice the width between.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(nn.ReLU())
        self.stride, self.groups, self.kernel = stride, groups, kernel
        dense, pad = groups < outputs, kernel // 2
        self.dbb_origin = conv_norm(inputs, outputs, kernel, stride, groups)
        self.dbb_1x1 = conv_norm(inputs, outputs, 1, stride, groups) if dense else None
        self.dbb_avg = nn.Sequential()
        if dense:
            pointwise = nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)
            self.dbb_avg.add_module("conv", pointwise)
            self.dbb_avg.add_module("bn", NormAndPad(outputs, pad))
        pool = nn.AvgPool2d(kernel, stride, 0 if dense else pad)
        self.dbb_avg.add_module("avg", pool)
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(outputs))
        width = inputs if dense else 2 * inputs
        first: nn.Module = IdentityBased1x1(inputs, groups)
        if width != inputs:
            first = nn.Conv2d(inputs, width, 1, groups=groups, bias=False)
        second = nn.Conv2d(width, outputs, kernel, stride, groups=groups, bias=False)
        self.dbb_1x1_kxk = nn.Sequential(
            first, NormAndPad(width, pad), second, nn.BatchNorm2d(outputs)
        )

    def branches(self, x: Tensor) -> Tensor:
        y = self.dbb_origin(x)
        if self.dbb_1x1 is not None:
            y += self.dbb_1x1(x)
        y += self.dbb_avg(x)
        y += self.dbb_1x1_kxk(x)
        return y

    def merge(self) -> Kernel:
        kernel = fold(self.dbb_origin)
        pool = average(self.dbb_avg.avgbn.num_features, self.groups, self.kernel)
        if self.dbb_1x1 is not None:
            kernel += fold(self.dbb_1x1).embed(self.kernel)
            first = read(self.dbb_avg.conv).norm(self.dbb_avg.bn.bn)
            pool = pool.after(first, self.groups)
        first, pad, second, norm = self.dbb_1x1_kxk
        inner = first.read() if isinstance(first, IdentityBased1x1) else read(first)
        sequence = read(second).after(inner.norm(pad.bn), self.groups).norm(norm)
        return kernel + pool.norm(self.dbb_avg.avgbn) + sequence


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image says of them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.size()
        y = F.avg_pool2d(x, kernel_size=[height, width])
        y = torch.sigmoid(self.expand(F.relu(self.reduce(y))))
        return x * y.view(-1, channels, 1, 1)


class MobileOne(Block):
    """Several k x k, a 1x1 where k is larger, and identity, a norm in each.

    Vasu et al., CVPR 2023.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        *,
        count: int = 3,
        scale: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__(nn.ReLU() if act else None)
        self.stride, self.groups, self.kernel = stride, groups, kernel
        same = inputs == outputs and stride == 1
        self.rbr_skip = nn.BatchNorm2d(inputs) if same else None
        self.rbr_conv = nn.ModuleList(
            conv_norm(inputs, outputs, kernel, stride, groups) for _ in range(count)
        )
        has_scale = scale and kernel > 1
        self.rbr_scale = conv_norm(inputs, outputs, 1, stride, groups) if has_scale else None

    def branches(self, x: Tensor) -> Tensor:
        kept = 0 if self.rbr_skip is None else self.rbr_skip(x)
        y = (0 if self.rbr_scale is None else self.rbr_scale(x)) + kept
        for branch in self.rbr_conv:
            y += branch(x)
        return y

    def merge(self) -> Kernel:
        kernels = [fold(branch) for branch in self.rbr_conv]
        if self.rbr_scale is not None:
            kernels.append(fold(self.rbr_scale).embed(self.kernel))
        if self.rbr_skip is not None:
            kept = identity(self.rbr_skip.num_features, self.groups).norm(self.rbr_skip)
            kernels.append(kept.embed(self.kernel))
        return sum(kernels[1:], start=kernels[0])


class GatedMobileOne(MobileOne):
    """MobileOne's block with a squeeze-excite between the branches and the activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, groups=channels)
        self.se = SqueezeExcite(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.branches(x)))

    def deploy(self) -> nn.Module:
        conv = make_conv(self.merge(), self.stride, self.groups)
        gate = SqueezeExcite(conv.out_channels, self.se.reduce.out_channels)
        gate.load_state_dict(self.se.state_dict())
        return nn.Sequential(conv, gate, self.act).double()


class RepMixer(Block):
    """``x + gamma * (mixer(x) - norm(x))``, depthwise. FastViT: Vasu et al., ICCV 2023."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.groups = channels
        options = {"groups": channels, "act": False}
        self.norm = MobileOne(channels, channels, kernel, count=0, scale=False, **options)
        self.mixer = MobileOne(channels, channels, kernel, count=1, **options)
        self.layer_scale = nn.Parameter(torch.randn(channels, 1, 1))

    def branches(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))

    def merge(self) -> Kernel:
        difference = self.mixer.merge() + self.norm.merge().scale(-1.0)
        kept = identity(self.groups, self.groups).embed(self.mixer.kernel)
        return kept + difference.scale(self.layer_scale.detach().double())


class RepVitMixer(Block):
    """``bn(bn(dw3x3(x)) + dw1x1(x) + x)``. RepViT: Wang et al., CVPR 2024."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = channels
        self.conv = conv_norm(channels, channels, 3, groups=channels)
        self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def branches(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)

    def merge(self) -> Kernel:
        kernel = fold(self.conv) + read(self.conv1).embed(3)
        return (kernel + identity(self.groups, self.groups).embed(3)).norm(self.bn)


class RepGhost(Block):
    """A 1x1 convolution, and behind it a depthwise one beside a norm. Chen et al., 2022."""

    def __init__(self, inputs: int, outputs: int, relu: bool = True) -> None:
        super().__init__(nn.ReLU() if relu else None)
        self.primary = conv_norm(inputs, outputs, 1)
        self.primary.append(nn.ReLU() if relu else nn.Sequential())
        self.cheap_operation = conv_norm(outputs, outputs, 3, groups=outputs)
        self.fusion_bn = nn.BatchNorm2d(outputs)

    def branches(self, x: Tensor) -> Tensor:
        y = self.primary(x)
        return self.cheap_operation(y) + self.fusion_bn(y)

    def deploy(self) -> nn.Module:
        channels = self.fusion_bn.num_features
        kept = identity(channels, channels).norm(self.fusion_bn).embed(3)
        return nn.Sequential(
            make_conv(fold(self.primary)),
            self.primary[2],
            make_conv(fold(self.cheap_operation) + kept, groups=channels),
            self.act,
        )


class RepLk(Block):
    """A large and a small depthwise kernel. RepLKNet: Ding et al., CVPR 2022."""

    def __init__(self, channels: int, large: int = 13, small: int = 5, stride: int = 1) -> None:
        super().__init__(nn.ReLU())
        self.stride, self.groups, self.large = stride, channels, large
        self.lkb_origin = conv_norm(channels, channels, large, stride, channels)
        self.small_conv = conv_norm(channels, channels, small, stride, channels)

    def branches(self, x: Tensor) -> Tensor:
        y = self.lkb_origin(x)
        y += self.small_conv(x)
        return y

    def merge(self) -> Kernel:
        return fold(self.lkb_origin) + fold(self.small_conv).embed(self.large)


class UniRepLk(Block):
    """A large depthwise kernel, dilated small ones beside it, and a norm behind the sum.

    UniRepLKNet: Ding et al., CVPR 2024. The kernels and dilations are those of its 13x13 block.
    """

    SMALL = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))

    def __init__(self, channels: int, large: int = 13) -> None:
        super().__init__()
        self.groups, self.large = channels, large
        options = {"groups": channels, "bias": False}
        self.lk_origin = nn.Conv2d(channels, channels, large, padding=large // 2, **options)
        self.origin_bn = nn.BatchNorm2d(channels)
        for size, dilation in self.SMALL:
            padding = dilation * (size - 1) // 2
            conv = nn.Conv2d(
                channels, channels, size, padding=padding, dilation=dilation, **options
            )
            self.add_module(f"dil_conv_k{size}_{dilation}", conv)
            self.add_module(f"dil_bn_k{size}_{dilation}", nn.BatchNorm2d(channels))
        self.norm = nn.BatchNorm2d(channels)

    def branches(self, x: Tensor) -> Tensor:
        y = self.origin_bn(self.lk_origin(x))
        for size, dilation in self.SMALL:
            conv = getattr(self, f"dil_conv_k{size}_{dilation}")
            y = y + getattr(self, f"dil_bn_k{size}_{dilation}")(conv(x))
        return self.norm(y)

    def merge(self) -> Kernel:
        kernel = read(self.lk_origin).norm(self.origin_bn)
        for size, dilation in self.SMALL:
            conv = read(getattr(self, f"dil_conv_k{size}_{dilation}"))
            branch = conv.norm(getattr(self, f"dil_bn_k{size}_{dilation}"))
            kernel += branch.dilate(dilation).embed(self.large)
        return kernel.norm(self.norm)


class NestedRepVgg(Block):
    """A RepVGG block whose 3x3 is a Diverse Branch Block, and its 1x1 a MobileOne block."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.ReLU())
        self.dense = nn.Sequential(DiverseBranch(channels, channels), nn.BatchNorm2d(channels))
        self.dense[0].act = nn.Identity()
        self.point = MobileOne(channels, channels, 1, act=False)
        self.kept = nn.BatchNorm2d(channels)

    def branches(self, x: Tensor) -> Tensor:
        return self.dense(x) + self.point(x) + self.kept(x)

    def merge(self) -> Kernel:
        kept = identity(self.kept.num_features, 1).norm(self.kept)
        dense = self.dense[0].merge().norm(self.dense[1])
        return dense + (self.point.merge() + kept).embed(3)


class SumOfRepVgg(Block):
    """RepVGG blocks side by side, without activations, and a norm behind their sum."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__(nn.ReLU())
        self.blocks = nn.ModuleList(RepVgg(channels, channels, act=False) for _ in range(count))
        self.norm = nn.BatchNorm2d(channels)

    def branches(self, x: Tensor) -> Tensor:
        return self.norm(sum(block(x) for block in self.blocks))

    def merge(self) -> Kernel:
        kernels = [block.merge() for block in self.blocks]
        return sum(kernels[1:], start=kernels[0]).norm(self.norm)


@dataclass(frozen=True)
class Family:
    """A block and what its authors deploy.

    Attributes:
        make: the training block, not yet seeded; see `build`.
        shape: of one input, without the batch axis; odd sizes, so that no border is even.
        convolutions: how many the deploy form has.
        parameters: of their weights and biases.
    """

    make: Callable[[], Block]
    shape: tuple[int, int, int]
    convolutions: int
    parameters: int


FAMILIES: dict[str, Family] = {
    "RepVGG": Family(lambda: RepVgg(8, 8), (8, 11, 9), 1, 8 * 8 * 9 + 8),
    "RepVGG, stride 2": Family(lambda: RepVgg(8, 12, 2), (8, 11, 9), 1, 12 * 8 * 9 + 12),
    "RepVGG, no identity": Family(lambda: RepVgg(5, 7), (5, 7, 13), 1, 7 * 5 * 9 + 7),
    "RepVGG, 2 groups": Family(lambda: RepVgg(12, 12, 1, 2), (12, 9, 9), 1, 12 * 6 * 9 + 12),
    "RepVGG, 4 groups, stride 2": Family(
        lambda: RepVgg(12, 20, 2, 4), (12, 9, 11), 1, 20 * 3 * 9 + 20
    ),
    "QARepVGG": Family(lambda: QaRepVgg(8, 8), (8, 11, 9), 1, 8 * 8 * 9 + 8),
    "QARepVGG, stride 2": Family(lambda: QaRepVgg(6, 10, 2), (6, 9, 7), 1, 10 * 6 * 9 + 10),
    "QARepVGG, 4 groups": Family(lambda: QaRepVgg(12, 12, 1, 4), (12, 9, 7), 1, 12 * 3 * 9 + 12),
    "QARepVGG V2": Family(lambda: QaRepVgg(9, 9, average=True), (9, 9, 11), 1, 9 * 9 * 9 + 9),
    "ACNet": Family(lambda: AcBlock(6, 8), (6, 9, 11), 1, 8 * 6 * 9 + 8),
    "ACNet, stride 2": Family(lambda: AcBlock(8, 12, 2), (8, 11, 9), 1, 12 * 8 * 9 + 12),
    "ACNet, 2 groups": Family(lambda: AcBlock(8, 12, 1, 2), (8, 9, 9), 1, 12 * 4 * 9 + 12),
    "DBB": Family(lambda: DiverseBranch(8, 8), (8, 11, 9), 1, 8 * 8 * 9 + 8),
    "DBB, 5x5": Family(lambda: DiverseBranch(5, 7, 5), (5, 11, 9), 1, 7 * 5 * 25 + 7),
    "DBB, stride 2": Family(lambda: DiverseBranch(8, 12, 3, 2), (8, 11, 9), 1, 12 * 8 * 9 + 12),
    "DBB, 2 groups": Family(lambda: DiverseBranch(8, 8, 3, 1, 2), (8, 9, 9), 1, 8 * 4 * 9 + 8),
    "DBB, depthwise": Family(lambda: DiverseBranch(6, 6, 3, 1, 6), (6, 9, 11), 1, 6 * 9 + 6),
    "DBB, depthwise, stride 2": Family(
        lambda: DiverseBranch(6, 6, 5, 2, 6), (6, 11, 13), 1, 6 * 25 + 6
    ),
    "MobileOne": Family(lambda: MobileOne(8, 8), (8, 9, 11), 1, 8 * 8 * 9 + 8),
    "MobileOne, stride 2": Family(lambda: MobileOne(3, 12, 3, 2), (3, 11, 9), 1, 12 * 3 * 9 + 12),
    "MobileOne, 1x1": Family(lambda: MobileOne(12, 12, 1), (12, 7, 9), 1, 12 * 12 + 12),
    "MobileOne, depthwise": Family(
        lambda: MobileOne(12, 12, groups=12), (12, 9, 7), 1, 12 * 9 + 12
    ),
    "MobileOne, depthwise, stride 2": Family(
        lambda: MobileOne(10, 10, 3, 2, 10), (10, 9, 7), 1, 10 * 9 + 10
    ),
    "MobileOne, gated": Family(
        lambda: GatedMobileOne(8), (8, 9, 7), 3, (8 * 9 + 8) + (5 * 8 + 5) + (8 * 5 + 8)
    ),
    "RepMixer": Family(lambda: RepMixer(12), (12, 9, 11), 1, 12 * 9 + 12),
    "RepMixer, 7x7": Family(lambda: RepMixer(7, 7), (7, 11, 9), 1, 7 * 49 + 7),
    "RepViT": Family(lambda: RepVitMixer(12), (12, 11, 9), 1, 12 * 9 + 12),
    "RepGhost": Family(lambda: RepGhost(6, 10), (6, 9, 9), 2, (10 * 6 + 10) + (10 * 9 + 10)),
    "RepGhost, linear": Family(
        lambda: RepGhost(8, 12, relu=False), (8, 9, 7), 2, (12 * 8 + 12) + (12 * 9 + 12)
    ),
    "RepLKNet": Family(lambda: RepLk(8), (8, 17, 15), 1, 8 * 169 + 8),
    "RepLKNet, stride 2": Family(lambda: RepLk(6, 7, 3, stride=2), (6, 15, 13), 1, 6 * 49 + 6),
    "UniRepLKNet": Family(lambda: UniRepLk(8), (8, 15, 17), 1, 8 * 169 + 8),
    "RepConv": Family(lambda: RepConv(8, 8), (8, 9, 11), 1, 8 * 8 * 9 + 8),
    "RepConv, stride 2": Family(lambda: RepConv(8, 12, 2), (8, 9, 11), 1, 12 * 8 * 9 + 12),
    "RepVGG of DBB and MobileOne": Family(lambda: NestedRepVgg(6), (6, 9, 11), 1, 6 * 6 * 9 + 6),
    "sum of RepVGG blocks": Family(lambda: SumOfRepVgg(8, 3), (8, 9, 7), 1, 8 * 8 * 9 + 8),
}


def build(name: str, seed: int = 0) -> Block:
    """The seeded training block of a family in eval mode, its norms far from the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = FAMILIES[name].make()
    return randomize_far(block, seed).eval()


def randomize_far(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm means up to 10 and variances from 0.01 to 30.

    Gammas have both signs, and some are near zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            continue
        size = child.num_features
        if child.running_mean is not None and child.running_var is not None:
            child.running_mean.copy_(torch.rand(size, generator=generator) * 20 - 10)
            child.running_var.copy_(0.01 * 3000 ** torch.rand(size, generator=generator))
        if child.affine:
            with torch.no_grad():
                child.weight.copy_(2 * torch.randn(size, generator=generator))
                child.weight[:2] = torch.tensor([1e-4, -1e-4])[:size]
                child.bias.copy_(5 * torch.randn(size, generator=generator))
    return module


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a graph."""

    operator: str
    weight: Tensor
    bias: Tensor | None

    @property
    def parameters(self) -> int:
        """Numbers that it stores."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())


def find_layers(module: fx.GraphModule) -> list[Layer]:
    """The convolutions and linear layers of a graph, in its order."""
    layers = []
    for node in module.graph.nodes:
        name = name_operator(node)
        if name is not None and (name.startswith("conv") or name == "linear"):
            weight, bias = (*node.args, None)[1:3]
            tensors = [
                None if item is None else _read_stored(module, item) for item in (weight, bias)
            ]
            layers.append(Layer(name, *tensors))
    return layers


def count_operators(module: fx.GraphModule) -> dict[str, int]:
    """How often a graph calls each aten operator; an in-place one counts as its plain twin."""
    counts: dict[str, int] = {}
    for node in module.graph.nodes:
        name = name_operator(node)
        if name is not None and not name.startswith("sym_"):
            counts[name] = counts.get(name, 0) + 1
    return counts


def name_operator(node: fx.Node) -> str | None:
    """``conv2d`` for ``aten.conv2d.default``; None for what is no aten call."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    return node.target._schema.name.partition("::")[2].rstrip("_")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def _read_stored(module: fx.GraphModule, node: fx.Node) -> Tensor:
    assert node.op == "get_attr", f"{node} is computed"
    tensor: Tensor = operator.attrgetter(node.target)(module)
    return tensor

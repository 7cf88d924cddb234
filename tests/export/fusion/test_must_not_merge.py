"""What must not merge does not, and says why; what looks alike and may merge does."""

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from families import RepVgg, build, count_operators, find_layers, randomize_far, relative_error
from nets import Net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from export import fuse
from export.fusion import FusionResult
from export.fusion.paths import ROOT

LIMIT = 1e-5
NOISE_FACTOR = 4
NOISE_FLOOR = 1e-6
COST = r"\bMACs?\b|multipl|would not pay|grow"


class Scaled(nn.Module):
    """A layer, and a learned factor for each output channel."""

    def __init__(self, layer: nn.Module, *shape: int) -> None:
        super().__init__()
        self.layer = layer
        self.gamma = nn.Parameter(torch.randn(*shape))


@dataclass(frozen=True)
class Case:
    """A network, and what is to be left of it.

    Attributes:
        make: the network, in train mode, not seeded.
        operators: how often the result calls what; operators that are not named do not matter.
        reason: what some skip must say, as a regular expression; "" where nothing need be said.
        shape: of one input, without the batch axis.
    """

    make: Callable[[], nn.Module]
    operators: dict[str, int]
    reason: str = ""
    shape: tuple[int, ...] = (4, 7, 9)
    training: tuple[str, ...] = field(default=())


def prepare(case: Case, seed: int = 0) -> nn.Module:
    """The seeded network in eval mode, but for what the case wants in training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = randomize_far(case.make(), seed).eval()
    for path in case.training:
        net.get_submodule(path).train()
    return net


def fuse_case(
    case: Case, *, merge_always: bool = False, batch: int = 2
) -> tuple[nn.Module, FusionResult]:
    net = prepare(case)
    return net, fuse(net, torch.randn(batch, *case.shape), merge_always=merge_always)


def assert_same_function(net: nn.Module, module: nn.Module, shape: tuple[int, ...]) -> None:
    """The oracle is the original in float64; inputs are copied, for some networks change them."""
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = copy.deepcopy(net).double()(x.double())
            noise = relative_error(copy.deepcopy(net)(x.clone()), expected)
            error = relative_error(module(x.clone()), expected)
        assert error < LIMIT
        assert error <= max(NOISE_FACTOR * noise, NOISE_FLOOR)


def assert_operators(result: FusionResult, expected: dict[str, int]) -> None:
    counts = count_operators(result.module)
    assert {name: counts.get(name, 0) for name in expected} == expected


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, **options)


def conv_bn(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, kernel, **options), nn.BatchNorm2d(outputs))


def two(a: nn.Module, b: nn.Module) -> nn.Module:
    return Net(lambda m, x: m.a(x) + m.b(x), a=a, b=b)


def used_elsewhere(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.maximum(y + m.b(x), torch.tanh(y))


def squeeze_excite(m: nn.Module, x: Tensor) -> Tensor:
    gate = torch.sigmoid(m.expand(torch.relu(m.reduce(x.mean((2, 3), keepdim=True)))))
    return m.a(x) * gate + m.b(x)


def change_source(m: nn.Module, x: Tensor) -> Tensor:
    source = m.stem(x)
    y = m.a(source)
    source.relu_()
    return y + m.b(source)


def change_input(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    x.relu_()
    return y + m.b(x)


def hooked(hook: Callable[[Tensor], Tensor]) -> nn.Module:
    net = two(conv(), conv())
    net.a.register_forward_hook(lambda module, args, result: hook(result))
    return net


def spatial_constant(m: nn.Module, x: Tensor) -> Tensor:
    return (m.a(x) + m.layer.gamma) * 2 + m.b(x)


def pad_modes(first: str, second: str) -> Case:
    """Two branches that pad differently."""
    make = functools.partial(lambda: two(conv_bn(padding_mode=first), conv_bn(padding_mode=second)))
    return Case(make, {"conv2d": 2, "batch_norm": 0}, f"pad|border|{first}|{second}")


MUST_NOT = {
    "value used elsewhere, and would be computed twice": Case(
        lambda: Net(used_elsewhere, a=conv_bn(), b=conv_bn(kernel=1)),
        {"conv2d": 2, "batch_norm": 0, "tanh": 1},
        rf"elsewhere|{COST}",
    ),
    "different strides": Case(
        lambda: two(conv_bn(stride=2), conv_bn(kernel=4, padding=0)),
        {"conv2d": 2, "batch_norm": 0, "add": 1},
        "stride",
        (4, 7, 7),
    ),
    "stride of an identity": Case(
        lambda: Net(lambda m, x: m.a(x) + x, a=conv_bn(stride=2)),
        {"conv2d": 1, "add": 1},
        "stride|size|shape|broadcast",
        (4, 1, 1),
    ),
    "output broadcast over positions": Case(
        lambda: two(conv_bn(), conv_bn(kernel=7, padding=0)),
        {"conv2d": 2, "batch_norm": 0, "add": 1},
        "size|shape|broadcast",
        (4, 7, 7),
    ),
    "reflect and zeros": pad_modes("reflect", "zeros"),
    "circular and zeros": pad_modes("circular", "zeros"),
    "zeros and replicate": pad_modes("zeros", "replicate"),
    "circular and reflect": pad_modes("circular", "reflect"),
    "norm in training mode": Case(
        lambda: RepVgg(4, 4),
        {"conv2d": 2, "batch_norm": 3},
        "training mode",
        training=("rbr_dense.1", "rbr_1x1.1", "rbr_identity"),
    ),
    "one norm in training mode": Case(
        lambda: two(conv_bn(), conv_bn(kernel=1)),
        {"conv2d": 2, "batch_norm": 1},
        "training mode",
        training=("b.1",),
    ),
    "norm behind the sum in training mode": Case(
        lambda: Net(lambda m, x: m.bn(m.a(x) + x), a=conv_bn(), bn=nn.BatchNorm2d(4)),
        {"conv2d": 1, "batch_norm": 1},
        "training mode",
        training=("bn",),
    ),
    "norm without running statistics": Case(
        lambda: two(conv_bn(), nn.Sequential(conv(), nn.BatchNorm2d(4, track_running_stats=False))),
        {"conv2d": 2, "batch_norm": 1},
        "running statistics",
    ),
    "squeeze-excite on one branch": Case(
        lambda: Net(
            squeeze_excite, a=conv_bn(), b=conv_bn(), reduce=conv(4, 2, 1), expand=conv(2, 4, 1)
        ),
        {"conv2d": 4, "batch_norm": 0, "sigmoid": 1, "mul": 1},
        "data|computed|non-?linear",
    ),
    "product of two branches": Case(
        lambda: Net(lambda m, x: m.a(x) * m.b(x), a=conv_bn(), b=conv_bn()),
        {"conv2d": 2, "batch_norm": 0, "mul": 1},
        "data|computed|non-?linear|product",
    ),
    "non-linearity in one branch": Case(
        lambda: Net(lambda m, x: m.a(x).relu() + m.b(x), a=conv_bn(), b=conv_bn()),
        {"conv2d": 2, "batch_norm": 0, "relu": 1, "add": 1},
        "non-?linear",
    ),
    "non-linearity in a sequence": Case(
        lambda: nn.Sequential(conv(4, 8, 1, bias=False), nn.GELU(), conv(8, 4)),
        {"conv2d": 2, "gelu": 1},
    ),
    "maximum pool as a branch": Case(
        lambda: two(conv_bn(), nn.MaxPool2d(3, 1, 1)),
        {"conv2d": 1, "max_pool2d": 1, "add": 1},
        "non-?linear|pool",
    ),
    "branches of different inputs": Case(
        lambda: Net(lambda m, x: m.a(x) + m.b(torch.tanh(x)), a=conv_bn(), b=conv_bn()),
        {"conv2d": 2, "batch_norm": 0, "tanh": 1, "add": 1},
        "non-?linear|different inputs|source",
    ),
    "norm before a padded convolution": Case(
        lambda: nn.Sequential(nn.BatchNorm2d(4), conv()),
        {"conv2d": 1, "batch_norm": 1},
        "border|pad|before",
    ),
    "bias before a padded convolution": Case(
        lambda: nn.Sequential(conv(4, 8, 1), conv(8, 4)),
        {"conv2d": 2},
        "border|bias",
    ),
    "norm between, before a padded convolution": Case(
        lambda: nn.Sequential(*conv_bn(4, 8, 1, bias=False), *conv_bn(8, 4)),
        {"conv2d": 2, "batch_norm": 0},
        "border|bias|pad",
    ),
    "padded convolution before a padded one": Case(
        lambda: nn.Sequential(conv(4, 16, groups=2, bias=False), conv(16, 2, kernel=5, bias=False)),
        {"conv2d": 2},
        "border|pad",
        (4, 9, 7),
    ),
    "padding with another value": Case(
        lambda: two(conv_bn(), nn.Sequential(nn.ConstantPad2d(1, 0.5), *conv_bn(padding=0))),
        {"conv2d": 2, "batch_norm": 0},
        "pad|border|zero",
    ),
    "hook with a non-linearity": Case(
        lambda: hooked(torch.relu), {"conv2d": 2, "relu": 1, "add": 1}, "non-?linear"
    ),
    "source changed in place between the branches": Case(
        lambda: Net(change_source, stem=conv_bn(), a=conv_bn(), b=conv_bn()),
        {"conv2d": 3, "batch_norm": 0, "relu": 1, "add": 1},
        "in.place|changed|non-?linear",
    ),
    "input changed in place between the branches": Case(
        lambda: Net(change_input, a=conv_bn(), b=conv_bn()),
        {"conv2d": 2, "batch_norm": 0, "add": 1},
        "in.place|changed|non-?linear",
    ),
    "average pool that leaves out its padding": Case(
        lambda: two(conv_bn(), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        {"conv2d": 1, "avg_pool2d": 1, "add": 1},
        "pool|count_include_pad|padding",
    ),
    "average pool of a cut last window": Case(
        lambda: two(conv_bn(stride=2), nn.AvgPool2d(3, 2, ceil_mode=True)),
        {"conv2d": 1, "avg_pool2d": 1, "add": 1},
        "pool|ceil|window",
        (4, 8, 8),
    ),
    "resize in one branch": Case(
        lambda: two(
            conv_bn(stride=2),
            nn.Sequential(nn.MaxPool2d(4), nn.Upsample(scale_factor=2, mode="bilinear")),
        ),
        {"conv2d": 1, "add": 1},
        r"a resize \(upsample_bilinear2d\) stands between",
        (4, 8, 8),
    ),
    "global average pool in one branch": Case(
        lambda: two(conv_bn(), nn.AdaptiveAvgPool2d(1)),
        {"conv2d": 1, "add": 1},
        "size|shape|broadcast|pool|non-?linear",
    ),
    "constant that differs by position": Case(
        lambda: Net(
            spatial_constant, layer=Scaled(nn.Identity(), 1, 4, 7, 9), a=conv_bn(), b=conv_bn()
        ),
        {"conv2d": 2, "batch_norm": 0},
        "position|spatial|space|constant",
    ),
    "linear layers with a non-linearity between": Case(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
        {"linear": 2, "relu": 1},
        shape=(8,),
    ),
    "linear layers on different axes": Case(
        lambda: Net(
            lambda m, x: m.b(m.a(x).transpose(1, 2)).transpose(1, 2) + m.a(x),
            a=nn.Linear(5, 5),
            b=nn.Linear(6, 6),
        ),
        {"linear": 3},
        "",
        (6, 5),
    ),
}
"""Cases of which the merge would be wrong, or is not one."""

DECLINED = {
    "1x1 bottleneck": Case(
        lambda: nn.Sequential(conv(8, 2, 1), conv(2, 8, 1)), {"conv2d": 2}, COST, (8, 7, 9)
    ),
    "1x1 bottleneck before a 3x3": Case(
        lambda: nn.Sequential(conv(8, 2, 1, bias=False), conv(2, 8)),
        {"conv2d": 2},
        COST,
        (8, 7, 9),
    ),
    "kernels that need a larger one": Case(
        lambda: two(conv_bn(dilation=3, padding=3), conv_bn(dilation=2, padding=2)),
        {"conv2d": 2, "batch_norm": 0, "add": 1},
        COST,
        (4, 9, 11),
    ),
    "dilated beside dense": Case(
        lambda: two(conv_bn(dilation=2, padding=2), conv_bn()),
        {"conv2d": 2, "batch_norm": 0, "add": 1},
        COST,
        (4, 9, 11),
    ),
    "depthwise and pointwise": Case(
        lambda: nn.Sequential(*conv_bn(8, 8, groups=8), *conv_bn(8, 12, 1)),
        {"conv2d": 2, "batch_norm": 0},
        COST,
        (8, 7, 9),
    ),
    "concatenation of different kernels": Case(
        lambda: Net(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv(), b=conv(4, 8, 1)),
        {"conv2d": 2, "cat": 1},
        COST,
    ),
    "linear bottleneck": Case(
        lambda: nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), {"linear": 2}, COST, (8,)
    ),
}
"""Cases that would be exact and cost more; ``merge_always`` merges each into one layer."""


def scaled(m: nn.Module, x: Tensor) -> Tensor:
    return m.gamma.reshape(-1, 1, 1) * m.layer(x)


def add_in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y += m.b(x)
    y += m.c(x)
    return y.relu_()


def split_and_sum(m: nn.Module, x: Tensor) -> Tensor:
    first, second = m.a(x).chunk(2, 1)
    return torch.relu(first - second)


def convolve_parts(m: nn.Module, x: Tensor) -> Tensor:
    first, second = x.split([4, 2], 1)
    return torch.relu(m.a(first) + m.b(second))


def convolve_groups(m: nn.Module, x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([m.a(first), m.b(second)], 1)


def share(m: nn.Module, x: Tensor) -> Tensor:
    return m.first(m.a(x)) + m.second(m.a(torch.relu(x))) + m.a(torch.tanh(x))


def normalized(*parts: nn.Module) -> nn.Module:
    """A RepVGG block whose 3x3 weight is parametrized."""
    block = RepVgg(4, 4)
    (parametrize,) = parts
    parametrize(block.rbr_dense[0])
    return block


def lora(m: nn.Module, x: Tensor) -> Tensor:
    return m.whole(x) + 0.25 * m.up(m.down(x))


def heads(m: nn.Module, x: Tensor) -> Tensor:
    return (m.a(x) + m.b(x)) / 2


ONE = {"conv2d": 1, "batch_norm": 0, "add": 0, "sub": 0, "mul": 0, "cat": 0, "div": 0}
ONE_LINEAR = {"linear": 1, "batch_norm": 0, "add": 0, "mul": 0, "div": 0}

MERGES = {
    "value used elsewhere, which survives beside the merged one": Case(
        lambda: Net(
            lambda m, x: (y := m.a(x)) + m.b(x) + m.c(x) + torch.tanh(y),
            a=conv_bn(),
            b=conv_bn(),
            c=conv_bn(),
        ),
        {"conv2d": 2, "batch_norm": 0, "add": 1, "tanh": 1},
    ),
    "in-place sum": Case(
        lambda: Net(add_in_place, a=conv_bn(), b=conv_bn(kernel=1), c=nn.BatchNorm2d(4)),
        {**ONE, "relu": 1},
    ),
    "dropout in evaluation": Case(
        lambda: two(
            nn.Sequential(conv(bias=False), nn.Dropout2d(), nn.BatchNorm2d(4)),
            nn.Sequential(conv_bn(kernel=1), nn.Dropout(0.9)),
        ),
        {**ONE, "dropout": 0, "feature_dropout": 0},
    ),
    "layer called twice on one value": Case(
        lambda: Net(lambda m, x: m.a(x) + m.a(x) + x, a=conv_bn()), ONE
    ),
    "layer called on different values": Case(
        lambda: Net(share, a=conv(), first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)),
        {"conv2d": 3, "batch_norm": 0},
    ),
    "block called twice": Case(
        lambda: Net(lambda m, x: m.a(m.a(x)), a=RepVgg(4, 4)),
        {"conv2d": 2, "batch_norm": 0, "add": 0, "relu": 2},
    ),
    "tied weights": Case(
        lambda: Net(lambda m, x: m.b(torch.relu(m.a(x))), a=(block := RepVgg(4, 4)), b=tie(block)),
        {"conv2d": 2, "batch_norm": 0, "add": 0, "relu": 3},
    ),
    "weight norm": Case(lambda: normalized(parametrizations.weight_norm), {**ONE, "relu": 1}),
    "spectral norm": Case(lambda: normalized(parametrizations.spectral_norm), {**ONE, "relu": 1}),
    "hook that scales": Case(lambda: hooked(lambda y: 3 * y - 1), ONE),
    "norm before an unpadded convolution": Case(
        lambda: nn.Sequential(nn.BatchNorm2d(4), conv(padding=0)), ONE
    ),
    "scale before a padded convolution": Case(
        lambda: Net(lambda m, x: m.a(x * m.scale.gamma), a=conv(), scale=Scaled(conv(), 4, 1, 1)),
        ONE,
    ),
    "1x1 before a padded convolution": Case(
        lambda: nn.Sequential(conv(4, 8, 1, bias=False), conv(8, 4)), ONE
    ),
    "padded convolutions of which the second reads nothing past the first": Case(
        lambda: nn.Sequential(
            conv(4, 16, kernel=2, stride=2, padding=1, bias=False), conv(16, 2, bias=False)
        ),
        ONE,
        shape=(4, 9, 7),
    ),
    "unpadded convolutions": Case(
        lambda: nn.Sequential(conv(4, 16, padding=0), conv(16, 2, 2, padding=0)), ONE
    ),
    "average pool behind a convolution": Case(
        lambda: nn.Sequential(conv(4, 8, 1), nn.AvgPool2d(2)),
        {**ONE, "avg_pool2d": 0},
    ),
    "concatenation on one input": Case(
        lambda: Net(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv_bn(), b=conv_bn(outputs=6)),
        ONE,
    ),
    "difference of two halves of the output": Case(
        lambda: Net(split_and_sum, a=conv_bn(4, 8)),
        {**ONE, "relu": 1, "chunk": 0},
    ),
    "convolutions of parts of the input": Case(
        lambda: Net(convolve_parts, a=conv_bn(4, 6), b=conv_bn(2, 6)),
        {**ONE, "relu": 1},
        shape=(6, 7, 9),
    ),
    "convolutions of halves of the input": Case(
        lambda: Net(convolve_groups, a=conv_bn(4, 6), b=conv_bn(4, 6)),
        {**ONE, "chunk": 0},
        shape=(8, 7, 9),
    ),
    "layer scale": Case(lambda: Net(lambda m, x: scaled(m.a, x), a=Scaled(conv_bn(), 4)), ONE),
    "layer scale and residual": Case(
        lambda: Net(lambda m, x: x + scaled(m.a, x), a=Scaled(conv_bn(), 4)), ONE
    ),
    "layer scale of a linear layer": Case(
        lambda: Net(lambda m, x: m.a.gamma * m.a.layer(x), a=Scaled(nn.Linear(5, 7), 7)),
        ONE_LINEAR,
        shape=(6, 5),
    ),
    "shrinking linear layers": Case(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), ONE_LINEAR, shape=(8,)
    ),
    "low-rank adapter": Case(
        lambda: Net(
            lora,
            whole=nn.Linear(8, 12),
            down=nn.Linear(8, 2, bias=False),
            up=nn.Linear(2, 12, bias=False),
        ),
        ONE_LINEAR,
        shape=(5, 8),
    ),
    "norm behind a linear layer": Case(
        lambda: nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12)), ONE_LINEAR, shape=(8,)
    ),
    "norm before a linear layer": Case(
        lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 12)), ONE_LINEAR, shape=(8,)
    ),
    "averaged heads": Case(
        lambda: Net(heads, a=nn.Linear(8, 5), b=nn.Linear(8, 5)), ONE_LINEAR, shape=(8,)
    ),
    "averaged heads with norms": Case(
        lambda: Net(
            heads,
            a=nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5)),
            b=nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5)),
        ),
        ONE_LINEAR,
        shape=(8,),
    ),
    "linear layers on a sequence": Case(
        lambda: Net(lambda m, x: m.a(x) - m.b(x) + x, a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
        {**ONE_LINEAR, "sub": 0},
        shape=(5, 8),
    ),
    "linear layers on images with channels last": Case(
        lambda: nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)), ONE_LINEAR, shape=(4, 5, 6)
    ),
}
"""Look-alikes that are exact and pay."""


def tie(block: RepVgg) -> RepVgg:
    """Another block with the tensors of `block`, and norms of its own."""
    twin = copy.deepcopy(block)
    twin.rbr_dense[0].weight = block.rbr_dense[0].weight
    twin.rbr_1x1[0].weight = block.rbr_1x1[0].weight
    return twin


def pad_one_side(m: nn.Module, x: Tensor) -> Tensor:
    return m.a(F.pad(x, (0, 1, 0, 1))) + m.b(x)


def double_source(m: nn.Module, x: Tensor) -> Tensor:
    source = m.stem(x)
    y = m.a(source)
    source.mul_(2)
    return y + m.b(source)


def add_to_source(m: nn.Module, x: Tensor) -> Tensor:
    source = m.stem(x)
    source += m.a(source)
    return source + m.b(source)


def write_part(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 1:3] = m.b(x)[:, :2]
    return y + m.b(x)


def write_row(m: nn.Module, x: Tensor) -> Tensor:
    y = F.pad(m.a(x), [1] * 4)
    y[:, :, 0] = 1.5
    return m.c(y) + m.b(x)


INTACT = {
    "branch of one channel broadcast over all": lambda: two(conv_bn(), conv_bn(4, 1)),
    "sum of transposed convolutions": lambda: two(
        nn.ConvTranspose2d(4, 4, 3, 2), nn.ConvTranspose2d(4, 4, 3, 2)
    ),
    "crops": lambda: Net(
        lambda m, x: m.a(x)[:, :, 1:-1, 1:-1] + m.b(x[:, :, 1:-1, 1:-1]),
        a=conv_bn(),
        b=conv_bn(),
    ),
    "crop, unpadded": lambda: Net(
        lambda m, x: m.a(x) + m.b(x[:, :, 1:-1]), a=conv(padding=0), b=conv(padding=(1, 0))
    ),
    "picked positions": lambda: Net(
        lambda m, x: m.a(x)[:, :, ::2, 1::2] + m.b(x[:, :, ::2, 1::2]), a=conv(), b=conv()
    ),
    "flip": lambda: Net(lambda m, x: m.a(x) + m.b(x.flip(2)).flip(2), a=conv(), b=conv()),
    "roll": lambda: Net(lambda m, x: m.a(x) + m.b(x.roll(1, 3)), a=conv(), b=conv()),
    "flipped channels": lambda: Net(lambda m, x: m.a(x) + m.b(x.flip(1)), a=conv(), b=conv()),
    "part of the channels": lambda: Net(
        lambda m, x: torch.cat([m.a(x[:, :2]), x[:, 2:]], 1), a=conv_bn(2, 2)
    ),
    "shuffled channels": lambda: Net(
        lambda m, x: m.b(F.channel_shuffle(m.a(x), 2)), a=conv(4, 8, 1), b=conv(8, 4, 1)
    ),
    "padding of one side": lambda: Net(pad_one_side, a=conv(padding=0, kernel=2), b=conv()),
    "crop by negative padding": lambda: Net(
        lambda m, x: m.a(F.pad(x, (-1, -1, -1, -1))) + m.b(x), a=conv(), b=conv(padding=0)
    ),
    "equal reflection": lambda: two(
        conv_bn(padding_mode="reflect"), conv_bn(padding_mode="reflect")
    ),
    "average pool with a divisor": lambda: two(
        conv_bn(), nn.AvgPool2d(3, 1, 1, divisor_override=5)
    ),
    "average pool whose windows all fit": lambda: two(
        conv_bn(stride=2, padding=0), nn.AvgPool2d(3, 2, ceil_mode=True)
    ),
    "average pool with uneven windows": lambda: two(
        nn.Conv2d(4, 4, (3, 2), (2, 1), (0, 1)),
        nn.AvgPool2d((3, 2), (2, 1), (0, 1)),
    ),
    "even kernel of the same size": lambda: two(conv(kernel=4, padding="same"), conv()),
    "source doubled in place": lambda: Net(double_source, stem=conv(), a=conv(), b=conv()),
    "sum written into the source": lambda: Net(add_to_source, stem=conv(), a=conv(), b=conv()),
    "channels written in place": lambda: Net(write_part, a=conv(), b=conv()),
    "row of the border written": lambda: Net(write_row, a=conv(), b=conv(), c=conv(padding=0)),
    "weight of zeros": lambda: two(silence(conv()), conv_bn()),
    "gamma of zero": lambda: Net(lambda m, x: m.b(m.a(x)), a=silence(nn.BatchNorm2d(4)), b=conv()),
    "difference of one layer with itself": lambda: Net(
        lambda m, x: m.a(x) - m.a(x) + m.b(x), a=conv(), b=conv()
    ),
    "sum with a number": lambda: Net(lambda m, x: 2 - m.a(x) / 3 + (-m.b(x)), a=conv(), b=conv()),
    "sum with a factor": lambda: Net(
        lambda m, x: torch.add(m.a(x), m.b(x), alpha=-2), a=conv(), b=conv()
    ),
    "number divided by a branch": lambda: Net(
        lambda m, x: m.b(x) + 1 / (4 + torch.tanh(m.a(x))), a=conv(), b=conv()
    ),
    "sum over the batch": lambda: Net(
        lambda m, x: m.a(x) + m.b(x.mean(0, keepdim=True)), a=conv(), b=conv()
    ),
    "stacked branches": lambda: Net(
        lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), a=conv(), b=conv()
    ),
    "convolution with padding and then a crop of it": lambda: nn.Sequential(
        conv(4, 8, bias=False), nn.ZeroPad2d(-1), conv(8, 2, bias=False, padding=0)
    ),
    "pixel shuffle between": lambda: nn.Sequential(
        conv(4, 16), nn.PixelShuffle(2), conv(4, 4, 2, stride=2, padding=0)
    ),
    "linear layer on the width": lambda: Net(
        lambda m, x: m.a(x) + m.b(x), a=nn.Linear(9, 9), b=conv()
    ),
    "norm of the other axis": lambda: Net(
        lambda m, x: m.bn(m.a(x).flatten(2)), a=nn.Linear(9, 9), bn=nn.BatchNorm1d(4)
    ),
}
"""Whether these merge is not said; what they compute stays."""


def silence(module: nn.Module) -> nn.Module:
    nn.init.zeros_(module.weight)
    return module


@pytest.mark.parametrize("name", MUST_NOT)
def test_what_cannot_merge_is_left_with_its_reason(name):
    case = MUST_NOT[name]
    net, result = fuse_case(case)
    assert_operators(result, case.operators)
    assert_same_function(net, result.module, case.shape)
    reasons = [skip.reason for skip in result.skipped]
    assert not case.reason or any(re.search(case.reason, r, re.IGNORECASE) for r in reasons)
    paths = {path or ROOT for path, _ in net.named_modules()}
    assert all(part in paths for skip in result.skipped for part in skip.where.split(", "))


@pytest.mark.parametrize("name", MUST_NOT)
def test_what_cannot_merge_is_left_even_if_cost_is_no_matter(name):
    """What is refused for its cost alone is another matter."""
    case = MUST_NOT[name]
    if COST in case.reason:
        case = Case(case.make, {}, "", case.shape, case.training)
    net, result = fuse_case(case, merge_always=True)
    assert_operators(result, case.operators)
    assert_same_function(net, result.module, case.shape)


@pytest.mark.parametrize("name", DECLINED)
def test_merge_that_costs_more_is_declined(name):
    case = DECLINED[name]
    net, result = fuse_case(case)
    assert_operators(result, case.operators)
    assert_same_function(net, result.module, case.shape)
    assert any(re.search(case.reason, skip.reason) for skip in result.skipped)


@pytest.mark.parametrize("name", DECLINED)
def test_merge_that_costs_more_is_done_on_demand(name):
    case = DECLINED[name]
    net, result = fuse_case(case, merge_always=True)
    assert len(find_layers(result.module)) == 1
    assert_operators(result, {"batch_norm": 0, "add": 0, "cat": 0})
    assert_same_function(net, result.module, case.shape)
    assert any(item.macs_after > item.macs_before for item in result.fused)


def test_declined_merge_states_both_costs():
    _, result = fuse_case(DECLINED["1x1 bottleneck"])
    (skip,) = result.skipped
    positions = 7 * 9
    digits = re.sub(r"(?<=\d)[,_ ](?=\d)", "", skip.reason)
    assert str(2 * 8 * 2 * positions) in digits
    assert str(8 * 8 * positions) in digits


@pytest.mark.parametrize("name", MERGES)
def test_look_alike_merges(name):
    case = MERGES[name]
    net, result = fuse_case(case)
    assert_operators(result, case.operators)
    assert_same_function(net, result.module, case.shape)
    assert all(item.macs_after <= item.macs_before for item in result.fused)


@pytest.mark.parametrize("name", INTACT)
def test_function_is_kept_whatever_is_done(name):
    case = Case(INTACT[name], {})
    net, result = fuse_case(case, merge_always=True)
    assert_same_function(net, result.module, case.shape)


def test_dropout_in_training_is_left():
    net = prepare(
        Case(
            lambda: two(nn.Sequential(conv_bn(), nn.Dropout()), conv_bn(kernel=1)),
            {},
            training=("a.1",),
        )
    )
    x = torch.randn(3, 4, 7, 9)
    result = fuse(net, x)
    assert_operators(result, {"conv2d": 2, "batch_norm": 0, "dropout": 1, "add": 1})
    assert any(re.search("dropout|random|training", skip.reason) for skip in result.skipped)
    torch.manual_seed(1)
    expected = net(x)
    torch.manual_seed(1)
    assert relative_error(result.module(x), expected) < LIMIT


def test_norm_in_training_goes_on_learning():
    net = prepare(MUST_NOT["norm in training mode"])
    x = torch.randn(3, 4, 7, 9)
    before = net.rbr_identity.running_mean.clone()
    module = fuse(net, x).module
    assert torch.equal(net.rbr_identity.running_mean, before)
    module(x)
    net(x)
    buffers = dict(module.named_buffers())
    learned = [value for name, value in buffers.items() if name.endswith("identity.running_mean")]
    assert len(learned) == 1
    torch.testing.assert_close(learned[0], net.rbr_identity.running_mean)


def test_input_is_changed_in_place_as_before():
    net = prepare(MUST_NOT["input changed in place between the branches"])
    x = torch.randn(3, 4, 7, 9)
    module = fuse(net, x.clone()).module
    expected, found = x.clone(), x.clone()
    net(expected)
    module(found)
    assert torch.equal(found, expected)


def test_callers_input_is_not_changed_by_fusing():
    net = prepare(MUST_NOT["input changed in place between the branches"])
    x = torch.randn(3, 4, 7, 9)
    before = x.clone()
    fuse(net, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["layer called on different values", "block called twice"])
def test_shared_module_stays_right_when_trained_apart(name):
    """Every site has tensors of its own, or the same ones; the caller's model keeps its own."""
    net, result = fuse_case(MERGES[name])
    state = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for parameter in result.module.parameters():
            parameter.zero_()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_parametrized_weight_is_materialized():
    net, result = fuse_case(MERGES["weight norm"])
    assert count_operators(result.module) == {"conv2d": 1, "relu": 1}
    assert not any("parametrizations" in name for name in result.module.state_dict())
    assert hasattr(net.rbr_dense[0], "parametrizations")


def test_squeeze_excite_inside_a_block_keeps_its_gate():
    block = build("MobileOne, gated")
    result = fuse(block, torch.randn(2, 8, 9, 7))
    assert count_operators(result.module)["mul"] == 1
    assert_same_function(block, result.module, (8, 9, 7))


def test_both_outputs_survive():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv_bn(), conv_bn(), conv_bn()

        def forward(self, x):
            y = self.a(x)
            return y, torch.relu(y + self.b(x) + self.c(x))

    net = randomize_far(Both()).eval()
    x = torch.randn(3, 4, 7, 9)
    result = fuse(net, x)
    assert len(find_layers(result.module)) == 2
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double())
        for found, wanted in zip(result.module(x), expected, strict=True):
            assert relative_error(found, wanted) < LIMIT

"""Steps over ``(N, C, *sizes)`` with one to three sizes: signals, images, volumes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from random_networks.drawing import (
    RESIDUALS,
    Branches,
    Call,
    Constant,
    Draw,
    Residual,
    randomize,
)

Shape = tuple[int, ...]
Propose = Callable[[Draw, Shape], nn.Module]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def read_rank(shape: Shape) -> int:
    return len(shape) - 2


def conv(draw: Draw, shape: Shape, outputs: int = 0, **fixed: object) -> nn.Module:
    """A convolution of any kernel, stride, dilation, groups and padding."""
    rank, inputs = read_rank(shape), shape[1]
    outputs = outputs or draw.channels()
    kernel = tuple(draw.pick(1, 2, 3, 3, 3, 4, 5) for _ in range(rank))
    if draw.chance(0.6):
        kernel = kernel[:1] * rank
    dilation = draw.pick(1, 1, 1, 2)
    stride = draw.pick(1, 1, 1, 2)
    mode = draw.pick("zeros", "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    padding: object = tuple(draw.pick(dilation * (k - 1) // 2, 0, 1, k - 1) for k in kernel)
    if draw.chance(0.6):
        padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    if stride == 1 and draw.chance(0.2):
        padding = "same"
    options = {
        "stride": stride,
        "dilation": dilation,
        "padding": padding,
        "padding_mode": mode,
        "groups": draw.divisor(inputs, outputs) if draw.chance(0.3) else 1,
        "bias": draw.chance(0.6),
    }
    return CONVS[rank - 1](inputs, outputs, fixed.pop("kernel", kernel), **(options | fixed))


def same_conv(draw: Draw, shape: Shape, outputs: int = 0) -> nn.Module:
    """A convolution that keeps the sizes."""
    outputs = outputs or shape[1]
    kernel, dilation = draw.pick(1, 3, 3, 5), draw.pick(1, 1, 2)
    groups = draw.pick(1, 1, math.gcd(shape[1], outputs), draw.divisor(shape[1], outputs))
    return conv(
        draw,
        shape,
        outputs,
        kernel=kernel,
        dilation=dilation,
        stride=1,
        padding=dilation * (kernel - 1) // 2,
        groups=groups,
    )


def transposed(draw: Draw, shape: Shape) -> nn.Module:
    """A transposed convolution."""
    layer = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[read_rank(shape) - 1]
    outputs, stride = draw.channels(), draw.pick(1, 2, 2)
    return layer(
        shape[1],
        outputs,
        draw.pick(2, 3, 4),
        stride,
        padding=draw.pick(0, 1),
        output_padding=stride - 1 if draw.chance(0.3) else 0,
        groups=draw.divisor(shape[1], outputs) if draw.chance(0.3) else 1,
        bias=draw.chance(),
        dilation=draw.pick(1, 1, 2),
    )


def weight_norm(draw: Draw, shape: Shape) -> nn.Module:
    """A layer whose weight is computed."""
    if draw.chance(0.3):
        return parametrizations.spectral_norm(same_conv(draw, shape))
    return parametrizations.weight_norm(same_conv(draw, shape), dim=draw.pick(0, 1))


def norm(draw: Draw, shape: Shape) -> nn.Module:
    """A norm with statistics far from the identity."""
    channels, rank = shape[1], read_rank(shape)
    instance = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1]
    batch = BATCH_NORMS[rank - 1]
    layer: nn.Module = draw.pick(
        lambda: batch(channels),
        lambda: batch(channels),
        lambda: batch(channels),
        lambda: batch(channels, affine=False),
        lambda: batch(channels, eps=1e-3),
        lambda: nn.GroupNorm(draw.divisor(channels), channels),
        lambda: nn.GroupNorm(1, channels, affine=False),
        lambda: instance(channels, affine=draw.chance()),
        lambda: instance(channels, affine=True, track_running_stats=True),
        lambda: nn.LocalResponseNorm(draw.pick(2, 3, 5), alpha=0.1, beta=0.7, k=1.5),
        lambda: nn.LayerNorm(shape[1:]),
        lambda: Call(
            "LayerNorm over channels",
            lambda x, layer: layer(x.movedim(1, -1)).movedim(-1, 1),
            nn.LayerNorm(channels),
        ),
        lambda: Call("F.normalize over channels", lambda x: F.normalize(x, dim=1)),
    )()
    return randomize(layer)


def conv_norm(draw: Draw, shape: Shape) -> nn.Module:
    """What fuses: a layer, its norm and an activation."""
    layer = draw.pick(conv, conv, same_conv, transposed)(draw, shape)
    outputs = layer.out_channels
    parts = [layer, randomize(BATCH_NORMS[read_rank(shape) - 1](outputs)), activation(draw, shape)]
    if draw.chance(0.15):
        parts[0], parts[1] = randomize(BATCH_NORMS[read_rank(shape) - 1](shape[1])), layer
    if draw.chance(0.1):
        parts.insert(1, nn.Dropout(0.3))
    return nn.Sequential(*parts)


def activation(draw: Draw, shape: Shape) -> nn.Module:
    """An activation of one tensor."""
    return draw.pick(
        nn.ReLU,
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        nn.ReLU6,
        lambda: nn.LeakyReLU(draw.pick(0.01, 0.2)),
        lambda: nn.PReLU(),
        lambda: nn.PReLU(shape[1]) if draw.chance() else nn.PReLU(),
        nn.ELU,
        nn.CELU,
        nn.SELU,
        nn.GELU,
        lambda: nn.GELU("tanh"),
        nn.SiLU,
        nn.Mish,
        nn.Hardswish,
        nn.Hardsigmoid,
        nn.Hardtanh,
        nn.Sigmoid,
        nn.Tanh,
        nn.Softplus,
        nn.Softsign,
        nn.Tanhshrink,
        nn.Softshrink,
        nn.Hardshrink,
        nn.LogSigmoid,
        lambda: nn.Threshold(0.1, -0.2),
        lambda: nn.RReLU(0.1, 0.3),
        lambda: nn.Softmax(1),
        lambda: nn.LogSoftmax(1),
        lambda: nn.Softmin(1),
        lambda: Call("clamp(-1, 1.5)", lambda x: x.clamp(-1, 1.5)),
        lambda: Call("clamp(min=-0.5)", lambda x: torch.clamp(x, min=-0.5)),
        lambda: Call("x * relu6(x + 3) / 6", lambda x: x * F.relu6(x + 3) / 6),
        lambda: Call("x * sigmoid(1.702 * x)", lambda x: x * torch.sigmoid(1.702 * x)),
        lambda: Call("relu(x) ** 2", lambda x: torch.relu(x) ** 2),
        lambda: Call("where(x > 0, x, 0.1 * x)", lambda x: torch.where(x > 0, x, 0.1 * x)),
        lambda: Call("maximum(x, 0.1 * x)", lambda x: torch.maximum(x, 0.1 * x)),
        lambda: Call("masked_fill(x < 0, 0)", lambda x: x.masked_fill(x < 0, 0.0)),
        lambda: Call("sin(x) + cos(2 * x)", lambda x: torch.sin(x) + torch.cos(2 * x)),
        lambda: Call("log1p(abs(x)) * sign(x)", lambda x: x.abs().log1p() * x.sign()),
        lambda: Call("erf(x)", torch.erf),
        lambda: Call("exp(-x * x)", lambda x: torch.exp(-x * x)),
        lambda: Call("x / (1 + abs(x))", lambda x: x / (1 + x.abs())),
        lambda: Call("sqrt(x * x + 1)", lambda x: (x * x + 1).sqrt()),
        lambda: Call("rsqrt(relu(x) + 0.5)", lambda x: torch.rsqrt(torch.relu(x) + 0.5)),
        lambda: Call("atan2(x, 2)", lambda x: torch.atan2(x, torch.full_like(x, 2.0))),
        lambda: Call("logaddexp(x, -x)", lambda x: torch.logaddexp(x, -x)),
        lambda: Call("x + frac part", lambda x: x + 0.1 * torch.frac(x * 0.01)),
        lambda: Call("hypot(x, 1)", lambda x: torch.hypot(x, torch.ones_like(x))),
        lambda: Call("logit(sigmoid)", lambda x: torch.logit(torch.sigmoid(x), eps=1e-3)),
        lambda: Call("xlogy", lambda x: torch.xlogy(x, x.abs() + 1)),
        lambda: Call("sinc(x)", torch.sinc),
        lambda: Call("expm1(clamp)", lambda x: torch.expm1(x.clamp(max=1))),
        lambda: Call("nan_to_num", lambda x: torch.nan_to_num(x)),
    )()


def gate(draw: Draw, shape: Shape) -> nn.Module:
    """Squeeze and excitation, GLU and other products of two branches."""
    channels, rank = shape[1], read_rank(shape)
    one = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1](1)
    point = CONVS[rank - 1]
    inner = max(1, channels // 2)
    sigmoid = draw.pick(nn.Sigmoid, nn.Hardsigmoid, nn.Tanh)()
    axes = tuple(range(2, rank + 2))
    squeeze = draw.pick(
        lambda: one,
        lambda: Call("mean over the sizes", lambda x: x.mean(axes, keepdim=True)),
        lambda: Call("amax over the sizes", lambda x: x.amax(axes, keepdim=True)),
    )()
    excite = nn.Sequential(
        squeeze, point(channels, inner, 1), draw.pick(nn.ReLU, nn.SiLU)(), point(inner, channels, 1)
    )
    return draw.pick(
        lambda: Call("x * gate(x)", lambda x, gate: x * gate(x), nn.Sequential(excite, sigmoid)),
        lambda: Call("x + x * gate(x)", lambda x, g: x + x * g(x), nn.Sequential(excite, sigmoid)),
        lambda: nn.Sequential(point(channels, 2 * channels, 1), nn.GLU(1)),
        lambda: Call(
            "linear squeeze and excitation",
            lambda x, a, b: (
                x
                * b(torch.relu(a(x.flatten(2).mean(-1))))
                .sigmoid()
                .view(x.shape[0], -1, *(1,) * (x.ndim - 2))
            ),
            nn.Linear(channels, inner),
            nn.Linear(inner, channels),
        ),
        lambda: Call(
            "chunk(2): a * silu(b)",
            lambda x, layer: (lambda a, b: a * F.silu(b))(*layer(x).chunk(2, 1)),
            point(channels, 2 * channels, 1),
        ),
        lambda: Call("spatial gate", lambda x: x * torch.sigmoid(x.mean(1, keepdim=True))),
        lambda: Call(
            "ECA",
            lambda x, layer: (
                x
                * layer(x.flatten(2).mean(-1).unsqueeze(1))
                .sigmoid()
                .view(x.shape[0], -1, *(1,) * (x.ndim - 2))
            ),
            nn.Conv1d(1, 1, 3, padding=1, bias=False),
        ),
    )()


def pool(draw: Draw, shape: Shape) -> nn.Module:
    """A pooling of any kind."""
    rank = read_rank(shape)
    kernel, stride = draw.pick(2, 3, 3), draw.pick(1, 2, 2)
    padding = draw.pick(0, 0, 1)
    ceil = draw.chance(0.3)
    sizes = tuple(draw.between(1, min(5, size)) for size in shape[2:])
    maximum = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    adaptive = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[rank - 1]
    adaptive_max = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
    lp = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)[rank - 1]
    counted = draw.chance(0.6)
    return draw.pick(
        lambda: maximum(kernel, stride, padding, draw.pick(1, 1, 2), ceil_mode=ceil),
        lambda: maximum(kernel, stride, padding, ceil_mode=ceil),
        lambda: average(kernel, stride, padding, ceil_mode=ceil, count_include_pad=counted),
        lambda: average(kernel, stride, padding, ceil_mode=ceil, count_include_pad=counted),
        lambda: Call(f"adaptive_avg_pool to {sizes}", lambda x: adaptive(x, sizes)),
        lambda: Call(f"adaptive_max_pool to {sizes}", lambda x: adaptive_max(x, sizes)),
        lambda: nn.Sequential(nn.ReLU(), lp(2, kernel, stride, ceil_mode=ceil)),
        lambda: Branches("sum", maximum(3, 1, 1), average(3, 1, 1)),
        lambda: Branches("cat", maximum(2, 2), average(2, 2)),
    )()


def reparameterizable(draw: Draw, shape: Shape) -> nn.Module:
    """Branches that are one layer: identity, 1x1 and larger, norms and scales."""
    rank, channels = read_rank(shape), shape[1]
    layer, batch = CONVS[rank - 1], BATCH_NORMS[rank - 1]
    groups = draw.divisor(channels) if draw.chance(0.4) else 1
    kernel = draw.pick(3, 3, 5)
    bias = draw.chance(0.3)

    def branch(size: int) -> nn.Module:
        made = layer(channels, channels, size, padding=size // 2, groups=groups, bias=bias)
        return nn.Sequential(made, batch(channels))

    parts = [branch(kernel), branch(1)]
    if draw.chance(0.7):
        parts.append(draw.pick(nn.Identity(), batch(channels)))
    if draw.chance(0.3):
        parts.append(branch(3))
    if draw.chance(0.3):
        sizes = (channels, *(1,) * rank)
        scale = Constant(*sizes)
        parts[0] = nn.Sequential(parts[0], Call("layer scale", lambda x, scale: x * scale(), scale))
    if draw.chance(0.3):
        average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
        one = layer(channels, channels, 1, groups=groups, bias=False)
        parts.append(nn.Sequential(one, average(3, 1, 1), batch(channels)))
    draw.random.shuffle(parts)
    block = nn.Sequential(Branches("sum", *parts), activation(draw, shape))
    return randomize(block)


def pad(draw: Draw, shape: Shape) -> nn.Module:
    """Padding, cropping, or both."""
    rank = read_rank(shape)
    sides = [draw.between(0, 2) for _ in range(2 * rank)]
    mode = draw.pick("constant", "reflect", "replicate", "circular")
    if draw.chance(0.2):
        sides[0] = -1
        mode = "constant"
    value = draw.pick(0.0, 0.0, 0.5) if mode == "constant" else None
    return Call(f"F.pad {sides} {mode} {value}", lambda x: F.pad(x, sides, mode, value))


def resize(draw: Draw, shape: Shape) -> nn.Module:
    """Interpolation by a factor or to a size."""
    rank = read_rank(shape)
    linear = ("linear", "bilinear", "trilinear")[rank - 1]
    mode = draw.pick("nearest", "nearest", linear, linear, "bicubic" if rank == 2 else linear)
    if rank < 3 and draw.chance(0.15):
        mode = "nearest-exact"
    corners = draw.pick(None, False, True) if mode in (linear, "bicubic") else None
    if draw.chance(0.6):
        factor = draw.pick(2, 2.0, 0.5, 1.5)
        return Call(
            f"interpolate by {factor} {mode} align_corners={corners}",
            lambda x: F.interpolate(x, scale_factor=factor, mode=mode, align_corners=corners),
        )
    size = tuple(draw.between(4, 12) for _ in range(rank))
    antialias = rank == 2 and mode in ("bilinear", "bicubic") and draw.chance(0.1)
    return Call(
        f"interpolate to {size} {mode} align_corners={corners} antialias={antialias}",
        lambda x: F.interpolate(
            x, size, mode=mode, align_corners=corners, **({"antialias": True} if antialias else {})
        ),
    )


def rearrange(draw: Draw, shape: Shape) -> nn.Module:
    """Values that move and do not change."""
    channels, rank = shape[1], read_rank(shape)
    axis = draw.between(1, rank + 1)
    size = shape[axis]
    part = draw.between(1, size)
    order = torch.randperm(channels)
    options: list[Callable[[], nn.Module]] = [
        lambda: Call(f"roll by 2 along {axis}", lambda x: torch.roll(x, 2, axis)),
        lambda: Call(f"flip {axis}", lambda x: x.flip(axis)),
        lambda: Call(f"narrow {axis} to {part}", lambda x: x.narrow(axis, size - part, part)),
        lambda: Call("every second", lambda x: x[..., ::2]),
        lambda: Call("all but the last", lambda x: x[..., :-1]),
        lambda: Call("halves swapped", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
        lambda: Call("stack and flatten", lambda x: torch.stack([x, -x], 2).flatten(1, 2)),
        lambda: Call(
            "split, one half changed",
            lambda x: (lambda a, b: torch.cat([a, torch.relu(b)], 1))(
                *x.split([part1, channels - part1], 1)
            ),
        ),
        lambda: Call(f"channels {order.tolist()}", lambda x: x[:, order]),
        lambda: Call("unbind(1)", lambda x: sum(x.unbind(1)[1:], x.unbind(1)[0]).unsqueeze(1)),
        lambda: Call("swap the last axes", lambda x: x.transpose(-1, -2 if x.ndim > 3 else 1)),
        lambda: Call("repeat channels", lambda x: x.repeat(1, 2, *(1,) * (x.ndim - 2))),
        lambda: Call("repeat_interleave", lambda x: x.repeat_interleave(2, -1)),
        lambda: Call("tile", lambda x: x.tile((2,))),
    ]
    part1 = max(1, channels // 3)
    group = draw.divisor(channels)
    options.append(
        lambda: Call(
            f"channel shuffle in {group}",
            lambda x: x.view(x.shape[0], group, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
        )
    )
    if rank == 2:
        options += [
            lambda: nn.PixelUnshuffle(2),
            lambda: nn.Sequential(nn.Conv2d(channels, 12, 1), nn.PixelShuffle(2)),
            lambda: Call(
                "unfold as a convolution",
                lambda x: F.unfold(x, 3, padding=1).view(x.shape[0], -1, *x.shape[2:]),
            ),
            lambda: Call(
                "fold of unfold",
                lambda x: F.fold(F.unfold(x, 2, stride=2), shape[2:], 2, stride=2),
            ),
            lambda: nn.ChannelShuffle(group),
            lambda: Call("rot90", lambda x: torch.rot90(x, 1, (2, 3))),
            lambda: Call("tril", lambda x: torch.tril(x, 1)),
        ]
    return draw.one_of(options)()


def sample_grid(draw: Draw, shape: Shape) -> nn.Module:
    """Sampling at places that are learned or computed."""
    if read_rank(shape) != 2:
        raise ValueError("images alone")
    mode, padding = draw.pick("bilinear", "nearest"), draw.pick("zeros", "border", "reflection")
    corners = draw.chance()
    angle = Constant(1, 2, 3, scale=0.5)

    def sample(x: Tensor, theta: nn.Module) -> Tensor:
        matrix = theta().expand(x.shape[0], -1, -1)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=corners)
        return F.grid_sample(x, grid, mode, padding, corners)

    return Call(f"grid_sample {mode} {padding} align_corners={corners}", sample, angle)


def arithmetic(draw: Draw, shape: Shape) -> nn.Module:
    """Reductions, comparisons and products with constants that broadcast."""
    channels, rank = shape[1], read_rank(shape)
    axis = draw.between(1, rank + 1)
    ones = (1,) * rank
    scale, shift = Constant(channels, *ones), Constant(1, channels, *ones, learned=False)
    plane = Constant(*shape[2:])
    matrix = Constant(shape[-1], shape[-1], scale=0.3)
    mixing = Constant(channels, channels, scale=0.3)
    return draw.pick(
        lambda: Call("x * scale + shift", lambda x, a, b: x * a() + b(), scale, shift),
        lambda: Call("(x - shift) / 1.7", lambda x, b: (x - b()) / 1.7, shift),
        lambda: Call("x + positions", lambda x, a: x + a(), plane),
        lambda: Call(f"x - mean over {axis}", lambda x: x - x.mean(axis, keepdim=True)),
        lambda: Call(f"x / std over {axis}", lambda x: x / (x.std(axis, keepdim=True) + 0.1)),
        lambda: Call(f"cumsum along {axis}", lambda x: x.cumsum(axis) * 0.3),
        lambda: Call(f"softmax along {axis}", lambda x: x.softmax(axis) * 3),
        lambda: Call(
            f"logsumexp over {axis}, taken off", lambda x: x - x.logsumexp(axis, keepdim=True)
        ),
        lambda: Call(f"sort along {axis}", lambda x: x.sort(axis).values),
        lambda: Call(f"topk along {axis}", lambda x: x.topk(2, axis).values),
        lambda: Call(f"x + amax over {axis}", lambda x: x + x.amax(axis, keepdim=True)),
        lambda: Call(f"norm over {axis}", lambda x: x / (x.norm(dim=axis, keepdim=True) + 1)),
        lambda: Call("x @ matrix", lambda x, a: x @ a(), matrix),
        lambda: Call("matrix over channels", lambda x, a: mix(x, a()), mixing),
        lambda: Call(
            "einsum nc...,dc", lambda x, a: torch.einsum("nc...,dc->nd...", x, a()), mixing
        ),
        lambda: Call(
            f"min and max of {axis}", lambda x: x.max(axis, True)[0] - x + x.min(axis, True)[0]
        ),
        lambda: Call(f"diff along {axis}", lambda x: torch.diff(x, dim=axis)),
        lambda: Call(
            f"var_mean over {axis}",
            lambda x: (
                (x - torch.var_mean(x, axis, keepdim=True)[1])
                / (torch.var_mean(x, axis, keepdim=True)[0] + 0.2)
            ),
        ),
        lambda: Call("lerp", lambda x: torch.lerp(x, x.flip(-1), 0.3)),
        lambda: Call("addcmul", lambda x: torch.addcmul(x, x, x.sigmoid(), value=0.5)),
        lambda: Call("fmod and floor", lambda x: x - 0.01 * torch.floor(x * 0.001)),
        lambda: Call("prod of two", lambda x: x[..., :2].prod(-1, keepdim=True) * 0.1 + x),
        lambda: Call(
            "x - 0.1 * mean of the sample",
            lambda x: x - 0.1 * x.flatten(1).mean(1).view(-1, *(1,) * (x.ndim - 1)),
        ),
        lambda: Call("set a slice", set_slice),
        lambda: Call(
            "bmm of channels",
            lambda x: (
                (
                    torch.bmm(x.flatten(2).softmax(-1), x.flatten(2).transpose(1, 2)) @ x.flatten(2)
                ).view_as(x)
                * 0.3
            ),
        ),
        lambda: Call(
            "cosine similarity",
            lambda x: x * F.cosine_similarity(x, x.flip(-1) + 0.2, dim=1).unsqueeze(1),
        ),
        lambda: Call("take a position", lambda x: x + x[..., :1]),
        lambda: Call(
            "gather along the last",
            lambda x: x.gather(-1, torch.arange(x.shape[-1] - 1, -1, -1).expand_as(x)),
        ),
        lambda: Call("index_select", lambda x: x.index_select(-1, torch.tensor([0, 2, 1]))),
        lambda: Call(
            "linspace ramp", lambda x: x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
        ),
        lambda: Call(
            "arange positions", lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype) * 0.05
        ),
    )()


def mix(x: Tensor, matrix: Tensor) -> Tensor:
    """A matrix over channels, as a linear layer has it."""
    return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)


def set_slice(x: Tensor) -> Tensor:
    """A copy in which one slice is set."""
    y = x.clone()
    y[..., 1:3] = 0.5 * x[..., :2]
    y[:, 0] += 1
    return y


def recurrent(draw: Draw, shape: Shape) -> nn.Module:
    """A recurrent layer along a signal."""
    if read_rank(shape) != 1:
        raise ValueError("signals alone")
    layer = draw.pick(nn.LSTM, nn.GRU, nn.RNN)(
        shape[1], draw.between(3, 6), batch_first=True, bidirectional=draw.chance()
    )
    return Call("along the signal", lambda x, r: r(x.transpose(1, 2))[0].transpose(1, 2), layer)


def residual(draw: Draw, shape: Shape) -> nn.Module:
    """A residual block of layers that keep the shape."""
    parts: list[nn.Module] = []
    for _ in range(draw.between(1, 3)):
        parts.append(same_conv(draw, shape))
        if draw.chance(0.6):
            parts.append(randomize(BATCH_NORMS[read_rank(shape) - 1](shape[1])))
        if draw.chance(0.6):
            parts.append(activation(draw, shape))
    return Residual(nn.Sequential(*parts), draw.one_of(RESIDUALS))


def concatenation(draw: Draw, shape: Shape) -> nn.Module:
    """Layers beside each other, concatenated or added, with a norm behind them."""
    form = draw.pick("cat", "cat", "sum", "product")
    outputs = draw.channels()
    parts = []
    for _ in range(draw.between(2, 3)):
        own = draw.channels() if form == "cat" else outputs
        parts.append(
            nn.Sequential(same_conv(draw, shape, own), *_maybe(draw, activation(draw, (1, own))))
        )
    joined = Branches(form, *parts)
    total = sum(part[0].out_channels for part in parts) if form == "cat" else outputs
    after = [randomize(BATCH_NORMS[read_rank(shape) - 1](total))] if draw.chance() else []
    return nn.Sequential(joined, *after, activation(draw, (1, total)))


def _maybe(draw: Draw, module: nn.Module) -> list[nn.Module]:
    return [module] if draw.chance() else []


def shared(draw: Draw, shape: Shape) -> nn.Module:
    """One layer called twice."""
    layer, act = same_conv(draw, shape), activation(draw, shape)
    if draw.chance():
        layer = nn.Sequential(layer, randomize(BATCH_NORMS[read_rank(shape) - 1](shape[1])))
    return Call("the same layer twice", lambda x, f, act: f(act(f(x))), layer, act)


STEPS: tuple[Propose, ...] = (
    conv,
    same_conv,
    conv_norm,
    conv_norm,
    transposed,
    weight_norm,
    norm,
    norm,
    activation,
    activation,
    gate,
    pool,
    pool,
    reparameterizable,
    reparameterizable,
    pad,
    resize,
    rearrange,
    rearrange,
    sample_grid,
    arithmetic,
    arithmetic,
    recurrent,
    residual,
    concatenation,
    shared,
)

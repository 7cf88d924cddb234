"""Steps over maps of calls and modules of torch that are met seldom."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Call, Constant, Draw
from random_networks.maps import Propose, Shape


def odd_call(draw: Draw, shape: Shape) -> nn.Module:
    """Calls of torch that are met seldom."""
    channels, rank = shape[1], len(shape) - 2
    axis = draw.between(1, rank + 1)
    size = shape[axis]
    index = torch.randint(0, size, (draw.between(2, 5),)).tolist()
    ones = (1,) * rank
    gain = Constant(channels, *ones)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[rank - 1]
    table = nn.Embedding(channels, 4)
    codebook = Constant(5, channels)

    def unpooled(x: Tensor) -> Tensor:
        values, places = pool(x, 2, 2, return_indices=True)
        return unpool(values, places, 2, 2, output_size=x.shape[2:])

    def quantized(x: Tensor, codes: nn.Module) -> Tensor:
        rows = x.movedim(1, -1)
        book = codes()
        distance = rows.pow(2).sum(-1, keepdim=True) - 2 * rows @ book.T + book.pow(2).sum(1)
        return F.embedding(distance.argmin(-1), book).movedim(-1, 1) * 0.5 + x

    def put(x: Tensor) -> Tensor:
        y = x.clone()
        y.index_fill_(axis, torch.tensor(index[:1]), 0.5)
        return y

    def added(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        order = torch.arange(size - 1, -1, -1)
        return y.index_add(axis, order, x, alpha=0.5) + x

    def scattered(x: Tensor) -> Tensor:
        top = x.topk(2, axis)
        return torch.zeros_like(x).scatter(axis, top.indices, top.values) + 0.1 * x

    def whole(x: Tensor) -> Tensor:
        n = (x * 3).round().to(torch.int64)
        return x + 0.1 * ((n // 2) % 3).to(x.dtype) - 0.05 * torch.remainder(n, 4).to(x.dtype)

    def views(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, : channels // 2].mul_(0.5).add_(0.1)
        y.select(-1, 0).neg_()
        y[..., -1] = y[..., 0] * 2
        return y

    def any_or_all(x: Tensor) -> Tensor:
        some = (x > 1).any(axis, keepdim=True)
        every = (x > -1).all(dim=axis, keepdim=True)
        return torch.where(some & ~every | (x < -1.5), x, x * 0.5)

    return draw.pick(
        lambda: Call("float16 within", lambda x: x.half().relu().to(x.dtype) + x),
        lambda: Call("max_unpool", unpooled),
        lambda: Call("vector quantization", quantized, codebook),
        lambda: Call(f"index_fill {axis} {index[0]}", put),
        lambda: Call(f"index_add {axis}", added),
        lambda: Call(f"scatter of topk {axis}", scattered),
        lambda: Call("integer arithmetic", whole),
        lambda: Call("views changed in place", views),
        lambda: Call(f"any and all over {axis}", any_or_all),
        lambda: Call(f"index {axis} {index}", lambda x: x.index_select(axis, torch.tensor(index))),
        lambda: Call(f"x[..., {index}]", lambda x: x[..., [i % x.shape[-1] for i in index]]),
        lambda: Call(
            "x[:, None].squeeze(1) * gain", lambda x, g: x[:, None].squeeze(1) * g(), gain
        ),
        lambda: Call(
            f"take_along_dim of argsort {axis}",
            lambda x: torch.take_along_dim(x, x.argsort(axis, descending=True), axis),
        ),
        lambda: Call(
            "embedding of channels",
            lambda x, t: torch.cat([x, t(x.argmax(1)).movedim(-1, 1).to(x.dtype)], 1),
            table,
        ),
        lambda: Call(f"flip of {axis} and -1", lambda x: x.flip((axis, -1)) + x),
        lambda: Call(f"logcumsumexp {axis}", lambda x: x.logcumsumexp(axis)),
        lambda: Call(
            f"aminmax {axis}",
            lambda x: (lambda a, b: (x - a) / (b - a + 0.1))(*x.aminmax(dim=axis, keepdim=True)),
        ),
        lambda: Call("clamp by tensors", lambda x, g: x.clamp(-g().abs() - 1, g().abs()), gain),
        lambda: Call("2 ** tanh(x)", lambda x: 2 ** x.tanh() - x.abs() ** 0.5),
        lambda: Call("asinh, tan, log2", lambda x: x.asinh() + x.tanh().tan() + (x * x + 1).log2()),
        lambda: Call("erfc and expit", lambda x: torch.special.erfc(x) - torch.special.expit(x)),
        lambda: Call("remainder", lambda x: torch.remainder(x, 1.3) + torch.fmod(x, 0.7)),
        lambda: Call("trunc, round, sign", lambda x: x.trunc() * 0.1 + x.round() + x.sgn() * 0.3),
        lambda: Call("copysign, heaviside", lambda x: torch.copysign(x.abs().sqrt(), x) + (x > 0)),
        lambda: Call("logical_xor", lambda x: x * torch.logical_xor(x > 0, x.flip(-1) > 0.3)),
        lambda: Call("isnan", lambda x: torch.where(torch.isnan(x) | torch.isinf(x), 0.0, x)),
        lambda: Call(
            "x[..., ::-1] by arange", lambda x: x[..., torch.arange(x.shape[-1] - 1, -1, -1)]
        ),
        lambda: Call(
            "diagonal",
            lambda x: (
                x
                + x.diagonal(0, 1, -1)
                .mean(-1)[..., None, None]
                .flatten(1)[:, :1]
                .view(-1, *(1,) * (x.ndim - 1))
            ),
        ),
        lambda: Call("tensor_split", lambda x: torch.cat(x.tensor_split(3, -1)[::-1], -1)),
        lambda: Call(
            "unflatten", lambda x: x.flatten(1).unflatten(1, (channels, -1)).view_as(x) * 2
        ),
        lambda: Call("hstack and dstack", lambda x: torch.hstack((x, x.exp().clamp(max=3)))),
        lambda: Call("as_strided free unfold", lambda x: x.unfold(-1, 3, 2).sum(-1)),
        lambda: Call(
            "softmax in float32", lambda x: x.softmax(axis, dtype=torch.float32).to(x.dtype) * 4
        ),
        lambda: Call("pow(3)", lambda x: x.clamp(-2, 2).pow(3) * 0.2 - x.square() * 0.1),
        lambda: Call("where of ints", lambda x: torch.where(x > 0, 1, -1) * x.abs().sqrt()),
        lambda: Call(
            "triu mask",
            lambda x: x.masked_fill(torch.ones(x.shape[-2:], dtype=torch.bool).triu(1), 0.3),
        ),
        lambda: Call("rsub, rdiv", lambda x: 1 - x / 2 + 1 / (x.abs() + 1)),
        lambda: Call("size arithmetic", lambda x: x / x.shape[-1] ** 0.5 * x[0, 0].numel() ** 0.25),
        lambda: Call("nanmean", lambda x: x - x.nanmean(axis, keepdim=True)),
        lambda: Call(
            "var unbiased=False", lambda x: x / (x.var(axis, unbiased=False, keepdim=True) + 0.5)
        ),
        lambda: Call(
            "sum of an axis, expanded", lambda x: x.sum(axis, keepdim=True).expand_as(x) * 0.1 - x
        ),
    )()


def module_call(draw: Draw, shape: Shape) -> nn.Module:
    """Modules of torch that are met seldom."""
    channels, rank = shape[1], len(shape) - 2
    if rank == 2:
        return draw.pick(
            lambda: nn.ZeroPad2d((1, 0, 2, 1)),
            lambda: nn.ReflectionPad2d(1),
            lambda: nn.ReplicationPad2d((0, 1, 0, 1)),
            lambda: nn.ConstantPad2d(1, -0.5),
            lambda: nn.CircularPad2d((1, 0, 0, 1)),
            lambda: nn.UpsamplingNearest2d(scale_factor=2),
            lambda: nn.UpsamplingBilinear2d(scale_factor=2),
            lambda: nn.Upsample(size=(9, 7), mode="bilinear"),
            lambda: nn.Upsample(scale_factor=(2, 1), mode="bicubic"),
            lambda: nn.Softmax2d(),
            lambda: nn.Sequential(nn.Dropout2d(0.3), nn.FeatureAlphaDropout(0.2)),
            lambda: nn.CrossMapLRN2d(3),
            lambda: nn.ConvTranspose2d(channels, 4, (3, 2), (2, 3), (1, 0), (1, 0)),
            lambda: nn.ConvTranspose2d(channels, channels, 4, 2, 1, groups=channels, bias=False),
            lambda: nn.ConvTranspose2d(channels, 5, 3, 3, output_padding=2, dilation=2),
            lambda: nn.Conv2d(channels, 6, (1, 5), padding=(0, 2), stride=(1, 2)),
            lambda: nn.Conv2d(channels, 6, 4, padding="same"),
            lambda: nn.Conv2d(
                channels, 6, (2, 4), padding="same", dilation=(1, 2), padding_mode="reflect"
            ),
            lambda: nn.MaxPool2d((1, 3), (1, 2), (0, 1)),
            lambda: nn.AvgPool2d((3, 1), (2, 1), (1, 0), divisor_override=2),
            lambda: nn.AdaptiveAvgPool2d((None, 3)),
            lambda: nn.AdaptiveMaxPool2d((2, None)),
            lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, shape[2:])),
            lambda: nn.GroupNorm(channels, channels),
        )()
    if rank == 1:
        return draw.pick(
            lambda: nn.ConvTranspose1d(channels, 5, 3, 2, 1, 1),
            lambda: nn.Conv1d(channels, 6, 4, padding="same", dilation=2),
            lambda: nn.ReflectionPad1d(2),
            lambda: nn.CircularPad1d((2, 1)),
            lambda: nn.Upsample(scale_factor=1.7, mode="linear"),
            lambda: nn.Upsample(scale_factor=3, mode="nearest"),
            lambda: Call(
                "causal",
                lambda x, f: f(F.pad(x, (4, 0))),
                nn.Conv1d(channels, channels, 3, dilation=2),
            ),
            lambda: Call(
                "gated, WaveNet",
                lambda x, f, g: f(x).tanh() * g(x).sigmoid(),
                nn.Conv1d(channels, 5, 2),
                nn.Conv1d(channels, 5, 2),
            ),
            lambda: Call(
                "hidden first",
                lambda x, r: r(x.permute(2, 0, 1))[0].permute(1, 2, 0),
                nn.GRU(channels, 4, 2, bidirectional=True),
            ),
            lambda: Call(
                "state given",
                lambda x, r: (
                    r(x.mT, (x.new_zeros(1, x.shape[0], 5) + 0.3, x.new_ones(1, x.shape[0], 5)))[
                        0
                    ].mT
                ),
                nn.LSTM(channels, 5, batch_first=True),
            ),
            lambda: Call("cell by cell", by_cell, nn.LSTMCell(channels, 4)),
        )()
    return draw.pick(
        lambda: nn.ReplicationPad3d(1),
        lambda: nn.ReflectionPad3d((1, 0, 1, 0, 1, 1)),
        lambda: nn.CircularPad3d(1),
        lambda: nn.ConvTranspose3d(channels, 4, (1, 2, 2), (1, 2, 2)),
        lambda: nn.ConvTranspose3d(channels, 4, 3, 2, 1, 1),
        lambda: nn.Conv3d(channels, 5, (3, 1, 1), padding="same"),
        lambda: nn.Conv3d(channels, 5, (1, 4, 2), padding="same"),
        lambda: nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"),
        lambda: nn.AvgPool3d((1, 2, 2), ceil_mode=True),
        lambda: nn.MaxPool3d((3, 1, 2), (2, 1, 1), (1, 0, 0)),
        lambda: nn.AdaptiveAvgPool3d((2, None, 1)),
        lambda: Call(
            "axis by axis",
            lambda x, a, b: b(a(x.flatten(1, 2).unsqueeze(1)).flatten(1, 2).view(x.shape)),
            nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0)),
        ),
    )()


def by_cell(x: Tensor, cell: nn.Module) -> Tensor:
    """A cell along a signal."""
    hidden, memory = x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)
    outputs = []
    for step in x.unbind(-1)[:6]:
        hidden, memory = cell(step, (hidden, memory))
        outputs.append(hidden)
    return torch.stack(outputs, -1)


STEPS: tuple[Propose, ...] = (odd_call, odd_call, odd_call, module_call, module_call)

"""Steps over ``(N, T, C)``: attention written in several ways, and what stands around it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from random_networks.drawing import RESIDUALS, Branches, Call, Constant, Draw, Residual, randomize
from random_networks.maps import Propose, Shape, activation


class Attention(nn.Module):
    """Self-attention in heads, written in one of several ways."""

    FORMS = (
        "scaled_dot_product_attention",
        "scaled_dot_product_attention, causal",
        "scaled_dot_product_attention, boolean mask",
        "scaled_dot_product_attention, bias",
        "by hand",
        "by hand, causal",
        "by hand, -1e9",
        "einsum",
        "bmm",
        "baddbmm",
        "linear attention",
        "one key head",
        "cosine",
    )

    def __init__(self, tokens: int, channels: int, heads: int, form: str, joined: bool) -> None:
        super().__init__()
        self.heads, self.form, self.joined = heads, form, joined
        if joined:
            self.qkv = nn.Linear(channels, 3 * channels)
        else:
            self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.randn(1, heads, tokens, tokens) * 0.5)
        self.register_buffer("mask", torch.rand(tokens, tokens) < 0.7)
        self.mask[torch.arange(tokens), torch.arange(tokens)] = True

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, channels = x.shape
        if self.joined:
            qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, channels // self.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (
                layer(x).view(rows, tokens, self.heads, -1).transpose(1, 2)
                for layer in (self.q, self.k, self.v)
            )
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(rows, tokens, channels))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(N, heads, T, width)`` three times to once."""
        scale = q.shape[-1] ** -0.5
        causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
        match self.form:
            case "scaled_dot_product_attention":
                return F.scaled_dot_product_attention(q, k, v)
            case "scaled_dot_product_attention, causal":
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            case "scaled_dot_product_attention, boolean mask":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
            case "scaled_dot_product_attention, bias":
                return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias, scale=0.3)
            case "by hand":
                return ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
            case "by hand, causal":
                scores = (q @ k.mT) / q.shape[-1] ** 0.5
                return scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v
            case "by hand, -1e9":
                scores = q @ k.transpose(2, 3) * scale + self.bias
                return torch.where(self.mask, scores, -1e9).softmax(-1) @ v
            case "einsum":
                scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale
                return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
            case "bmm":
                q, k, w = (t.flatten(0, 1) for t in (q, k, v))
                return torch.bmm(F.softmax(torch.bmm(q, k.mT) * scale, -1), w).view(v.shape)
            case "baddbmm":
                q, k, w = (t.flatten(0, 1) for t in (q, k, v))
                bias = self.bias[0].repeat(v.shape[0], 1, 1)
                scores = torch.baddbmm(bias, q, k.mT, beta=0.5, alpha=scale)
                return torch.bmm(scores.softmax(-1), w).view(v.shape)
            case "linear attention":
                q, k = F.elu(q) + 1, F.elu(k) + 1
                norm = q @ k.sum(2, keepdim=True).mT
                return q @ (k.mT @ v) / (norm + 1e-3)
            case "one key head":
                return F.scaled_dot_product_attention(
                    q, k[:, :1].expand_as(q), v[:, :1].expand_as(q)
                )
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 5
        return scores.softmax(-1) @ v

    def extra_repr(self) -> str:
        return f"{self.form}, heads={self.heads}"


def attention(draw: Draw, shape: Shape) -> nn.Module:
    """Self-attention."""
    _, tokens, channels = shape
    heads = draw.divisor(channels)
    if draw.chance(0.25):
        layer = nn.MultiheadAttention(
            channels, heads, batch_first=True, bias=draw.chance(0.7), add_zero_attn=draw.chance(0.1)
        )
        weighed = draw.chance(0.3)
        return Call(
            f"attention, weights {weighed}",
            lambda x, layer: layer(x, x, x, need_weights=weighed)[0],
            layer,
        )
    return Attention(tokens, channels, heads, draw.one_of(Attention.FORMS), draw.chance())


def cross_attention(draw: Draw, shape: Shape) -> nn.Module:
    """Attention to learned tokens, or of learned queries."""
    _, _, channels = shape
    heads, learned = draw.divisor(channels), Constant(1, draw.between(2, 5), channels)
    layer = nn.MultiheadAttention(channels, heads, batch_first=True)

    def attend(x: Tensor, layer: nn.Module, learned: nn.Module) -> Tensor:
        memory = learned().expand(x.shape[0], -1, -1)
        return layer(x, memory, memory, need_weights=False)[0]

    def query(x: Tensor, layer: nn.Module, learned: nn.Module) -> Tensor:
        return layer(learned().repeat(x.shape[0], 1, 1), x, x)[0]

    if draw.chance():
        return Call("learned queries", query, layer, learned)
    return Call("attention to learned tokens", attend, layer, learned)


def linear(draw: Draw, shape: Shape) -> nn.Module:
    """A layer over channels, or over tokens."""
    _, tokens, channels = shape
    outputs = draw.channels()
    mixing = Constant(outputs, channels, scale=0.4)
    return draw.pick(
        lambda: nn.Linear(channels, outputs, bias=draw.chance(0.7)),
        lambda: parametrizations.weight_norm(nn.Linear(channels, outputs)),
        lambda: Call(
            "over tokens",
            lambda x, layer: layer(x.transpose(1, 2)).transpose(1, 2),
            nn.Linear(tokens, outputs),
        ),
        lambda: Call("x @ w.T", lambda x, w: x @ w().t(), mixing),
        lambda: Call("einsum btc,dc", lambda x, w: torch.einsum("btc,dc->btd", x, w()), mixing),
        lambda: Call("tensordot", lambda x, w: torch.tensordot(x, w(), ([2], [1])), mixing),
        lambda: nn.Sequential(nn.Linear(channels, 2 * outputs), nn.GLU(-1)),
        lambda: Call(
            "SwiGLU",
            lambda x, a, b: F.silu(a(x)) * b(x),
            nn.Linear(channels, outputs),
            nn.Linear(channels, outputs, bias=False),
        ),
        lambda: Call(
            "flattened rows",
            lambda x, layer: layer(x.reshape(-1, x.shape[-1])).view(x.shape[0], x.shape[1], -1),
            nn.Linear(channels, outputs),
        ),
    )()


def norm(draw: Draw, shape: Shape) -> nn.Module:
    """A norm over channels."""
    channels = shape[2]
    gain = Constant(channels)
    layer: nn.Module = draw.pick(
        lambda: nn.LayerNorm(channels),
        lambda: nn.LayerNorm(channels, bias=False),
        lambda: nn.LayerNorm(channels, elementwise_affine=False, eps=1e-3),
        lambda: nn.RMSNorm(channels),
        lambda: nn.RMSNorm(channels, eps=1e-4),
        lambda: Call(
            "RMS norm by hand",
            lambda x, g: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * g(),
            gain,
        ),
        lambda: Call(
            "layer norm by hand",
            lambda x, g: (
                (x - x.mean(-1, keepdim=True))
                / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
                * g()
            ),
            gain,
        ),
        lambda: Call(
            "BatchNorm1d over channels",
            lambda x, layer: layer(x.transpose(1, 2)).transpose(1, 2),
            nn.BatchNorm1d(channels),
        ),
        lambda: nn.BatchNorm1d(shape[1]),
        lambda: Call(
            "GroupNorm over channels",
            lambda x, layer: layer(x.transpose(1, 2)).transpose(1, 2),
            nn.GroupNorm(draw.divisor(channels), channels),
        ),
    )()
    return randomize(layer)


def block(draw: Draw, shape: Shape) -> nn.Module:
    """A block of a transformer or of a mixer, before or behind its norm."""
    _, tokens, channels = shape
    if draw.chance(0.2):
        layer = nn.TransformerEncoderLayer(
            channels,
            draw.divisor(channels),
            2 * channels,
            activation=draw.pick("relu", "gelu"),
            batch_first=True,
            norm_first=draw.chance(),
        )
        return randomize(layer)
    inner = 2 * channels
    body = draw.pick(
        lambda: attention(draw, shape),
        lambda: nn.Sequential(
            nn.Linear(channels, inner), draw.pick(nn.GELU, nn.ReLU)(), nn.Linear(inner, channels)
        ),
        lambda: Call(
            "mixing tokens",
            lambda x, a, b: b(F.gelu(a(x.transpose(1, 2)))).transpose(1, 2),
            nn.Linear(tokens, 2 * tokens),
            nn.Linear(2 * tokens, tokens),
        ),
        lambda: Call(
            "depthwise along tokens",
            lambda x, layer: layer(x.transpose(1, 2)).transpose(1, 2),
            nn.Conv1d(channels, channels, 3, padding=1, groups=channels),
        ),
    )()
    if draw.chance(0.3):
        scale = Constant(channels)
        body = nn.Sequential(body, Call("layer scale", lambda x, scale: x * scale(), scale))
    if draw.chance(0.7):
        body = nn.Sequential(randomize(nn.LayerNorm(channels)), body)
    return Residual(body, draw.pick(RESIDUALS[0], *RESIDUALS))


def recurrent(draw: Draw, shape: Shape) -> nn.Module:
    """A recurrent layer, with or without its last state."""
    channels, hidden = shape[2], draw.between(3, 8)
    layer = draw.pick(nn.LSTM, nn.GRU, nn.RNN)(
        channels,
        hidden,
        num_layers=draw.pick(1, 1, 2),
        batch_first=True,
        bidirectional=draw.chance(0.3),
        bias=draw.chance(0.8),
    )
    first = draw.chance(0.2)

    def last(x: Tensor, layer: nn.Module) -> Tensor:
        outputs, state = layer(x)
        state = state[0] if isinstance(state, tuple) else state
        return outputs + state.transpose(0, 1).reshape(x.shape[0], -1)[:, : outputs.shape[2]].mean(
            1, keepdim=True
        ).unsqueeze(1)

    if first:
        return Call("outputs and last state", last, layer)
    return Call("outputs", lambda x, layer: layer(x)[0], layer)


def rearrange(draw: Draw, shape: Shape) -> nn.Module:
    """Tokens that move, are dropped, added, or looked up."""
    _, tokens, channels = shape
    token, positions = Constant(1, 1, channels), Constant(1, tokens, channels)
    rows = torch.randperm(tokens)[: max(2, tokens // 2)]
    return draw.pick(
        lambda: Call(
            "class token",
            lambda x, t: torch.cat([t().expand(x.shape[0], -1, -1), x], 1),
            token,
        ),
        lambda: Call("x + positions", lambda x, p: x + p(), positions),
        lambda: Call(
            "positions by number",
            lambda x, table: x + table(torch.arange(x.shape[1])),
            nn.Embedding(tokens + 2, channels),
        ),
        lambda: Call(f"tokens {rows.tolist()}", lambda x: x[:, rows]),
        lambda: Call("without the first", lambda x: x[:, 1:]),
        lambda: Call("shifted by one", lambda x: F.pad(x[:, :-1], (0, 0, 1, 0))),
        lambda: Call("roll", lambda x: x.roll(1, 1)),
        lambda: Call("rotary", rotate),
        lambda: Call("pairs joined", join_pairs),
        lambda: Call("topk tokens by norm", pick_tokens),
        lambda: Call("cumulative mean", cumulative_mean),
        lambda: Call(
            "outer product", lambda x: torch.einsum("btc,btd->btcd", x, x).flatten(2) * 0.2
        ),
        lambda: Call("causal difference", lambda x: x - F.pad(x, (0, 0, 1, 0))[:, :-1]),
        lambda: Call("windows", lambda x: x.unfold(1, 2, 1).flatten(2)),
        lambda: Call("masked mean", masked_mean),
        lambda: Call(
            "one-hot of argmax", lambda x: x + F.one_hot(x.argmax(-1), x.shape[-1]).to(x.dtype)
        ),
        lambda: Call(
            "bucketize",
            lambda x: (
                x
                + 0.1
                * torch.bucketize(x.detach(), torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)).to(
                    x.dtype
                )
            ),
        ),
        lambda: Call(
            "scatter_add",
            lambda x: torch.zeros_like(x).scatter_add(
                1, torch.arange(x.shape[1]).flip(0).view(1, -1, 1).expand_as(x), x
            ),
        ),
        lambda: Call("cdist", lambda x: torch.cdist(x, x)),
    )()


def rotate(x: Tensor) -> Tensor:
    """Rotary positions."""
    half = x.shape[-1] // 2
    steps = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
    angles = steps * (10000.0 ** (-torch.arange(half, dtype=x.dtype) / half))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


def join_pairs(x: Tensor) -> Tensor:
    """Two neighbours as one token, as Swin merges patches."""
    even = x[:, : x.shape[1] // 2 * 2]
    return torch.cat([even[:, 0::2], even[:, 1::2]], -1)


def pick_tokens(x: Tensor) -> Tensor:
    """The two tokens of the largest norm."""
    index = x.norm(dim=-1).topk(2, 1).indices
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cumulative_mean(x: Tensor) -> Tensor:
    """The mean of a token and all before it."""
    counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)
    return x.cumsum(1) / counts.view(1, -1, 1)


def masked_mean(x: Tensor) -> Tensor:
    """Tokens beside the mean of those whose first channel is positive."""
    mask = (x[..., :1] > 0).to(x.dtype)
    return x - (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def activations(draw: Draw, shape: Shape) -> nn.Module:
    """An activation; those with a channel axis have that of tokens."""
    return activation(draw, shape)


def branches(draw: Draw, shape: Shape) -> nn.Module:
    """Layers beside each other."""
    channels, outputs = shape[2], draw.channels()
    parts = [nn.Linear(channels, outputs) for _ in range(draw.between(2, 3))]
    return Branches(draw.pick("cat", "sum", "product"), *parts, axis=draw.pick(1, 2))


STEPS: tuple[Propose, ...] = (
    attention,
    attention,
    cross_attention,
    linear,
    linear,
    norm,
    norm,
    block,
    block,
    block,
    recurrent,
    rearrange,
    rearrange,
    rearrange,
    activations,
    branches,
)

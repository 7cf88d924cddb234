"""Attention and transformer layers of torch over token ids, with every kind of mask."""

import torch
from torch import Tensor, nn

from random_networks.drawing import Draw, randomize
from random_networks.embedded import Embedded, draw_embedded
from random_networks.made import Made
from random_networks.pooled import POOLS, Pooled
from random_networks.ports import Port
from random_networks.texts import WIDTHS, draw_length


class Own(nn.Module):
    """`nn.TransformerEncoder`, and `nn.TransformerDecoder` where a second text is given."""

    def __init__(self, draw: Draw, words: Embedded, memory: bool) -> None:
        super().__init__()
        channels = words.channels
        heads = draw.pick(2, 2, draw.divisor(channels))
        self.words, self.first = words, draw.chance(0.75)
        self.causal, self.masked = draw.chance(0.4), draw.pick("key padding", "float")
        options = {
            "activation": draw.pick("relu", "gelu", torch.nn.functional.silu),
            "batch_first": self.first,
            "norm_first": draw.chance(0.3),
            "bias": draw.chance(0.9),
        }
        layer = nn.TransformerEncoderLayer(channels, heads, 2 * channels, **options)
        last = nn.LayerNorm(channels) if draw.chance() else None
        fits = self.first and options["bias"] and not options["norm_first"] and heads % 2 == 0
        nested = draw.chance(0.8) and fits and options["activation"] in ("relu", "gelu")
        self.encoder = nn.TransformerEncoder(
            layer, draw.pick(1, 2), last, enable_nested_tensor=nested
        )
        self.decoder = None
        if memory:
            self.decoder = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(channels, heads, 2 * channels, **options), 1
            )
        self.pool, self.head = Pooled(channels, draw.one_of(POOLS)), nn.Linear(channels, 4)
        randomize(self.encoder)

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, target_ids: Tensor | None = None
    ) -> object:
        x = self.turn(self.words(input_ids))
        keep = None if mask is None else mask.bool()
        padding = None if keep is None else ~keep
        if padding is not None and self.masked == "float":
            padding = torch.zeros_like(keep, dtype=x.dtype).masked_fill(padding, float("-inf"))
        above = self.above(input_ids.shape[1], x.dtype) if self.causal else None
        y = self.encoder(x, above, src_key_padding_mask=padding, is_causal=self.causal or None)
        if self.decoder is None or target_ids is None:
            return self.head(self.pool(self.turn(y), keep))
        target = self.turn(self.words(target_ids))
        z = self.decoder(
            target,
            y,
            tgt_mask=self.above(target_ids.shape[1], x.dtype),
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return self.head(self.turn(z))

    def turn(self, x: Tensor) -> Tensor:
        """Batch first to what the layers take, and back."""
        return x if self.first else x.transpose(0, 1)

    def above(self, size: int, dtype: torch.dtype) -> Tensor:
        """What is hidden from each token: those behind it."""
        if self.masked == "float":
            return nn.Transformer.generate_square_subsequent_mask(size, dtype=dtype)
        return torch.ones(size, size, dtype=torch.bool).triu(1)


class Many(nn.Module):
    """`nn.MultiheadAttention` with all its options, from one input to another."""

    def __init__(self, draw: Draw, words: Embedded, features: int) -> None:
        super().__init__()
        channels = words.channels
        self.words, self.first = words, draw.chance()
        other = draw.chance()
        self.layer = nn.MultiheadAttention(
            channels,
            draw.divisor(channels),
            kdim=features if other else None,
            vdim=features if other else None,
            bias=draw.chance(0.7),
            add_bias_kv=draw.chance(0.25),
            add_zero_attn=draw.chance(0.25),
            batch_first=self.first,
        )
        self.widen = nn.Identity() if other else nn.Linear(features, channels)
        self.told, self.mean = draw.chance(0.6), draw.chance()
        self.masked = draw.pick("bool", "float")
        self.head = nn.Linear(channels, 4)

    def forward(
        self, input_ids: Tensor, features: Tensor, feature_mask: Tensor | None = None
    ) -> object:
        q, memory = self.words(input_ids), self.widen(features)
        padding = None if feature_mask is None else feature_mask == 0
        if padding is not None and self.masked == "float":
            padding = padding.to(q.dtype) * -1e4
        if not self.first:
            q, memory = q.transpose(0, 1), memory.transpose(0, 1)
        y, weights = self.layer(
            q,
            memory,
            memory,
            key_padding_mask=padding,
            need_weights=self.told,
            average_attn_weights=self.mean,
        )
        y = self.head(y if self.first else y.transpose(0, 1))
        return (y, weights) if self.told else y


def build_own(draw: Draw, seed: int) -> Made:
    """The layers of torch."""
    ids, channels = draw.pick(11, 30), draw.one_of([w for w in WIDTHS if w % 2 == 0])
    memory = draw.chance(0.4)
    net = Own(draw, draw_embedded(draw, ids, channels), memory)
    ports = {"input_ids": Port("ids", ("T",), ids)}
    if draw.chance(0.7):
        ports["mask"] = Port("mask", ("T",), dtype=draw.pick(torch.bool, torch.int64))
    if memory:
        ports["target_ids"] = Port("ids", (draw.pick(1, 4, 6),), ids)
    ports, sizes = draw_length(draw, ports)
    return Made(seed, net, ports, True, sizes)


def build_many(draw: Draw, seed: int) -> Made:
    """Text that attends to features."""
    ids, channels, features = draw.pick(11, 30), draw.one_of(WIDTHS), draw.pick(5, 6, 8)
    net = Many(draw, draw_embedded(draw, ids, channels), features)
    rows = draw.pick(1, 4, 9)
    ports = {
        "input_ids": Port("ids", ("T",), ids),
        "features": Port("floats", (rows, features)),
    }
    if draw.chance(0.6):
        dtype = draw.pick(torch.bool, torch.int64, torch.float32)
        ports["feature_mask"] = Port(draw.pick("mask", "holes"), (rows,), dtype=dtype)
    ports, sizes = draw_length(draw, ports)
    return Made(seed, net, ports, True, sizes)

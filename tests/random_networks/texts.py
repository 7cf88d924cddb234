"""Networks over token ids: encoders, language models with caches, pairs of texts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifacts import SizeRange
from random_networks import tokens
from random_networks.drawing import Draw, randomize
from random_networks.embedded import PLACED, Embedded, draw_embedded
from random_networks.feed_forward import draw_feed_forward
from random_networks.made import Made
from random_networks.masked_attention import MaskedAttention, Plan, Seen, draw_plan
from random_networks.pooled import FORMS, POOLS, Pooled, give
from random_networks.ports import Port

WIDTHS = (8, 12, 12, 16, 20, 68)
TYPES = (torch.int64, torch.int64, torch.int64, torch.int32)


class Layer(nn.Module):
    """Attention, attention to a memory where there is one, and a feed-forward part."""

    def __init__(self, draw: Draw, channels: int, plan: Plan, memory: int | None = None) -> None:
        super().__init__()
        self.first = draw.chance(0.6)
        self.parallel = draw.chance(0.15) and memory is None
        self.attention = MaskedAttention(channels, plan)
        self.cross = None
        if memory is not None:
            self.cross = MaskedAttention(channels, draw_plan(draw, channels, cross=True), memory)
        self.body = draw_feed_forward(draw, channels)
        shape = (2, 5, channels)
        self.norms = nn.ModuleList(draw_norm(draw, shape) for _ in range(3))

    def forward(
        self, x: Tensor, seen: Seen, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        before, between, after = self.norms
        if self.parallel:
            y = before(x)
            attended, state = self.attention(y, seen, past)
            return x + attended + self.body(y), state
        if self.first:
            attended, state = self.attention(before(x), seen, past)
            x = x + attended
            if self.cross is not None:
                x = x + self.cross(between(x), seen)[0]
            return x + self.body(after(x)), state
        attended, state = self.attention(x, seen, past)
        x = before(x + attended)
        if self.cross is not None:
            x = between(x + self.cross(x, seen)[0])
        return after(x + self.body(x)), state


def draw_norm(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    """A norm of tokens that does not depend on how many there are."""
    while True:
        norm = tokens.norm(draw, shape)
        if not (isinstance(norm, nn.BatchNorm1d) or "GroupNorm" in norm.extra_repr()):
            return norm


class Recurrent(nn.Module):
    """An LSTM or GRU over tokens; what is padding is zero in front of and behind it."""

    def __init__(self, draw: Draw, channels: int) -> None:
        super().__init__()
        layer, both = draw.pick(nn.LSTM, nn.GRU), draw.chance(0.4)
        self.first = draw.chance(0.7)
        self.layer = layer(
            channels, channels, draw.pick(1, 2), batch_first=self.first, bidirectional=both
        )
        self.narrow = nn.Linear(channels * (1 + both), channels)

    def forward(self, x: Tensor, seen: Seen) -> tuple[Tensor, None]:
        if seen.keep is not None:
            x = x * seen.keep.unsqueeze(-1)
        y = self.layer(x)[0] if self.first else self.layer(x.transpose(0, 1))[0].transpose(0, 1)
        return self.narrow(y), None


class Convolutions(nn.Module):
    """Windows of several widths beside each other, as in a text CNN."""

    def __init__(self, draw: Draw, channels: int) -> None:
        super().__init__()
        widths = draw.pick((1, 3), (3, 5), (2, 3, 4))
        self.layers = nn.ModuleList(
            nn.Conv1d(channels, 4, width, padding="same" if draw.chance() else width // 2)
            for width in widths
        )
        self.narrow = nn.Linear(4 * len(widths), channels)

    def forward(self, x: Tensor, seen: Seen) -> tuple[Tensor, None]:
        turned = x.transpose(1, 2)
        parts = [F.relu(layer(turned))[..., : x.shape[1]] for layer in self.layers]
        return x + self.narrow(torch.cat(parts, 1).permute(0, 2, 1)), None


class Heads(nn.Module):
    """What is told of the tokens."""

    KINDS = ("class", "class", "tags", "best tag", "span", "tied", "vector", "hidden")

    def __init__(self, draw: Draw, channels: int, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds, self.form = kinds, draw.one_of(FORMS)
        self.pool = Pooled(channels, draw.one_of(POOLS))
        self.classes = nn.Linear(channels, draw.pick(2, 5))
        self.tags = nn.Linear(channels, draw.pick(3, 9))
        self.span = nn.Linear(channels, 2)

    def forward(self, x: Tensor, keep: Tensor | None, words: nn.Embedding) -> object:
        outputs = {
            f"{kind.replace(' ', '_')}": self.tell(kind, x, keep, words) for kind in self.kinds
        }
        return give(self.form, outputs)

    def tell(self, kind: str, x: Tensor, keep: Tensor | None, words: nn.Embedding) -> Tensor:
        """One of the outputs."""
        match kind:
            case "class":
                return self.classes(self.pool(x, keep))
            case "tags":
                return self.tags(x).log_softmax(-1)
            case "best tag":
                return self.tags(x).argmax(-1)
            case "span":
                start, end = self.span(x).split(1, -1)
                return torch.stack([start.squeeze(-1), end.squeeze(-1)], 1)
            case "tied":
                return F.linear(x[..., : words.embedding_dim], words.weight) * 0.5
            case "vector":
                return F.normalize(self.pool(x, keep), dim=-1)
        return x

    def extra_repr(self) -> str:
        return f"{self.kinds}, {self.form}"


class Encoder(nn.Module):
    """One text, with what is known of it."""

    def __init__(
        self, words: Embedded, layers: list[nn.Module], heads: Heads, turned: bool
    ) -> None:
        super().__init__()
        self.embedded, self.layers, self.heads = words, nn.ModuleList(layers), heads
        self.turned = turned

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pair_mask: Tensor | None = None,
    ) -> object:
        keep = None if attention_mask is None else attention_mask.bool()
        if keep is not None and self.turned:
            keep = ~keep
        x = self.embedded(input_ids, keep, token_type_ids, position_ids)
        seen = Seen(keep, None if pair_mask is None else pair_mask > 0)
        for layer in self.layers:
            x, _ = layer(x, seen)
        return self.heads(x, keep, self.embedded.words)


class Two(nn.Module):
    """A text that looks at another: of tokens, or of features."""

    def __init__(
        self,
        first: nn.Module,
        second: Embedded,
        encoder: nn.ModuleList,
        decoder: nn.ModuleList,
        heads: Heads,
    ) -> None:
        super().__init__()
        self.first, self.second, self.heads = first, second, heads
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        source: Tensor,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> object:
        memory = self.first(source)
        kept = None if source_mask is None else source_mask.bool()
        for layer in self.encoder:
            memory, _ = layer(memory, Seen(kept))
        keep = None if target_mask is None else target_mask != 0
        y = self.second(target_ids)
        for layer in self.decoder:
            y, _ = layer(y, Seen(keep, memory=memory, memory_keep=kept))
        return self.heads(y, keep, self.second.words)


class Cached(nn.Module):
    """The next tokens of a language model: keys and values come in and go out."""

    def __init__(self, words: Embedded, layers: list[Layer], stacked: bool) -> None:
        super().__init__()
        self.words, self.layers, self.stacked = words, nn.ModuleList(layers), stacked
        self.norm = randomize(nn.RMSNorm(words.channels))

    def forward(
        self, input_ids: Tensor, past_keys: Tensor, past_values: Tensor, attention_mask: Tensor
    ) -> object:
        """Caches are ``(N, layers, heads, S, width)``; the mask is of all S + T tokens."""
        so_far = past_keys.shape[3]
        places = torch.arange(input_ids.shape[1]) + so_far
        seen = Seen(attention_mask.bool(), places=places)
        x = self.words(input_ids)
        states = []
        for index, layer in enumerate(self.layers):
            x, state = layer(x, seen, (past_keys[:, index], past_values[:, index]))
            states.append(state)
        logits = self.norm(x) @ self.words.words.weight.T
        if self.stacked:
            keys, values = (torch.stack(part, 1) for part in zip(*states, strict=True))
            return {"logits": logits, "keys": keys, "values": values}
        return logits[:, -1], tuple(states)


def draw_length(draw: Draw, ports: dict[str, Port]) -> tuple[dict[str, Port], dict[str, SizeRange]]:
    """The ports with a length, dynamic in some."""
    length = draw.pick(3, 5, 7, 8, 17, 1)
    dynamic = draw.chance(0.4) and length > 1
    sizes = {"T": SizeRange(draw.pick(1, 2), length, draw.pick(19, 23))} if dynamic else {}
    if dynamic:
        return ports, sizes
    fixed = {
        name: Port(
            p.kind, tuple(length if s == "T" else s for s in p.shape), p.below, p.dtype, p.turned
        )  # type: ignore[misc]
        for name, p in ports.items()
    }
    return fixed, sizes


def build_encoder(draw: Draw, seed: int) -> Made:
    """A text to whatever is told of it."""
    channels, ids = draw.one_of(WIDTHS), draw.pick(11, 30, 1031)
    placed = draw.one_of(PLACED)
    kind = draw.pick("attention", "attention", "attention", "recurrent", "convolutions", "mixed")
    layers: list[nn.Module] = []
    for _ in range(draw.pick(1, 2, 2)):
        plan = draw_plan(draw, channels, causal=draw.chance(0.25))
        drawn = draw.pick("attention", "recurrent", "convolutions") if kind == "mixed" else kind
        if drawn == "recurrent":
            layers.append(Recurrent(draw, channels))
        elif drawn == "convolutions":
            layers.append(Convolutions(draw, channels))
        else:
            layers.append(Layer(draw, channels, plan))
    words = draw_embedded(draw, ids, channels, placed=placed)
    count = draw.pick(1, 1, 2, 3)
    heads = Heads(draw, channels, draw.random.sample(Heads.KINDS[1:], count))
    ports = {"input_ids": Port("ids", ("T",), ids, draw.one_of(TYPES))}
    turned = draw.chance(0.2)
    if draw.chance(0.75):
        kept = draw.pick("mask", "mask", "left", "holes", "hidden")
        dtype = draw.pick(torch.int64, torch.int64, torch.bool, torch.float32)
        ports["attention_mask"] = Port(kept, ("T",), dtype=dtype, turned=turned)
    if words.segments is not None and draw.chance():
        ports["token_type_ids"] = Port("ids", ("T",), 2)
    if placed == "given":
        ports["position_ids"] = Port("ids", ("T",), 24)
    if kind == "attention" and draw.chance(0.15):
        ports["pair_mask"] = Port("pairs", ("T", "T"), dtype=draw.pick(torch.bool, torch.float32))
    ports, sizes = draw_length(draw, ports)
    keyword = "attention_mask" not in ports or draw.chance(0.8)
    keyword = keyword or list(ports)[2:] not in ([], ["token_type_ids"])
    return Made(seed, Encoder(words, layers, heads, turned), ports, keyword, sizes)


def build_pair(draw: Draw, seed: int) -> Made:
    """A text of another, or of features such as those of an image or a sound."""
    channels, memory, ids = draw.one_of(WIDTHS), draw.pick(8, 10, 12), draw.pick(11, 30)
    of_text = draw.chance(0.6)
    features = draw.pick(5, 7)
    first: nn.Module = (
        draw_embedded(draw, ids, memory)
        if of_text
        else nn.Sequential(nn.Linear(features, memory), nn.LayerNorm(memory))
    )
    encoder = nn.ModuleList(
        Layer(draw, memory, draw_plan(draw, memory)) for _ in range(draw.pick(0, 1))
    )
    decoder = nn.ModuleList(
        Layer(draw, channels, draw_plan(draw, channels, causal=True), memory)
        for _ in range(draw.pick(1, 2))
    )
    heads = Heads(draw, channels, draw.random.sample(("tied", "tags", "class", "best tag"), 2))
    net = Two(first, draw_embedded(draw, ids, channels), encoder, decoder, heads)
    rows = draw.pick(1, 4, 9)
    dtype = draw.pick(torch.int64, torch.bool, torch.float32)
    ports = {
        "source": Port("ids", (rows,), ids) if of_text else Port("floats", (rows, features)),
        "target_ids": Port("ids", ("T",), ids, draw.one_of(TYPES)),
    }
    if draw.chance(0.7):
        ports["source_mask"] = Port(draw.pick("mask", "holes", "hidden"), (rows,), dtype=dtype)
    if draw.chance(0.5):
        ports["target_mask"] = Port("mask", ("T",), dtype=dtype)
    ports, sizes = draw_length(draw, ports)
    return Made(seed, net, ports, True, sizes)


def build_cached(draw: Draw, seed: int) -> Made:
    """One or several more tokens of a text whose keys and values are given."""
    channels, ids = draw.one_of(WIDTHS), draw.pick(11, 30, 1031)
    while True:
        plan = draw_plan(draw, channels, causal=True)
        if plan.written != "linear":
            break
    layers = [Layer(draw, channels, plan) for _ in range(draw.pick(1, 2))]
    words = Embedded(ids, channels, draw.pick("plain", "padded", "scaled"), "none", False)
    more, so_far = draw.pick(1, 1, 3), draw.pick(1, 4, 6)
    cache = Port("floats", (len(layers), plan.key_heads, so_far, plan.width))
    ports = {
        "input_ids": Port("ids", (more,), ids, draw.one_of(TYPES)),
        "past_keys": cache,
        "past_values": cache,
        "attention_mask": Port("left", (so_far + more,)),
    }
    return Made(seed, Cached(words, layers, draw.chance()), ports, True)

"""Recommenders and networks of tables: many categories, some numbers, lists of items."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Draw, randomize
from random_networks.made import Made
from random_networks.ports import Port

COUNTS = (11, 7, 30, 200)
"""Of the categories of each column."""


def draw_perceptron(draw: Draw, inputs: int, *sizes: int) -> nn.Sequential:
    """Layers with batch norms and activations."""
    parts: list[nn.Module] = []
    act = draw.pick(nn.ReLU, nn.SiLU, nn.Mish, nn.PReLU)
    for size in sizes[:-1]:
        norm: list[nn.Module] = [nn.BatchNorm1d(size)] if draw.chance() else []
        parts += [nn.Linear(inputs, size), *norm, act(), nn.Dropout(0.1)]
        inputs = size
    return randomize(nn.Sequential(*parts, nn.Linear(inputs, sizes[-1])))


class Columns(nn.Module):
    """``(N, columns)`` categories to ``(N, columns, C)``: a table each, or one with offsets."""

    def __init__(self, draw: Draw, width: int) -> None:
        super().__init__()
        self.shared = draw.chance(0.4)
        sizes = [sum(COUNTS)] if self.shared else COUNTS
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        first = torch.tensor((0, *COUNTS[:-1])).cumsum(0)
        self.register_buffer("first", first)
        self.register_buffer("counts", torch.tensor(COUNTS))

    def forward(self, columns: Tensor) -> Tensor:
        columns = columns % self.counts
        if self.shared:
            return self.tables[0](columns + self.first)
        rows = [table(columns[:, index]) for index, table in enumerate(self.tables)]
        return torch.stack(rows, 1)


class Crossed(nn.Module):
    """Dense and sparse features, crossed as one of the recommenders does."""

    FORMS = ("DLRM", "DeepFM", "DCN", "attention", "wide", "tokens", "gated")

    def __init__(self, draw: Draw, form: str, numbers: int) -> None:
        super().__init__()
        width = draw.pick(6, 8, 17, 64)
        self.form, count = form, len(COUNTS) + 1
        self.columns = Columns(draw, width)
        self.numbers = draw_perceptron(draw, numbers, 16, width)
        self.norm = randomize(nn.BatchNorm1d(numbers))
        flat = count * width
        self.linear = nn.Linear(flat, 1)
        self.crosses = nn.ModuleList(nn.Linear(flat, flat) for _ in range(2))
        self.low = nn.ParameterList(torch.randn(flat, 3) * flat**-0.5 for _ in range(2))
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.scales = nn.Parameter(torch.randn(numbers, width))
        self.shifts = nn.Parameter(torch.randn(numbers, width))
        layer = nn.TransformerEncoderLayer(width, 1, 2 * width, batch_first=True, norm_first=True)
        self.encoder, self.start = layer, nn.Parameter(torch.randn(1, 1, width))
        self.gate = nn.Linear(flat, flat)
        inputs = {"DLRM": width + count * (count - 1) // 2, "tokens": width}
        self.top = draw_perceptron(draw, inputs.get(form, flat), 24, draw.pick(1, 3))
        self.register_buffer("pairs", torch.tril_indices(count, count, -1))
        self.sigmoid = draw.chance()

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        y = self.cross(self.norm(torch.log1p(numbers.abs())), self.columns(categories.long()))
        return torch.sigmoid(y) if self.sigmoid else y

    def cross(self, numbers: Tensor, rows: Tensor) -> Tensor:
        """Of ``(N, numbers)`` and ``(N, columns, C)``."""
        dense = self.numbers(numbers)
        both = torch.cat([dense.unsqueeze(1), rows], 1)
        flat = both.flatten(1)
        match self.form:
            case "DLRM":
                products = torch.bmm(both, both.transpose(1, 2))
                picked = products[:, self.pairs[0], self.pairs[1]]
                return self.top(torch.cat([dense, picked * 0.3], 1))
            case "DeepFM":
                crossed = both.sum(1).square() - both.square().sum(1)
                wide = self.linear(flat) + 0.05 * crossed.sum(1, keepdim=True)
                return self.top(flat) + wide
            case "DCN":
                y = flat
                for layer, low in zip(self.crosses, self.low, strict=True):
                    y = flat * (layer(y) + (y @ low) @ low.T) * 0.5 + y
                return self.top(y)
            case "attention":
                y, _ = self.attention(both, both, both)
                return self.top(F.relu(y + both).flatten(1))
            case "tokens":
                tokens = numbers.unsqueeze(-1) * self.scales + self.shifts
                start = self.start.expand(numbers.shape[0], -1, -1)
                return self.top(self.encoder(torch.cat([start, tokens, rows], 1))[:, 0])
            case "gated":
                return self.top(flat * torch.sigmoid(self.gate(flat)))
        return self.top(flat) + self.linear(flat)

    def extra_repr(self) -> str:
        return self.form


class History(nn.Module):
    """A user's items against one more item, with who the user is where that is known."""

    FORMS = ("target attention", "GRU", "bag", "causal", "mean", "weighed bag")

    def __init__(self, draw: Draw, form: str, items: int) -> None:
        super().__init__()
        width = draw.pick(8, 12, 64)
        self.form = form
        self.items = nn.Embedding(items, width, padding_idx=0)
        self.users = nn.Embedding(17, width)
        mode = "sum" if form == "weighed bag" else draw.pick("mean", "sum", "max")
        self.bag = nn.EmbeddingBag(items, width, mode=mode, padding_idx=draw.pick(None, 0))
        self.score = nn.Sequential(nn.Linear(4 * width, 12), nn.Sigmoid(), nn.Linear(12, 1))
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(width, 2, width, batch_first=True)
        self.top = draw_perceptron(draw, 2 * width, 16, 1)
        self.cosine = draw.chance(0.3)

    def forward(
        self, history: Tensor, item: Tensor, user: Tensor | None = None
    ) -> dict[str, Tensor]:
        target = self.items(item).squeeze(1)
        taste = self.read(history, target)
        if user is not None:
            taste = taste + self.users(user.squeeze(-1))
        score = (
            F.cosine_similarity(taste, target, dim=-1)
            if self.cosine
            else self.top(torch.cat([taste, target], -1)).squeeze(-1)
        )
        return {"score": score, "taste": taste}

    def read(self, history: Tensor, target: Tensor) -> Tensor:
        """The list as ``(N, C)``."""
        rows, keep = self.items(history), history != 0
        match self.form:
            case "target attention":
                wanted = target.unsqueeze(1).expand_as(rows)
                scores = self.score(torch.cat([rows, wanted, rows - wanted, rows * wanted], -1))
                scores = torch.where(keep.unsqueeze(-1), scores, -(2.0**31))
                return (scores.softmax(1) * rows).sum(1)
            case "GRU":
                outputs, _ = self.recurrent(rows)
                last = keep.sum(1).clamp(min=1) - 1
                index = last.view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
                return outputs.gather(1, index).squeeze(1)
            case "bag":
                return self.bag(history)
            case "weighed bag":
                weights = 1.0 / (1 + torch.arange(history.shape[1], dtype=rows.dtype))
                return self.bag(history, per_sample_weights=weights.expand(history.shape))
            case "causal":
                size = history.shape[1]
                above = torch.full((size, size), float("-inf"), dtype=rows.dtype).triu(1)
                return self.layer(rows, above)[:, -1]
        return (rows * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)

    def extra_repr(self) -> str:
        return self.form


def build_crossed(draw: Draw, seed: int) -> Made:
    """Numbers and categories."""
    numbers = draw.pick(3, 5, 13)
    net = Crossed(draw, draw.one_of(Crossed.FORMS), numbers)
    dtype = draw.pick(torch.int64, torch.int32)
    ports = {
        "numbers": Port("floats", (numbers,)),
        "categories": Port("ids", (len(COUNTS),), 1000, dtype),
    }
    return Made(seed, net, ports, draw.chance())


def build_history(draw: Draw, seed: int) -> Made:
    """A list of items and one more."""
    items = draw.pick(30, 1031)
    net = History(draw, draw.one_of(History.FORMS), items)
    dtype = draw.pick(torch.int64, torch.int64, torch.int32)
    ports = {
        "history": Port("ids", (draw.pick(1, 4, 7),), draw.pick(items, 5), dtype),
        "item": Port("ids", (1,), items, dtype),
    }
    if draw.chance():
        ports["user"] = Port("ids", (1,), 17)
    return Made(seed, net, ports, True)

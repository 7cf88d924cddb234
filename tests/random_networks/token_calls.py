"""Networks over tokens, each around a call of torch or a layout that is met seldom."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Draw
from random_networks.made import Made
from random_networks.ports import Port

IDS = 23


class Called(nn.Module):
    """Ids, and what else a form takes, to one or more outputs."""

    FORMS = (
        "copied words",
        "hashed",
        "both of a pair",
        "letters",
        "bytes",
        "columns of floats",
        "best keys",
        "segments",
        "shifted right",
        "stretched",
        "unfolded keys",
        "polar",
        "retention",
        "scan",
        "three axes",
        "rows at once",
        "steps",
        "chosen pairs",
        "known words",
        "experts at once",
    )

    def __init__(self, form: str, width: int) -> None:
        super().__init__()
        self.form, self.width = form, width
        self.words = nn.Embedding(IDS, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.head, self.other = nn.Linear(width, 5), nn.Linear(6, width)
        self.out = nn.Linear(width, IDS)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.gate = nn.Linear(width, 1)
        self.experts = nn.Parameter(torch.randn(3, width, width) * width**-0.5)
        self.router = nn.Linear(width, 3)
        self.scale = nn.Parameter(torch.tensor(1.2))
        self.register_buffer("known", torch.tensor([2, 3, 5, 7, 11, 13]))

    def forward(self, ids: Tensor, more: Tensor | None = None) -> object:
        if self.form in ("columns of floats", "bytes", "letters", "hashed", "shifted right"):
            ids = self.prepare(ids)
        if self.form == "letters":
            rows, tokens, letters, _ = (x := self.words(ids)).shape
            y = self.conv(x.view(rows * tokens, letters, -1).transpose(1, 2))
            return self.head(y.amax(-1).view(rows, tokens, -1))
        x = self.words(ids)
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.transpose(1, 2) * self.width**-0.5
        match self.form:
            case "copied words":
                weights = scores.softmax(-1)
                share = torch.sigmoid(self.gate(x))
                made = self.out(x).softmax(-1) * share
                index = ids.unsqueeze(1).expand(-1, ids.shape[1], -1)
                return made.scatter_add(2, index, weights * (1 - share))
            case "both of a pair":
                first = F.normalize(x.mean(1), dim=-1)
                second = F.normalize(self.other(more), dim=-1)
                logits = self.scale.exp().clamp(max=100) * first @ second.t()
                return logits, logits.t()
            case "best keys":
                least = scores.topk(min(3, scores.shape[-1]), -1).values[..., -1:]
                return self.head(scores.masked_fill(scores < least, -torch.inf).softmax(-1) @ v)
            case "segments":
                index = more.unsqueeze(-1).expand(-1, -1, self.width)
                sums = x.new_zeros(x.shape[0], 4, self.width).scatter_add(1, index, x)
                counts = F.one_hot(more, 4).sum(1).unsqueeze(-1)
                return self.head(sums / counts.clamp(min=1))
            case "stretched":
                ends = more.cumsum(1)
                places = torch.arange(9).expand(ids.shape[0], -1)
                index = torch.searchsorted(ends, places, right=True).clamp(max=ids.shape[1] - 1)
                y = x.gather(1, index.unsqueeze(-1).expand(-1, -1, self.width))
                return self.head(y * (places < ends[:, -1:]).unsqueeze(-1))
            case "unfolded keys":
                near, values = (F.pad(t, (0, 0, 1, 1)).unfold(1, 3, 1) for t in (k, v))
                weights = torch.einsum("btc,btcw->btw", q, near).softmax(-1)
                return self.head(torch.einsum("btw,btcw->btc", weights, values))
            case "polar":
                half = self.width // 2
                angles = torch.outer(torch.arange(ids.shape[1]), 0.7 ** torch.arange(half))
                turns = torch.polar(torch.ones_like(angles), angles)
                turned = [
                    torch.view_as_real(
                        torch.view_as_complex(t.float().reshape(*t.shape[:-1], -1, 2)) * turns
                    )
                    .flatten(2)
                    .type_as(t)
                    for t in (q, k)
                ]
                return self.head((turned[0] @ turned[1].mT * 0.3).softmax(-1) @ v)
            case "retention":
                apart = torch.arange(ids.shape[1])[:, None] - torch.arange(ids.shape[1])
                decay = torch.where(apart >= 0, 0.9 ** apart.clamp(min=0), 0.0).to(x.dtype)
                return self.head(F.group_norm((scores * decay @ v).mT, 2).mT)
            case "scan":
                steps, state = F.softplus(k), torch.zeros_like(q[:, 0])
                outputs = []
                for index in range(ids.shape[1]):
                    state = torch.exp(-steps[:, index]) * state + steps[:, index] * v[:, index]
                    outputs.append(state * torch.sigmoid(q[:, index]))
                return self.head(torch.stack(outputs, dim=1))
            case "three axes":
                mask = None if more is None else more.bool().unsqueeze(1)
                return self.head(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
            case "rows at once":
                y = torch.baddbmm(x, scores.softmax(-1), v).flatten(0, 1)
                return self.head(y).unflatten(0, (-1, ids.shape[1])).argmax(-1), y.view_as(x)
            case "steps":
                speeds = torch.exp(-torch.arange(3) * 1.5)
                angles = more[:, None].to(x.dtype) * speeds
                known = self.other(torch.cat([angles.sin(), angles.cos()], -1).to(x.dtype))
                return self.head(x * (1 + known.unsqueeze(1)))
            case "chosen pairs":
                first, second = torch.triu_indices(ids.shape[1], ids.shape[1], 1)
                return self.head(x[:, first] * x[:, second]).amax(1)
            case "known words":
                some = torch.isin(ids, self.known)
                order = some.int().argsort(dim=1, descending=True, stable=True)
                y = torch.take_along_dim(x, order.unsqueeze(-1), 1)
                return {"known": some, "tags": self.head(y), "count": some.sum(-1)}
            case "experts at once":
                chosen = (self.router(x) * 6).argmax(-1)
                hot = F.one_hot(chosen, 3).to(x.dtype)
                y = torch.einsum("bte,btc,eco->bto", hot, x, self.experts)
                return self.head(y + x), hot.mean((0, 1)).expand(ids.shape[0], -1)
        return self.head(scores.softmax(-1) @ v)

    def prepare(self, ids: Tensor) -> Tensor:
        """Ids in the rows of the table."""
        match self.form:
            case "columns of floats":
                return (ids.abs() * 10).long().clamp(max=IDS - 1)
            case "hashed":
                return ids % IDS
            case "shifted right":
                moved = ids.new_zeros(ids.shape)
                moved[..., 1:] = ids[..., :-1].clone()
                moved[..., 0] = 1
                return moved.masked_fill(moved == 7, 0)
        return ids.long() % IDS

    def extra_repr(self) -> str:
        return self.form


def build_called(draw: Draw, seed: int) -> Made:
    """The next of the forms."""
    form = Called.FORMS[seed % len(Called.FORMS)]
    tokens, width = draw.pick(3, 5, 7), draw.pick(8, 12)
    kind: Port = Port("ids", (tokens,), IDS)
    match form:
        case "letters":
            kind = Port("ids", (tokens, 4), IDS)
        case "bytes":
            kind = Port("ids", (tokens,), 200, torch.uint8)
        case "columns of floats":
            kind = Port("floats", (tokens,))
        case "hashed":
            kind = Port("ids", (tokens,), 2**31 - 1)
    ports = {"ids": kind}
    more = {
        "both of a pair": Port("floats", (6,)),
        "segments": Port("ids", (tokens,), 4),
        "stretched": Port("lengths", (tokens,), 3),
        "three axes": Port("mask", (tokens,), dtype=torch.bool),
        "steps": Port("ids", (), 100),
    }
    if form in more:
        ports["more"] = more[form]
    return Made(seed, Called(form, width), ports, draw.chance())

"""Tokens of which some are padding to one vector, and what is returned of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLS = ("mean", "mean of pairs", "first", "last", "most", "weighed", "both", "queries", "norm")


@dataclass
class Result:
    """What a model of today returns."""

    logits: Tensor
    hidden: Tensor | None = None


torch.export.register_dataclass(Result)


class Pooled(nn.Module):
    """``(N, T, C)`` and what is kept to ``(N, C)``."""

    def __init__(self, channels: int, form: str) -> None:
        super().__init__()
        self.form = form
        self.score = nn.Linear(channels, 1)
        self.narrow = nn.Linear(2 * channels, channels)
        self.query = nn.Parameter(torch.randn(1, 2, channels))
        self.dense = nn.Linear(channels, channels)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None:
            keep = x.new_ones(x.shape[:2], dtype=torch.bool)
        rows = keep.unsqueeze(-1).to(x.dtype)
        mean = (x * rows).sum(1) / rows.sum(1).clamp(min=1e-9)
        match self.form:
            case "mean":
                return mean
            case "mean of pairs":
                counts = keep.sum(1, keepdim=True).clamp(min=1)
                return torch.einsum("btc,bt->bc", x, keep.to(x.dtype)) / counts
            case "first":
                return torch.tanh(self.dense(x[:, 0]))
            case "last":
                last = (keep.int().sum(-1) - 1).clamp(min=0)
                return x[torch.arange(x.shape[0]), last]
            case "most":
                return x.masked_fill(~keep.unsqueeze(-1), -1e4).max(1).values.clamp(min=-9)
            case "weighed":
                scores = self.score(torch.tanh(self.dense(x))).squeeze(-1)
                weights = scores.masked_fill(~keep, torch.finfo(x.dtype).min).softmax(1)
                return (weights.unsqueeze(1) @ x).squeeze(1)
            case "both":
                most = torch.where(rows > 0, x, -9.0).amax(1)
                return self.narrow(torch.cat([mean, most], -1))
            case "queries":
                scores = self.query @ x.mT * x.shape[-1] ** -0.5
                scores = scores + (1 - rows.mT) * -1e4
                return (scores.softmax(-1) @ x).mean(1)
        return F.normalize(mean, p=2, dim=-1)

    def extra_repr(self) -> str:
        return self.form


def give(form: str, outputs: Mapping[str, Tensor]) -> object:
    """Outputs in one of the forms that models return."""
    values = list(outputs.values())
    match form:
        case "tensor":
            return values[0]
        case "tuple":
            return tuple(values)
        case "dict":
            return dict(outputs)
        case "dataclass":
            return Result(*values[:2])
    return {"first": values[0], "rest": [*values[1:], None], "count": len(values)}


FORMS = ("tensor", "tuple", "dict", "dataclass", "nested")

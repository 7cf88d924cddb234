"""Where tokens stand: turned into queries and keys, or added to their products."""

import math

import torch
from torch import Tensor, nn

TURNS = ("halves", "pairs", "complex", "partial")
BIASES = ("alibi", "table", "buckets", "shifted", "distance")


class Rotary(nn.Module):
    """Rotary positions of ``(N, heads, T, width)``, in one of the layouts in use."""

    def __init__(self, width: int, layout: str, most: int = 64) -> None:
        super().__init__()
        self.layout, self.turned = layout, width // 2 * 2
        if layout == "partial":
            self.turned = max(2, width // 4 * 2)
        speeds = 1.0 / 100.0 ** (torch.arange(0, self.turned, 2) / self.turned)
        angles = torch.outer(torch.arange(most).float(), speeds)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """`places`: the positions, ``(T,)`` or ``(N, T)``."""
        cos, sin = self.cos[places], self.sin[places]
        if places.ndim == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        x, rest = x[..., : self.turned], x[..., self.turned :]
        match self.layout:
            case "pairs":
                a, b = x[..., 0::2], x[..., 1::2]
                y = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
            case "complex":
                pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
                y = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
            case _:
                cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
                a, b = x.chunk(2, -1)
                y = x * cos + torch.cat([-b, a], -1) * sin
        return torch.cat([y, rest], -1) if rest.shape[-1] else y

    def extra_repr(self) -> str:
        return f"{self.layout}, turned={self.turned}"


class RelativeBias(nn.Module):
    """What is added to ``(heads, T, S)`` products for where query and key stand."""

    def __init__(self, heads: int, form: str, most: int = 64) -> None:
        super().__init__()
        self.heads, self.form, self.most = heads, form, most
        self.table = nn.Embedding(16 if form == "buckets" else 2 * most - 1, heads)
        index = torch.arange(most)[:, None] - torch.arange(most) + most - 1
        self.register_buffer("index", index, persistent=False)
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
        self.register_buffer("slopes", slopes)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions ``(T,)`` and ``(S,)`` to ``(heads, T, S)``."""
        apart = keys[None, :] - queries[:, None]
        match self.form:
            case "alibi":
                return self.slopes[:, None, None] * -apart.abs()
            case "table":
                return self.table.weight[apart + self.most - 1].permute(2, 0, 1)
            case "buckets":
                return self.table(self.bucket(apart)).permute(2, 0, 1)
            case "shifted":
                rows, columns = queries.shape[0], keys.shape[0]
                index = self.index[columns - rows : columns, :columns].reshape(-1)
                taken = self.table.weight.index_select(0, index)
                return taken.view(rows, columns, -1).movedim(-1, 0)
        gauss = torch.exp(-(apart.to(self.slopes.dtype) ** 2) / 8)
        return gauss * self.slopes.view(-1, 1, 1)

    def bucket(self, apart: Tensor) -> Tensor:
        """The buckets of T5."""
        side = (apart > 0).long() * 8
        far = apart.abs()
        large = 4 + (torch.log(far.float().clamp(min=1) / 4) / math.log(8) * 4).long()
        return side + torch.where(far < 4, far, large.clamp(max=7))

    def extra_repr(self) -> str:
        return self.form

"""Token ids to tokens, with what is known of where they stand and of which segment they are."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Draw, randomize

PLACED = ("learned", "arange", "buffer", "sines", "counted", "given", "none")


class Embedded(nn.Module):
    """``(N, T)`` integers to ``(N, T, C)``.

    Args:
        form: ``plain``, ``padded`` with a row for padding, ``scaled``, ``factored`` over fewer
            channels, or ``one-hot`` times a matrix.
        placed: where positions come from.
    """

    def __init__(self, ids: int, channels: int, form: str, placed: str, segments: bool) -> None:
        super().__init__()
        self.ids, self.form, self.placed, self.channels = ids, form, placed, channels
        narrow = 5 if form == "factored" else channels
        self.words = nn.Embedding(ids, narrow, padding_idx=0 if form == "padded" else None)
        self.widen = nn.Linear(narrow, channels, bias=False) if form == "factored" else None
        self.places = nn.Embedding(64, channels)
        self.segments = nn.Embedding(2, channels) if segments else None
        self.norm = randomize(nn.LayerNorm(channels))
        angles = torch.arange(64)[:, None] * torch.exp(
            -math.log(1000.0) * torch.arange(0, channels, 2) / channels
        )
        waves = torch.zeros(1, 64, channels)
        waves[0, :, 0::2], waves[0, :, 1::2] = angles.sin(), angles.cos()[:, : channels // 2]
        self.register_buffer("waves", waves)
        self.register_buffer("order", torch.arange(64).expand(1, -1), persistent=False)

    def forward(
        self,
        ids: Tensor,
        keep: Tensor | None = None,
        segments: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        if self.form == "one-hot":
            x = F.one_hot(ids.long(), self.ids).to(self.words.weight.dtype) @ self.words.weight
        else:
            x = self.words(ids)
        if self.widen is not None:
            x = self.widen(x)
        if self.form == "scaled":
            x = x * math.sqrt(self.channels) * 0.3
        if self.segments is not None:
            if segments is None:
                segments = torch.zeros_like(ids)
            x = x + self.segments(segments)
        return self.norm(x + self.find_places(ids, keep, places))

    def find_places(self, ids: Tensor, keep: Tensor | None, places: Tensor | None) -> Tensor:
        """What is added for the positions."""
        tokens = ids.shape[1]
        match self.placed:
            case "learned":
                return self.places.weight[:tokens]
            case "arange":
                return self.places(torch.arange(tokens, device=ids.device).unsqueeze(0))
            case "buffer":
                return self.places(self.order[:, :tokens])
            case "sines":
                return self.waves[:, :tokens]
            case "counted":
                real = ids.ne(0).int() if keep is None else keep.int()
                return self.places((torch.cumsum(real, 1).type_as(real) * real).long())
            case "given" if places is not None:
                return self.places(places)
        return torch.zeros(1, dtype=self.waves.dtype)

    def extra_repr(self) -> str:
        return f"{self.form}, {self.placed}"


def draw_embedded(draw: Draw, ids: int, channels: int, *, placed: str | None = None) -> Embedded:
    """Any of them."""
    form = draw.pick("plain", "padded", "scaled", "factored", "one-hot")
    return Embedded(ids, channels, form, placed or draw.one_of(PLACED), draw.chance(0.4))

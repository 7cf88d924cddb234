"""What stands behind attention: layers over channels, gated, or of several experts."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Call, Draw

GATES: tuple[Callable[[Tensor], Tensor], ...] = (F.silu, F.gelu, torch.relu, torch.sigmoid)


class Experts(nn.Module):
    """A mixture of experts: all of them weighed, or the best of each token.

    Args:
        form: ``dense`` weighs all; the others take the best two, and compute all (``scattered``,
            ``one-hot``), look weights up (``gathered``), or run over the experts (``loop``).
    """

    FORMS = ("dense", "scattered", "gathered", "one-hot", "loop", "switch")

    def __init__(self, channels: int, count: int, form: str) -> None:
        super().__init__()
        self.form, self.count = form, count
        inner = channels + 3
        self.router = nn.Linear(channels, count, bias=False)
        with torch.no_grad():
            self.router.weight.mul_(6)  # decisions that rounding seldom changes
        self.up = nn.Parameter(torch.randn(count, channels, inner) * channels**-0.5)
        self.down = nn.Parameter(torch.randn(count, inner, channels) * inner**-0.5)
        self.shift = nn.Parameter(torch.randn(count, inner) * 0.1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels))
            for _ in range(count if form in ("loop", "switch") else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights = self.router(flat).softmax(-1)
        best, chosen = weights.topk(1 if self.form == "switch" else 2, dim=-1)
        best = best / best.sum(-1, keepdim=True) if self.form != "switch" else best
        match self.form:
            case "gathered":
                y = torch.einsum("nc,nkci->nki", flat, self.up[chosen]) + self.shift[chosen]
                y = torch.einsum("nki,nkic->nkc", F.silu(y), self.down[chosen])
                return (y * best.unsqueeze(-1)).sum(1).view_as(x)
            case "loop" | "switch":
                y = torch.zeros_like(flat)
                for index, layer in enumerate(self.layers):
                    share = (best * (chosen == index)).sum(-1, keepdim=True)
                    y = y + layer(flat) * share
                return y.view_as(x)
            case "scattered":
                weights = torch.zeros_like(weights).scatter(-1, chosen, best)
            case "one-hot":
                hot = F.one_hot(chosen, self.count).to(best.dtype)
                weights = torch.einsum("nk,nke->ne", best, hot)
        y = F.silu(torch.einsum("nc,eci->nei", flat, self.up) + self.shift)
        y = torch.einsum("nei,eic->nec", y, self.down)
        return torch.einsum("nec,ne->nc", y, weights).view(x.shape)

    def extra_repr(self) -> str:
        return f"{self.form}, {self.count}"


def draw_feed_forward(draw: Draw, channels: int) -> nn.Module:
    """Any of them, ``(N, T, C)`` to the same."""
    inner = draw.pick(channels, 2 * channels, 2 * channels + 3)
    gate = draw.one_of(GATES)
    act = draw.pick(nn.GELU, nn.ReLU, nn.SiLU, lambda: nn.GELU("tanh"))
    return draw.pick(
        lambda: nn.Sequential(nn.Linear(channels, inner), act(), nn.Linear(inner, channels)),
        lambda: nn.Sequential(
            nn.Linear(channels, inner), act(), nn.Dropout(0.1), nn.Linear(inner, channels)
        ),
        lambda: Call(
            "gated",
            lambda x, a, b, c: c(gate(a(x)) * b(x)),
            nn.Linear(channels, inner, bias=False),
            nn.Linear(channels, inner, bias=False),
            nn.Linear(inner, channels, bias=False),
        ),
        lambda: Call(
            "gated halves",
            lambda x, a, b: (lambda value, gating: b(gate(gating) * value))(*a(x).chunk(2, -1)),
            nn.Linear(channels, 2 * inner),
            nn.Linear(inner, channels),
        ),
        lambda: Call("GLU", lambda x, a, b: b(F.glu(a(x), -1)), *glu(channels, inner)),
        lambda: Call(
            "squared relu",
            lambda x, a, b: b(F.relu(a(x)).square() * 0.5),
            nn.Linear(channels, inner),
            nn.Linear(inner, channels),
        ),
        lambda: Call(
            "convolutions over tokens",
            lambda x, a, b: b(F.gelu(a(x.transpose(1, 2)))).transpose(1, 2),
            nn.Conv1d(channels, inner, 3, padding=1),
            nn.Conv1d(inner, channels, 1),
        ),
        lambda: Experts(channels, draw.between(3, 4), draw.one_of(Experts.FORMS)),
        lambda: Experts(channels, draw.between(3, 4), draw.one_of(Experts.FORMS)),
    )()


def glu(channels: int, inner: int) -> tuple[nn.Module, nn.Module]:
    """The layers around a GLU."""
    return nn.Linear(channels, 2 * inner), nn.Linear(inner, channels)

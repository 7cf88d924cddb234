"""Attention that sees some tokens and not others, written in the ways of its users."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_networks.drawing import Draw
from random_networks.positions import BIASES, TURNS, RelativeBias, Rotary

WRITTEN = ("sdpa", "sdpa", "sdpa", "matmul", "einsum", "baddbmm", "bmm", "linear", "cosine")
MASKED = ("-inf", "finfo.min", "-1e9", "added", "added -1e4", "where", "multiplied")
ORDERS = ("all", "causal", "window", "causal window", "blocks")


@dataclass(frozen=True)
class Seen:
    """What a layer is told beside its tokens.

    Attributes:
        keep: ``(N, S)`` booleans of keys, or None.
        pairs: ``(N, T, S)`` booleans, or None.
        places: positions of the queries, ``(T,)``; keys stand from 0 on.
        memory: tokens of another input.
        memory_keep: its `keep`.
    """

    keep: Tensor | None = None
    pairs: Tensor | None = None
    places: Tensor | None = None
    memory: Tensor | None = None
    memory_keep: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How an attention is written."""

    heads: int
    key_heads: int
    width: int
    written: str
    masked: str
    order: str
    turn: str | None = None
    bias: str | None = None
    cap: float | None = None
    joined: bool = False
    norm: bool = False


def draw_plan(draw: Draw, channels: int, *, causal: bool = False, cross: bool = False) -> Plan:
    """Any way that fits `channels`."""
    heads = draw.pick(1, 2, 2, 3, 4)
    groups = draw.divisor(heads)
    width = draw.pick(max(2, channels // heads), 6, 8, 10)
    orders = ("causal", "causal", "causal window") if causal else ORDERS
    written = draw.one_of(WRITTEN)
    order = "all" if cross else draw.one_of(orders)
    if written == "linear":
        order = "all"
    placed = written not in ("linear", "cosine") and not cross
    return Plan(
        heads,
        heads // groups if draw.chance(0.4) else heads,
        width,
        written,
        draw.one_of(MASKED),
        order,
        draw.one_of(TURNS) if placed and draw.chance(0.4) else None,
        draw.one_of(BIASES) if placed and draw.chance(0.4) else None,
        5.0 if placed and draw.chance(0.2) else None,
        draw.chance() and not cross,
        draw.chance(0.2),
    )


class MaskedAttention(nn.Module):
    """Self or cross attention of a plan."""

    def __init__(self, channels: int, plan: Plan, memory: int | None = None) -> None:
        super().__init__()
        self.plan, self.crosses = plan, memory is not None
        inner, keys = plan.heads * plan.width, plan.key_heads * plan.width
        if plan.joined:
            self.qkv = nn.Linear(channels, inner + 2 * keys)
        else:
            self.q = nn.Linear(channels, inner, bias=False)
            self.k = nn.Linear(memory or channels, keys, bias=False)
            self.v = nn.Linear(memory or channels, keys)
        self.out = nn.Linear(inner, channels)
        self.rotary = Rotary(plan.width, plan.turn) if plan.turn else None
        self.bias = RelativeBias(plan.heads, plan.bias) if plan.bias else None
        self.q_norm, self.k_norm = (
            (nn.RMSNorm(plan.width), nn.RMSNorm(plan.width)) if plan.norm else (None, None)
        )

    def forward(
        self, x: Tensor, seen: Seen, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``(N, T, C)`` to the same, and keys and values of all tokens so far."""
        plan, rows, tokens = self.plan, x.shape[0], x.shape[1]
        source = x if seen.memory is None or not self.crosses else seen.memory
        if plan.joined:
            inner, keys = plan.heads * plan.width, plan.key_heads * plan.width
            q, k, v = self.qkv(x).split([inner, keys, keys], -1)
        else:
            q, k, v = self.q(x), self.k(source), self.v(source)
        q = q.view(rows, tokens, plan.heads, plan.width).transpose(1, 2)
        k, v = (
            t.view(rows, t.shape[1], plan.key_heads, plan.width).transpose(1, 2) for t in (k, v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        places = torch.arange(tokens) if seen.places is None else seen.places
        if self.rotary is not None:
            q, k = self.rotary(q, places), self.rotary(k, places)
        if past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True))
        state = k, v
        keep = self.find_kept(seen, places, k.shape[2])
        bias = None
        if self.bias is not None:
            bias = self.bias(places, torch.arange(k.shape[2])).to(x.dtype)
        y = self.attend(q, k, v, keep, bias)
        return self.out(y.transpose(1, 2).reshape(rows, tokens, -1)), state

    def find_kept(self, seen: Seen, places: Tensor, keys: int) -> Tensor | None:
        """Booleans that broadcast to ``(N, heads, T, S)``."""
        parts = []
        padding = seen.memory_keep if self.crosses else seen.keep
        if padding is not None:
            parts.append(padding[:, None, None, :])
        if seen.pairs is not None and not self.crosses:
            parts.append(seen.pairs[:, None])
        apart = places[:, None] - torch.arange(keys)
        match self.plan.order:
            case "causal":
                parts.append(apart >= 0)
            case "window":
                parts.append(apart.abs() <= 2)
            case "causal window":
                parts.append((apart >= 0) & (apart < 3))
            case "blocks":
                parts.append(places[:, None] // 3 == torch.arange(keys) // 3)
        kept = None
        for part in parts:
            kept = part if kept is None else kept & part
        return kept

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """``(N, heads, T, width)`` with fewer heads of keys and values."""
        plan = self.plan
        scale = plan.width**-0.5
        grouped = plan.key_heads != plan.heads
        if plan.written == "sdpa" and plan.cap is None:
            mask = keep
            if bias is not None:
                mask = bias if keep is None else bias.masked_fill(~keep, float("-inf"))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        if grouped:
            k, v = (t.repeat_interleave(plan.heads // plan.key_heads, 1) for t in (k, v))
        match plan.written:
            case "linear":
                q, k = F.elu(q) + 1, F.elu(k) + 1
                if keep is not None:
                    k = k * keep.transpose(-1, -2)
                state = torch.einsum("bhsd,bhse->bhde", k, v)
                total = torch.einsum("bhtd,bhd->bht", q, k.sum(2))
                return torch.einsum("bhtd,bhde->bhte", q, state) / (total[..., None] + 1e-2)
            case "einsum":
                scores = torch.einsum("bhtd,bhsd->bhts", q, k) * scale
            case "baddbmm" if bias is not None:
                flat = bias.repeat(q.shape[0], 1, 1)
                scores = torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
                scores, bias = scores.view(*q.shape[:3], -1), None
            case "bmm":
                scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
                scores = scores.view(q.shape[0], q.shape[1], q.shape[2], k.shape[2]) / scale**-1
            case "cosine":
                scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 4
            case _:
                scores = torch.matmul(q * scale, k.transpose(-2, -1))
        if plan.cap is not None:
            scores = plan.cap * torch.tanh(scores / plan.cap)
        if bias is not None:
            scores = scores + bias
        weights = self.weigh(scores, keep)
        if plan.written == "einsum":
            return torch.einsum("bhts,bhsd->bhtd", weights, v)
        return weights @ v

    def weigh(self, scores: Tensor, keep: Tensor | None) -> Tensor:
        """The softmax of what is kept."""
        if keep is None:
            return scores.softmax(-1)
        least = torch.finfo(scores.dtype).min
        match self.plan.masked:
            case "-inf":
                hidden = scores.masked_fill(~keep, float("-inf"))
                return torch.nan_to_num(F.softmax(hidden, -1))
            case "finfo.min":
                return F.softmax(scores.masked_fill(keep == 0, least), dim=-1)
            case "-1e9":
                return torch.where(keep, scores, -1e9).softmax(-1)
            case "added":
                return (scores + (1.0 - keep.to(scores.dtype)) * least).softmax(-1)
            case "added -1e4":
                return (scores + (~keep).to(scores.dtype) * -10000.0).softmax(-1)
            case "where":
                hidden = torch.where(keep, scores, torch.tensor(least, dtype=scores.dtype))
                return hidden.softmax(-1, dtype=torch.float32).to(scores.dtype)
        raised = torch.exp(scores - scores.amax(-1, keepdim=True)) * keep
        return raised / (raised.sum(-1, keepdim=True) + 1e-6)

    def extra_repr(self) -> str:
        return str(self.plan)

"""MiniLM-L6, a sentence encoder, under the names that its published weights have.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
Transformers", NeurIPS 2020; the layers are BERT's. A sentence is the mean of its tokens' last
states, scaled to length 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, INNER, HEADS, LAYERS, WORDS, POSITIONS = 384, 1536, 12, 6, 30522, 512
EPSILON = 1e-12


class Embeddings(nn.Module):
    """Word, place and segment of every token, summed and normed."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(WORDS, WIDTH)
        self.position_embeddings = nn.Embedding(POSITIONS, WIDTH)
        self.token_type_embeddings = nn.Embedding(2, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)
        self.register_buffer("position_ids", torch.arange(POSITIONS).unsqueeze(0))

    def forward(self, ids: Tensor) -> Tensor:
        """[N, T] → [N, T, 384]."""
        places = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.LayerNorm(
            self.word_embeddings(ids) + places + self.token_type_embeddings.weight[0]
        )


class SelfAttention(nn.Module):
    """Scaled dot-product attention of 12 heads; padding is not attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, T, 384]; mask [N, 1, 1, T], true where a token is."""
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """A linear layer, what came before it, and their norm."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inside, WIDTH)
        self.LayerNorm = nn.LayerNorm(WIDTH, EPSILON)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """[N, T, inside], [N, T, 384] → [N, T, 384]."""
        return self.LayerNorm(self.dense(x) + before)


class Layer(nn.Module):
    """One of the six: attention, then two linear layers with GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": Residual(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = Residual(INNER)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[N, T, 384] → [N, T, 384]."""
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class MiniLM(nn.Module):
    """Token ids and mask to sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})  # stored, and not used

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask (1 where a token is), both [N, T] int64 → [N, 384] of length 1."""
        x = self.embeddings(input_ids)
        mask = attention_mask.bool()[:, None, None, :]
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def minilm() -> MiniLM:
    """The module that the published weights belong to: ``--model minilm:minilm``."""
    return MiniLM()

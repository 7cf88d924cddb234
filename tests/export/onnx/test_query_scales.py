"""Attention that is written by hand, in the forms that people write it in."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.onnx.exporter import to_onnx

TOKENS, WIDTH, HEADS = 6, 8, 2
HIDDEN = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
Mask = Callable[[Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """[N, TOKENS, WIDTH] to the same; `scores` has queries and keys of each head, and padding."""

    def __init__(self, scores: Mask) -> None:
        super().__init__()
        self.parts = nn.Linear(WIDTH, 3 * WIDTH)
        self.register_buffer("scale", torch.tensor(0.5))
        self.heads = nn.Parameter(torch.tensor([0.3, 0.7]).view(2, 1, 1))
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x).view(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = self.scores(self, query, key, x[..., 0] > 1.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)


def masked(net, q, k, pad):
    return ((q @ k.mT) / math.sqrt(4)).masked_fill(HIDDEN, -math.inf)


def as_gpts_have_it(net, q, k, pad):
    att = (q @ k.mT) * (1.0 / math.sqrt(k.size(-1)))
    return att.masked_fill(torch.ones(6, 6).tril()[None, None] == 0, -math.inf)


def padded(net, q, k, pad):
    return torch.where(pad[:, None, None], -1e4, (q @ k.mT) * net.scale)


def added(net, q, k, pad):
    return (q @ k.mT).div(2.0) + torch.zeros(6, 6).masked_fill(HIDDEN, -math.inf)


def joined(net, q, k, pad):
    heads = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT) * 0.5
    return heads.masked_fill(HIDDEN, -math.inf).view(-1, HEADS, TOKENS, TOKENS)


def unmasked(net, q, k, pad):
    return (q @ k.mT) / 2.0


def of_each_head(net, q, k, pad):
    return ((q @ k.mT) * net.heads).masked_fill(HIDDEN, -math.inf)


def read_twice(net, q, k, pad):
    products = q @ k.mT
    return (products / 2.0).masked_fill(HIDDEN, -math.inf) + products.tanh()


def changed_later(net, q, k, pad):
    queries = q.clone()
    products = queries @ k.mT
    queries.mul_(3.0)
    return (products / 2.0).masked_fill(HIDDEN, -math.inf) + queries.mean()


def export(net: nn.Module, path: Path) -> onnx.ModelProto:
    x = torch.randn(2, TOKENS, WIDTH)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    return onnx.load(path)


@pytest.mark.thorough
@pytest.mark.parametrize("scores", [masked, as_gpts_have_it, padded, added, joined])
def test_queries_are_scaled_in_place_of_masked_scores(scores: Mask, tmp_path: Path) -> None:
    check(scores, tmp_path, "the mask")


@pytest.mark.thorough
@pytest.mark.parametrize("scores", [unmasked, of_each_head, read_twice, changed_later])
def test_other_scores_keep_their_scale(scores: Mask, tmp_path: Path) -> None:
    check(scores, tmp_path, "a scale")


def check(scores: Mask, tmp_path: Path, expected: str) -> None:
    """Holds answers against float64, and what reads the product of queries and keys."""
    net = Attention(scores).eval()
    graph = export(net, tmp_path / "m.onnx").graph
    x = torch.randn(3, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"x": x.numpy()})
    exact = net.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    products = [node.output[0] for node in graph.node if node.op_type == "MatMul"]
    (first, *_) = [name for name in products if "softmax" not in name][-2:]
    readers = {node.op_type for node in graph.node if first in node.input}
    assert bool(readers & {"Mul", "Div"}) == (expected == "a scale"), readers

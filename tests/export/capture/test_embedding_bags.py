"""Bags of equal size are what torch's own kernel makes of them; others are left to it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.capture.embedding_bags import EqualBags
from export.capture.program import capture
from export.capture.replaced_calls import ReplacedCalls
from export.onnx.exporter import to_onnx

IDS = torch.tensor([[3, 1, 4], [1, 5, 1], [1, 1, 1], [0, 2, 6]])


def draw_weight() -> Tensor:
    return torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 1, -6])
def test_bags_are_reduced_as_torchs_kernel_does(mode: str, padding: int | None) -> None:
    weight = draw_weight()
    expected = functional.embedding_bag(IDS, weight, mode=mode, padding_idx=padding)
    with ReplacedCalls(EqualBags()):
        found = functional.embedding_bag(IDS, weight, mode=mode, padding_idx=padding)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("padding", [None, 1])
def test_bags_with_a_share_for_each_sample_are_summed_as_torchs_kernel_does(
    padding: int | None,
) -> None:
    weight, shares = draw_weight(), torch.rand(IDS.shape) - 0.3
    options: dict[str, Any] = {"mode": "sum", "padding_idx": padding}
    expected = functional.embedding_bag(IDS, weight, per_sample_weights=shares, **options)
    with ReplacedCalls(EqualBags()):
        found = functional.embedding_bag(IDS, weight, per_sample_weights=shares, **options)
    torch.testing.assert_close(found, expected)


def test_offsets_and_renormalized_weights_are_left_to_torch() -> None:
    weight, flat = draw_weight(), IDS.flatten()
    with ReplacedCalls(EqualBags()):
        ragged = functional.embedding_bag(flat, weight, torch.tensor([0, 2, 5]), mode="mean")
        normed = functional.embedding_bag(IDS, weight.clone(), max_norm=1.0)
    bounds = [(0, 2), (2, 5), (5, 12)]
    expected = torch.stack([weight[flat[start:end]].mean(0) for start, end in bounds])
    torch.testing.assert_close(ragged, expected)
    short = weight / weight.norm(dim=1, keepdim=True).clamp(min=1.0)
    torch.testing.assert_close(normed, short[IDS].mean(1), rtol=1e-4, atol=1e-5)


class Ranker(nn.Module):
    def __init__(self, mode: str, padding: int | None) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 5, mode=mode, padding_idx=padding)
        self.head = nn.Linear(5, 2)

    def forward(self, history: Tensor) -> Tensor:
        out: Tensor = self.head(self.bag(history))
        return out


@pytest.mark.parametrize(("mode", "padding"), [("mean", None), ("sum", 0), ("max", 3)])
def test_an_exported_bag_takes_any_batch_and_has_no_loop(
    mode: str, padding: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Ranker(mode, padding).eval()
    program = capture(model, {"history": IDS[:2]}, keyword=True, dynamic_batch=True)
    exported = to_onnx(
        program, tmp_path / "m.onnx", input_names=["history"], output_names=["output"]
    )
    kinds = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert not kinds & {"Loop", "If", "SequenceEmpty", "ConcatFromSequence"}
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for ids in (IDS[:1], IDS, IDS.repeat(5, 1)):
        (found,) = session.run(None, {"history": ids.numpy()})
        np.testing.assert_allclose(found, model(ids).detach().numpy(), rtol=1e-5, atol=1e-6)

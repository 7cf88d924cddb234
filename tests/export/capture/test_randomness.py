"""A model that is random when it runs is said to be that, where, and is not called a bad export."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export import export_model
from export.capture.randomness import find_draw
from export.capture.signature import describe_call
from export.errors import InputError

FEEDS = {"x": torch.randn(2, 8, generator=torch.Generator().manual_seed(0))}


class Layer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def make_net(head: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), head, nn.Linear(8, 3)).eval()


def refuse(net: nn.Module, workdir: Path) -> str:
    signature = describe_call(net, FEEDS, keyword=False, dynamic_batch=True)
    with pytest.raises(InputError) as raised:
        export_model(net, FEEDS, workdir, signature=signature, static_batch=False, opset=20)
    assert raised.value.exit_code == 2
    return str(raised.value)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda x: F.dropout(x), "F.dropout(x)"),
        (lambda x: x + torch.rand(8), "torch.rand(8)"),
        (lambda x: x * torch.randn_like(x), "torch.randn_like(x)"),
        (lambda x: x[:, torch.randperm(8)], "torch.randperm(8)"),
    ],
)
def test_a_random_model_is_named_by_module_and_line(
    function: Callable[[Tensor], Tensor], line: str, tmp_path: Path
) -> None:
    said = refuse(make_net(Layer(function)), tmp_path)
    assert "The model itself is random" in said
    assert "at '1' (test_randomness.py, line " in said
    assert line in said
    assert "training=self.training" in said
    assert "exported model" not in said


@pytest.mark.parametrize(
    "net", [make_net(Layer(lambda x: x * random.random())), make_net(Counting())]
)
def test_what_changes_without_a_draw_of_torch_is_told_apart(net: nn.Module, tmp_path: Path) -> None:
    said = refuse(net, tmp_path)
    assert "gives other answers on another run" in said
    assert "a buffer that forward changes" in said


@pytest.mark.parametrize(
    "head", [nn.Dropout(0.5), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5), nn.RReLU()]
)
def test_layers_that_are_random_in_training_alone_draw_nothing(head: nn.Module) -> None:
    net = make_net(head)
    signature = describe_call(net, FEEDS, keyword=False, dynamic_batch=True)
    assert find_draw(net, FEEDS, signature) is None

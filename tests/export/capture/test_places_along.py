"""Values at places along an axis, of any batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export.capture.places_along import PlacesAlong
from export.capture.program import capture
from export.capture.replaced_calls import ReplacedCalls


@pytest.mark.parametrize(
    ("shape", "places", "axis"),
    [
        ((3, 5, 4), (3, 2, 4), 1),
        ((3, 5, 4), (1, 2, 4), -2),
        ((1, 5, 1), (3, 2, 4), 1),
        ((3, 5, 4), (3, 1, 1), -1),
        ((3, 5, 4), (1, 1, 6), 2),
    ],
)
def test_both_are_stretched_as_numpy_does(shape, places, axis):
    rng = np.random.default_rng(0)
    value = rng.standard_normal(shape)
    chosen = rng.integers(0, shape[axis], places)
    exact = np.take_along_axis(value, chosen, axis)
    given = torch.from_numpy(value), torch.from_numpy(chosen), axis
    with ReplacedCalls(PlacesAlong()):
        for found in (torch.take_along_dim(*given), given[0].take_along_dim(*given[1:])):
            np.testing.assert_array_equal(found.numpy(), exact)


def test_without_an_axis_values_lie_in_a_row():
    value, places = torch.arange(12.0).reshape(3, 4), torch.tensor([[11, 0], [5, 5]])
    with ReplacedCalls(PlacesAlong()):
        found = torch.take_along_dim(value, places)
    assert found.tolist() == [11.0, 0.0, 5.0, 5.0]


class Taken(nn.Module):
    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(x) * 2


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": lambda x: torch.take_along_dim(x, x.mean(-1, keepdim=True).argsort(1), 1),
    "method": lambda x: x.take_along_dim(x[..., :1].argsort(1), dim=-2),
    "by name": lambda x: torch.take_along_dim(input=x, indices=x[..., :1].argsort(1), dim=1),
    "fewer": lambda x: torch.take_along_dim(x, x[..., :1].argsort(1)[:, :2], 1),
    "of one channel": lambda x: torch.take_along_dim(x[..., :1], x.argsort(1), 1),
    "alike": lambda x: torch.take_along_dim(x, x.argsort(2), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_batch_is_captured(form):
    net = Taken(FORMS[form])
    program = capture(net, {"x": torch.randn(2, 5, 3)}, keyword=False, dynamic_batch=True)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 3, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=0)

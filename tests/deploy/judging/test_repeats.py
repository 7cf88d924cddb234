"""A model that draws random numbers, or that a call changes, is refused or told of."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.checking import CheckPlan
from deploy.judging.repeats import check_repeats
from export.capture.signature import describe_call
from export.errors import InputError

PLAN = CheckPlan()


class Head(nn.Module):
    """A linear layer, and a function of its answers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function = nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Drifting(nn.Module):
    """Takes the mean of all that it was ever given away, by the smallest of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("missing", torch.full((2,), torch.nan))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.99999 * self.mean + 0.00001 * x.mean(0)
        return self.linear(x - self.mean)


def samples(count: int = 200) -> Dataset:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return Dataset({"x": ArrayRows(x, x.dtype)}, None, "made.npz", named=True)


def look(module: nn.Module, count: int = 200) -> tuple[str, ...]:
    module.eval()
    signature = describe_call(module, {"x": torch.zeros(2, 4)}, keyword=False, dynamic_batch=True)
    return check_repeats(module, signature, samples(count), PLAN)


def test_a_number_that_reaches_few_answers_is_found_on_all_of_the_data() -> None:
    torch.manual_seed(1)
    with pytest.raises(InputError) as raised:
        look(Head(lambda y: y + 3.0 * (torch.rand(len(y), 1) < 0.02)))
    said = str(raised.value)
    assert "The model itself is random, also in eval mode: on a second run samples " in said
    assert "of made.npz have other answers. It draws random numbers with aten.rand" in said
    assert "test_repeats.py, line " in said


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_what_python_and_numpy_draw_is_found(draw: Callable[[], float]) -> None:
    random.seed(1)
    np.random.seed(1)
    name = "numpy.random" if draw is np.random.random else "random"
    with pytest.raises(InputError, match=rf"It draws random numbers with {name}\. No engine"):
        look(Head(lambda y: y + (3.0 if draw() < 0.5 else 0.0)))


class Own(nn.Module):
    """Draws from a generator that it has itself, as numpy's documentation advises."""

    def __init__(self, generator: Any, draw: Callable[[Any], float]) -> None:
        super().__init__()
        self.rng, self.draw = generator, draw

    def forward(self, y: Tensor) -> Tensor:
        return y + (3.0 if self.draw(self.rng) < 0.5 else 0.0)


OWN: dict[str, tuple[Any, Callable[[Any], float]]] = {
    "numpy": (np.random.default_rng(0), lambda rng: rng.random()),
    "numpy of old": (np.random.RandomState(0), lambda rng: rng.rand()),
    "python": (random.Random(0), lambda rng: rng.random()),
    "torch": (torch.Generator(), lambda rng: float(torch.rand((), generator=rng))),
}


@pytest.mark.parametrize("kind", OWN)
def test_what_a_model_draws_from_a_generator_of_its_own_is_found(kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 3), Own(*OWN[kind]))
    drawn = "random numbers with aten.rand.gen" if kind == "torch" else "its generator '1.rng'"
    with pytest.raises(InputError, match=drawn):
        look(net)
    net[1].draw = lambda rng: 0.0
    assert look(net) == ()


def test_numbers_that_reach_no_answer_are_told_of() -> None:
    (said,) = look(Head(lambda y: y + 0 * torch.randn_like(y)))
    assert said.startswith("The model draws random numbers with aten.randn_like")
    assert "Its answers to 200 samples were the same on two runs" in said


def test_a_buffer_that_a_call_changes_is_told_of() -> None:
    (said,) = look(Drifting())
    assert "changes what it holds when it is called (buffer 'mean')" in said


@pytest.mark.parametrize(
    "module",
    [
        Head(torch.relu),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.RReLU()),
        Head(lambda y: y * torch.rand(3, generator=torch.Generator().manual_seed(0))),
    ],
)
def test_of_others_nothing_is_said(module: nn.Module) -> None:
    assert look(module) == ()


def test_data_that_do_not_fill_the_only_batch_are_left_to_the_comparison() -> None:
    module = Head(torch.relu).eval()
    signature = describe_call(module, {"x": torch.zeros(8, 4)}, keyword=False, dynamic_batch=False)
    assert check_repeats(module, signature, samples(3), CheckPlan(static_batch=8)) == ()

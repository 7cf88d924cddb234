"""Parametrized weights are worked out on a copy; what the caller has goes on as it was."""

import copy
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from deploy.config import BuildConfig
from deploy.loading.model_files import prepare_module
from deploy.loading.parametrizations import bake_parametrizations
from deploy.source import open_problem
from export.errors import LoadError


def parametrized_net() -> nn.Module:
    """Four layers, four parametrizations, weights of either shape; takes [N, 3, 9]."""
    torch.manual_seed(3)
    first = parametrizations.weight_norm(nn.Conv1d(3, 5, 3, padding=2, dilation=2))
    second = parametrizations.spectral_norm(nn.ConvTranspose1d(5, 4, 2, stride=2))
    third = parametrizations.orthogonal(nn.Linear(18, 7))
    parametrizations.weight_norm(third, "bias", dim=None)
    net = nn.Sequential(first, nn.Tanh(), second, third, nn.Linear(7, 2))
    return net.eval()


@torch.no_grad()
def test_the_copy_answers_the_same_and_is_plain() -> None:
    module = parametrized_net()
    x = torch.randn(3, 3, 9)
    expected = copy.deepcopy(module)(x)
    copied, notes = prepare_module(module)
    assert torch.equal(copied(x), expected)
    assert not any(parametrize.is_parametrized(part) for part in copied.modules())
    assert [type(part) for part in copied] == [
        nn.Conv1d,
        nn.Tanh,
        nn.ConvTranspose1d,
        nn.Linear,
        nn.Linear,
    ]
    assert {name for name, _ in copied.named_parameters()} == {
        f"{index}.{kind}" for index in (0, 2, 3, 4) for kind in ("weight", "bias")
    }
    assert torch.equal(cloudpickle.loads(cloudpickle.dumps(copied))(x), expected)
    (note,) = notes
    assert "weight by WeightNorm in 1 layer, weight by SpectralNorm in 1 layer" in note


@torch.no_grad()
def test_the_callers_module_stays_parametrized() -> None:
    module = parametrized_net()
    x = torch.randn(3, 3, 9)
    before, keys = module(x), list(module.state_dict())
    prepare_module(module)
    assert list(module.state_dict()) == keys
    assert torch.equal(module(x), before)
    module[0].parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr]
    assert not torch.allclose(module(x), before)


def test_a_module_without_parametrizations_has_no_note() -> None:
    assert bake_parametrizations(nn.Linear(2, 2)) == ()


class Locked(nn.Linear):
    """Can be copied, and cannot be pickled."""

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("cannot pickle 'Locked'")

    def __deepcopy__(self, memo: object) -> "Locked":
        return Locked(self.in_features, self.out_features)


def test_what_cannot_be_pickled_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"Locked cannot be pickled.*--model") as caught:
        open_problem(Locked(2, 2), BuildConfig(inputs=("1x2",)), tmp_path)
    assert "cannot pickle 'Locked'" in str(caught.value)

import numpy as np
import pytest
import torch
from torch import nn

from export.capture.agreement import Extent, expect, find_disagreement, measure_tolerances
from export.capture.amplification import allow_amplified
from export.capture.ladder import export_model
from export.capture.signature import describe_call

STEADY, WILD = 0.0, 1.0


class Doubling(nn.Module):
    """Doubles the angle of each value `turns` times, and so any error, where the flag is set."""

    def __init__(self, turns):
        super().__init__()
        self.turns = turns
        self.mix = nn.Linear(32, 32)

    def forward(self, x, wild):
        steady = torch.tanh(self.mix(x))
        y = steady
        for _ in range(self.turns):
            y = 1 - 2 * y * y
        return torch.where(wild > 0.5, y, steady)


def make_case(turns, flags):
    torch.manual_seed(0)
    net = Doubling(turns).eval()
    feeds = {"x": torch.randn(len(flags), 32), "wild": torch.tensor(flags)[:, None]}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    tolerances = measure_tolerances(net, feeds, signature, len(flags))
    expected = expect(net, feeds, signature, extent=Extent(len(flags)), tolerances=tolerances)
    exact = net.double()(feeds["x"].double(), feeds["wild"].double()).detach().numpy()
    return net.float(), signature, expected, exact


@pytest.mark.parametrize(("turns", "flags"), [(13, [WILD, WILD]), (40, [STEADY, WILD])])
def test_what_rounding_makes_of_a_sample_is_no_mistake(turns, flags):
    """The exact answers in place of those of float32: another rounding, and nothing else."""
    net, signature, expected, exact = make_case(turns, flags)
    assert find_disagreement(expected, {"output": exact}) is not None
    allowed = allow_amplified(net, signature, expected)
    assert find_disagreement(allowed, {"output": exact}) is None


@pytest.mark.parametrize(("turns", "flags"), [(13, [WILD, WILD]), (40, [STEADY, WILD])])
@pytest.mark.parametrize(
    "change",
    [lambda y: y[::-1], lambda y: y * 0.98, lambda y: np.full_like(y, np.nan), lambda y: 0 * y],
    ids=["swapped", "scaled", "NaN", "zero"],
)
def test_what_is_wrong_still_shows(turns, flags, change):
    net, signature, expected, exact = make_case(turns, flags)
    allowed = allow_amplified(net, signature, expected)
    assert find_disagreement(allowed, {"output": change(exact)}) is not None


def test_nan_shows_in_a_sample_that_proves_nothing_else():
    net, signature, expected, exact = make_case(40, [STEADY, WILD])
    allowed = allow_amplified(net, signature, expected)
    exact[1, 0] = np.nan
    assert find_disagreement(allowed, {"output": exact}) is not None


def test_where_no_sample_proves_anything_the_common_tolerance_stands():
    net, signature, expected, exact = make_case(40, [WILD, WILD])
    allowed = allow_amplified(net, signature, expected)
    found = find_disagreement(allowed, {"output": exact})
    assert found is not None
    assert "the model itself loses" in found  # the export need not be what is wrong


def test_what_the_model_does_not_lose_is_not_said_to_be_lost():
    net, signature, expected, exact = make_case(0, [STEADY, STEADY])
    allowed = allow_amplified(net, signature, expected)
    found = find_disagreement(allowed, {"output": exact * 1.1})
    assert found is not None
    assert "itself" not in found


def test_network_that_magnifies_rounding_keeps_its_dynamic_batch(tmp_path):
    net = nn.Sequential(nn.Linear(64, 64), *[nn.Sequential(_Turn()) for _ in range(13)]).eval()
    torch.manual_seed(0)
    feeds = {"x": torch.randn(2, 64)}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    exported = export_model(net, feeds, tmp_path, signature=signature, static_batch=False, opset=20)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo", True)


class _Turn(nn.Module):
    def forward(self, x):
        return torch.sin(3.0 * x)

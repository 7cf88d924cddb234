import copy

import numpy as np
import pytest
import torch
from torch import nn

from export.capture.agreement import (
    Extent,
    expect,
    find_disagreement,
    measure_tolerances,
    run_onnx,
)
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


class WithLoss(nn.Module):
    """Logits, and beside them how far they are from the labels: one number of the whole batch."""

    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.scale = nn.Linear(64, 10), scale

    def forward(self, x, labels):
        logits = self.head(x) * self.scale
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def make_loss_case(scale):
    """A net that knows its labels, by a lead that makes the loss small."""
    net = WithLoss(scale).eval()
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    feeds = {"x": x, "labels": net.head(x).argmax(1)}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    tolerances = measure_tolerances(net, feeds, signature, 2)
    expected = expect(net, feeds, signature, extent=Extent(2), tolerances=tolerances)
    return net, feeds, signature, expected


@pytest.mark.parametrize("scale", [10, 1000])
def test_a_small_loss_beside_logits_is_exported(scale, tmp_path):
    net, feeds, signature, _ = make_loss_case(scale)
    exported = export_model(net, feeds, tmp_path, signature=signature, static_batch=False, opset=20)
    assert (exported.rung, exported.dynamic_batch) == ("dynamo", True)
    found = run_onnx(exported.onnx, {name: value.numpy() for name, value in feeds.items()})
    wide = copy.deepcopy(net).double()(feeds["x"].double(), feeds["labels"])
    assert found["loss"] == pytest.approx(wide["loss"].item(), abs=1e-6 * scale)


@pytest.mark.parametrize("scale", [1, 10, 30])
@pytest.mark.parametrize("change", [lambda y: 2 * y, lambda y: 0 * y, lambda y: y + 1e-2])
def test_a_loss_that_is_wrong_shows(scale, change):
    net, _, signature, expected = make_loss_case(scale)
    allowed = allow_amplified(net, signature, expected)
    outputs = {**expected.outputs, "loss": change(expected.outputs["loss"])}
    assert "'loss'" in (find_disagreement(allowed, outputs) or "")
    assert find_disagreement(allowed, expected.outputs) is None


def test_a_loss_of_nothing_must_be_a_number_still():
    net, _, signature, expected = make_loss_case(1000)
    allowed = allow_amplified(net, signature, expected)
    outputs = {**expected.outputs, "loss": np.array(np.nan)}
    assert "'loss'" in (find_disagreement(allowed, outputs) or "")
    outputs = {**expected.outputs, "logits": expected.outputs["logits"][::-1]}
    assert "'logits'" in (find_disagreement(allowed, outputs) or "")

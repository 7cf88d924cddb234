"""Where no exporter takes a model, the message says what to change in it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import export_model
from export.capture.program import capture
from export.capture.remedies import suggest_remedies, warn_of_one_way
from export.capture.signature import describe_call
from export.errors import ExportError


class Switch(nn.Module):
    """Doubles what it is given if any of it is negative."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool((x < 0).any().item()) else x


def test_a_way_that_hangs_on_the_value_of_a_tensor_is_to_be_taken_in_the_graph() -> None:
    with pytest.raises(ExportError) as caught:
        capture(Switch(), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)
    assert "torch.where" in suggest_remedies(Switch(), str(caught.value))


def test_a_file_that_holds_one_way_alone_is_told_of(tmp_path: Path) -> None:
    feeds = {"x": torch.rand(2, 3)}  # never negative: the other way is in no sample
    for module, told in ((Switch(), True), (nn.Sequential(nn.Linear(3, 2)), False)):
        signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
        exported = export_model(
            module, feeds, tmp_path, signature=signature, static_batch=False, opset=20
        )
        warning = warn_of_one_way(exported.rung, [(a.error, a.place) for a in exported.attempts])
        assert (warning is not None) == told
        if warning is not None:
            assert "torch.where" in warning
            assert "forward (test_remedies.py, line 20: return x * 2 if bool((x < 0)" in warning
        assert exported.rung == ("torchscript" if told else "dynamo")


def test_the_place_is_that_of_the_way_that_met_the_value() -> None:
    refusals = [
        ("an axis is a constant", " at 'a'"),
        ("data-dependent", ""),
        ("data-dependent", " at 'b'"),
    ]
    assert "forward at 'b' goes on" in str(warn_of_one_way("torchscript", refusals))
    assert "forward goes on" in str(warn_of_one_way("torchscript", refusals[:2]))
    assert warn_of_one_way("torchscript", refusals[:1]) is None
    assert warn_of_one_way("dynamo-static", refusals) is None


def test_of_a_reason_that_is_not_known_nothing_is_said() -> None:
    assert suggest_remedies(nn.Linear(2, 2), "RuntimeError: no kernel") == ""


class Projected(nn.Module):
    """A recurrent layer whose hidden state is narrower than its cell."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, proj_size=3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps: Tensor = self.rnn(x)[0]
        return steps


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("static", [False, True])
def test_an_lstm_with_a_projection_is_named_and_no_batch_size_is_asked_for(
    static: bool, tmp_path: Path
) -> None:
    module, feeds = Projected().eval(), {"x": torch.randn(2, 3, 4)}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=not static)
    with pytest.raises(ExportError, match=r"no projection, as rnn has \(proj_size\)") as caught:
        export_model(module, feeds, tmp_path, signature=signature, static_batch=static, opset=20)
    assert "--static-batch" not in str(caught.value)


def test_an_lstm_without_a_projection_is_not_named() -> None:
    assert suggest_remedies(nn.Sequential(nn.LSTM(4, 8)), "RuntimeError: no kernel") == ""


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)


class Length(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Tangent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).tan().real


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("module", "dtype"),
    [(Spectrum(), torch.float32), (Length(), torch.complex64), (Tangent(), torch.float32)],
)
def test_complex_values_where_none_may_be_are_to_become_pairs(
    module: nn.Module, dtype: torch.dtype, tmp_path: Path
) -> None:
    feeds = {"x": torch.randn(2, 5, dtype=dtype)}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
    with pytest.raises(ExportError, match=r"torch\.view_as_real"):
        export_model(module, feeds, tmp_path, signature=signature, static_batch=False, opset=20)

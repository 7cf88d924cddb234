"""Signals out of spectra by short times, of open length or of odd frames."""

import copy

import pytest
import torch
from torch import Tensor, nn

from export.artifacts import SizeRange, TensorSpec
from export.capture.open_signals import OpenSignals
from export.capture.program import capture
from export.capture.replaced_calls import ReplacedCalls


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ODD = {
    "thirds": {"hop_length": 5, "window": torch.hann_window(15)},
    "normalized": {"hop_length": 4, "window": torch.hann_window(15), "normalized": True},
    "short window": {"win_length": 9, "window": torch.hamming_window(9)},
    "box": {"center": False},
    "cut": {"hop_length": 5, "window": torch.hann_window(15), "length": 31},
    "filled": {"hop_length": 5, "window": torch.hann_window(15), "length": 60},
}


@pytest.mark.filterwarnings("ignore:A window was not", "ignore:The length of signal is shorter")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("batch", [(), (1,), (3,)], ids=["alone", "one", "three"])
def test_odd_frames_make_the_same_signal(name, batch):
    spectrum = torch.view_as_complex(draw(*batch, 8, 9, 2))
    exact = torch.istft(spectrum.to(torch.complex128), 15, **_widen(ODD[name]))
    with ReplacedCalls(OpenSignals()):
        for found in (torch.istft(spectrum, 15, **ODD[name]), spectrum.istft(15, **ODD[name])):
            assert found.shape == exact.shape
            torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def _widen(how: dict[str, object]) -> dict[str, object]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in how.items()}


class Enhancer(nn.Module):
    """Returns as many values as it is given."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.window = nn.Buffer(torch.hann_window(size))

    def forward(self, x: Tensor) -> Tensor:
        how = (self.size, self.hop, self.size, self.window)
        spectrum = torch.stft(x, *how, return_complex=True)
        louder = spectrum * (1 + spectrum.abs())
        return torch.istft(louder, *how, length=x.shape[-1])


@pytest.mark.parametrize(("size", "hop"), [(16, 4), (15, 4), (16, 5)])
def test_a_network_returns_as_many_values_as_it_is_given(size, hop):
    net = Enhancer(size, hop)
    sizes = TensorSpec("x", ("batch", "length"), "float32", {"length": SizeRange(20, 64, 200)})
    program = capture(net, {"x": draw(2, 64)}, keyword=False, dynamic_batch=True, inputs=[sizes])
    for batch, length in ((1, 20), (2, 64), (3, 103), (1, 200)):
        x = draw(batch, length, seed=length)
        found = program.module()(x)
        assert found.shape == x.shape
        exact = copy.deepcopy(net).double()(x.double())
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)

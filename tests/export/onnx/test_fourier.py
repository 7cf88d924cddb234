"""Fourier transforms as products, and spectra by short times as convolutions."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from versions import since

from deploy.candidates.schemes import choose_scheme
from deploy.engines.base import EngineSpec
from deploy.engines.process import EngineProcess
from export.artifacts import OnnxModel, SizeRange, TensorSpec
from export.capture.program import capture
from export.onnx.exporter import contain_noise, to_onnx
from export.onnx.graph import FIXED
from export.onnx.preparation import prepare_program
from export.onnx.wave_products import split
from export.onnx.waves import make_signal, make_spectrum
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8

fft, as_complex = torch.fft, torch.view_as_complex

LENGTHENED = since("torch", "2.13", "fills no sound of istft up to a length")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        result = self.function(x)
        return torch.view_as_real(result.resolve_conj()) if result.is_complex() else result


def prepare(net: nn.Module, x: Tensor) -> tuple[nn.Module, set[str]]:
    """What is given to the exporter, as a module, and the names of its operators."""
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    with contain_noise():
        program = prepare_program(program, opset=20)
    return program.module(), {str(node.target) for node in program.graph.nodes}


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_matrices_transform_as_sums_of_waves_do(size):
    x = torch.view_as_complex(draw(3, size, 2).double())
    parts = torch.view_as_real(x).flatten(-2)
    for forward, exact in ((True, fft.fft(x)), (False, fft.ifft(x, norm="forward"))):
        found = (parts @ make_spectrum(size, size, forward=forward)).unflatten(-1, (size, 2))
        torch.testing.assert_close(torch.view_as_complex(found), exact)
    for bins in range(1, size + 3):  # those beyond the half count nothing
        half = torch.view_as_real(torch.view_as_complex(draw(3, bins, 2).double()))
        exact = fft.irfft(torch.view_as_complex(half), size, norm="forward")
        torch.testing.assert_close(half.flatten(-2) @ make_signal(bins, size), exact)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rfft": lambda x: fft.rfft(x),
    "rfft ortho": lambda x: fft.rfft(x, norm="ortho"),
    "rfft cut": lambda x: fft.rfft(x, n=2, dim=1, norm="forward"),
    "rfft filled": lambda x: fft.rfft(x, n=11, dim=-2),
    "rfft2": lambda x: fft.rfft2(x, norm="ortho"),
    "rfft2 axes": lambda x: fft.rfft2(x, s=(6, -1), dim=(3, 1)),
    "rfftn": lambda x: fft.rfftn(x, s=(4, 9, 2)),
    "fft": lambda x: fft.fft(x, dim=1),
    "fft2": lambda x: fft.fft2(x, norm="forward"),
    "fftn": lambda x: fft.fftn(x, dim=(1, 2, 3)),
    "ifft of a signal": lambda x: fft.ifft(x),
    "mixing": lambda x: fft.fft(fft.fft(x, dim=-1), dim=-2).real,
    "of a spectrum: fft": lambda x: fft.fft(as_complex(x), n=9, dim=2),
    "of a spectrum: ifft": lambda x: fft.ifft(as_complex(x), norm="forward"),
    "of a spectrum: ifft2": lambda x: fft.ifft2(as_complex(x), s=(5, 5)),
    "of a spectrum: ifftn": lambda x: fft.ifftn(as_complex(x), dim=(1, 3), norm="ortho"),
    "of a spectrum: irfft": lambda x: fft.irfft(as_complex(x)),
    "of a spectrum: irfft odd": lambda x: fft.irfft(as_complex(x), n=7, norm="ortho"),
    "of a spectrum: irfft longer": lambda x: fft.irfft(as_complex(x), n=12, dim=1),
    "of a spectrum: irfft2": lambda x: fft.irfft2(as_complex(x), s=(6, 5), dim=(1, 2)),
    "of a spectrum: irfftn": lambda x: fft.irfftn(as_complex(x), dim=(1, 2, 3), norm="forward"),
    "frequencies": lambda x: x * fft.fftfreq(4, 0.5)[:, None] * fft.rfftfreq(3) + fft.fftfreq(2),
    "filter": lambda x: fft.irfft2(fft.rfft2(x[..., 0]) * as_complex(x)[..., :3], s=(6, 4)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_products_that_answer_as_torch_does(name):
    net, shape = Applied(TRANSFORMS[name]), (3, 6, 4, 2)
    prepared, operators = prepare(net, draw(2, *shape))
    assert not any("fft" in operator for operator in operators)
    for batch in (1, 3):
        x = draw(batch, *shape, seed=batch)
        exact = net(x.double())
        found = prepared(x)
        assert found.shape == exact.shape
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-5)


def test_equal_transforms_share_their_matrix():
    there_and_back = Applied(lambda x: fft.ifft(fft.fft(fft.ifft(fft.fft(x)))).real)
    prepared, _ = prepare(there_and_back, draw(2, 3, 6))
    sizes = sorted(tuple(value.shape) for value in prepared.state_dict().values())
    assert sizes == [(6, 12), (12, 12), (12, 12)]  # of a signal, there, and back
    x = draw(2, 3, 6, seed=1)
    torch.testing.assert_close(prepared(x), x)


LONG: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "rfft": (lambda x: fft.rfft(x), (2, 3, 1024)),
    "rfft all": (lambda x: fft.fft(x, dim=1, norm="ortho"), (2, 405, 3)),
    "rfft2": (lambda x: fft.rfft2(x, s=(7, 441)), (2, 3, 7, 430)),
    "fft": (lambda x: fft.fft(as_complex(x), dim=1), (2, 512, 3, 2)),
    "ifft": (lambda x: fft.ifft(as_complex(x), norm="ortho"), (2, 2025, 2)),
    "irfft": (lambda x: fft.irfft(as_complex(x)), (2, 3, 201, 2)),
    "irfft odd": (lambda x: fft.irfft(as_complex(x), n=405, dim=1), (2, 203, 3, 2)),
    "irfft filled": (lambda x: fft.irfft(as_complex(x), n=512, norm="forward"), (2, 203, 2)),
    "irfft cut": (lambda x: fft.irfft(as_complex(x), n=400), (2, 300, 2)),
    "convolution": (lambda x: fft.irfft(fft.rfft(x) * fft.rfft(x.flip(1)), n=600), (2, 600)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", LONG)
def test_long_transforms_are_two_products_that_answer_as_torch_does(name):
    function, shape = LONG[name]
    net = Applied(function)
    prepared, operators = prepare(net, draw(*shape))
    assert not any("fft" in operator for operator in operators)
    largest = max(value.numel() for value in prepared.state_dict().values())
    assert largest <= 8 * 2025  # that of one product would have 400 squared
    for batch in (1, 3):
        x = draw(batch, *shape[1:], seed=batch)
        exact = net(x.double())
        found = prepared(x)
        assert found.shape == exact.shape
        torch.testing.assert_close(
            found.double(), exact, rtol=0, atol=1e-6 * float(exact.abs().max())
        )


def test_two_products_are_taken_where_they_are_less_work():
    taken = {size: split(size) for size in (256, 400, 407, 1009, 1024, 2 * 367, 4096, 65536)}
    assert {size for size, factors in taken.items() if factors} == {400, 407, 1024, 4096, 65536}
    assert taken[400] == (20, 20)
    assert taken[407] == (11, 37)
    assert taken[1024] == (32, 32)


@pytest.mark.parametrize(("size", "real"), [(8191, True), (2053, False), (2**17, True)])
def test_long_transforms_without_fitting_factors_are_left(size, real):
    function = (lambda x: fft.rfft(x)) if real else (lambda x: fft.fft(torch.complex(x, x)))
    _, operators = prepare(Applied(function), draw(2, size))
    assert any("_fft_" in operator for operator in operators)


def test_transforms_of_open_sizes_are_left():
    _, operators = prepare(Applied(lambda x: fft.rfft(x, dim=0)), draw(4, 3))
    assert "aten._fft_r2c.default" in operators


HANN, SHORT = torch.hann_window(16), torch.hamming_window(10)
SHORT_TIME = {
    "plain": {"n_fft": 16, "window": HANN},
    "step": {"n_fft": 16, "hop_length": 3, "window": HANN, "normalized": True},
    "short window": {"n_fft": 16, "win_length": 10, "window": SHORT, "center": False},
    "short box": {"n_fft": 16, "hop_length": 4, "win_length": 14},
    "both sides": {"n_fft": 16, "window": HANN, "onesided": False},
    "edges": {"n_fft": 16, "window": HANN, "pad_mode": "constant"},
}
HANN_400, SHORT_400 = torch.hann_window(400), torch.hamming_window(300)
LONG_FRAMES = {
    "quarters": {"n_fft": 400, "window": HANN_400},
    "no quarters": {"n_fft": 400, "hop_length": 160, "window": HANN_400, "normalized": True},
    "one after another": {"n_fft": 400, "hop_length": 400, "onesided": False},
    "with gaps": {"n_fft": 400, "hop_length": 450, "win_length": 300, "window": SHORT_400},
    "steps of five": {"n_fft": 400, "hop_length": 5, "window": HANN_400, "center": False},
}


class Heard(nn.Module):
    """Spectra by short times of sounds, each one or all of a batch."""

    def __init__(self, how: dict[str, object]) -> None:
        super().__init__()
        window = how.get("window")
        self.window = nn.Buffer(window.clone()) if isinstance(window, Tensor) else None
        self.how = {name: value for name, value in how.items() if name != "window"}

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, window=self.window, return_complex=True, **self.how)
        return torch.view_as_real(spectrum)


class Said(Heard):
    """Sounds from spectra."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(x)
        how = {name: value for name, value in self.how.items() if name != "pad_mode"}
        return torch.istft(spectrum, window=self.window, **how)


@pytest.mark.filterwarnings("ignore:A window was not provided")
@pytest.mark.parametrize("name", [*SHORT_TIME, "odd"])
def test_spectra_by_short_times_are_convolutions_that_answer_as_torch_does(name):
    net = Heard(SHORT_TIME.get(name, {"n_fft": 15, "hop_length": 5}))
    prepared, operators = prepare(net, draw(2, 50))
    assert "aten.stft.default" not in operators
    for batch in (1, 3):
        x = draw(batch, 50, seed=batch)
        exact = copy.deepcopy(net).double()(x.double())
        torch.testing.assert_close(prepared(x).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:A window was not provided")
@pytest.mark.parametrize("name", LONG_FRAMES)
def test_long_frames_are_cut_out_and_transformed_by_two_products(name):
    net = Heard(LONG_FRAMES[name])
    prepared, operators = prepare(net, draw(2, 1234))
    assert "aten.stft.default" not in operators
    assert ("aten.conv1d.default" in operators) == (name == "steps of five")
    for batch in (1, 3):
        x = draw(batch, 1234, seed=batch)
        exact = copy.deepcopy(net).double()(x.double())
        found = prepared(x)
        assert found.shape == exact.shape
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:A window was not provided")
@pytest.mark.parametrize(("size", "hop", "left"), [(2048, 32, True), (2048, 64, False)])
def test_long_frames_in_many_small_steps_have_no_matrix_of_their_own(size, hop, left):
    prepared, operators = prepare(Heard({"n_fft": size, "hop_length": hop}), draw(2, size))
    assert ("aten.stft.default" in operators) == left
    assert all(value.numel() <= 8 * size for value in prepared.state_dict().values())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:A window was not", "ignore:The length of signal is shorter")
@pytest.mark.parametrize("length", [None, 900, pytest.param(1500, marks=LENGTHENED)])
@pytest.mark.parametrize("name", ["quarters", "no quarters", "one after another"])
def test_sounds_from_long_frames_are_summed_from_two_products(name, length):
    how = LONG_FRAMES[name] | {"length": length}
    net = Said(how)
    bins = 400 if how.get("onesided") is False else 201
    frames = 1 + 1234 // how.get("hop_length", 100)
    prepared, operators = prepare(net, draw(2, bins, frames, 2))
    assert not {"aten.istft.default", "aten._fft_c2r.default"} & operators
    assert max(value.numel() for value in prepared.state_dict().values()) <= 2 * 40 * 20
    for batch in (1, 3):
        x = draw(batch, bins, frames, 2, seed=batch)
        exact = copy.deepcopy(net).double()(x.double()).squeeze(0)
        found = prepared(x).squeeze(0)
        assert found.shape == exact.shape
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:A window was not", "ignore:The length of signal is shorter")
@pytest.mark.parametrize("length", [None, 40, pytest.param(60, marks=LENGTHENED)])
@pytest.mark.parametrize("name", ["plain", "step", "both sides"])
def test_sounds_from_spectra_are_convolutions_that_answer_as_torch_does(name, length):
    how = SHORT_TIME[name] | {"length": length}
    net = Said(how)
    size = how["n_fft"]
    bins = size if how.get("onesided") is False else size // 2 + 1
    hop = how.get("hop_length", size // 4)
    frames = 1 + 50 // hop
    prepared, operators = prepare(net, draw(2, bins, frames, 2))
    assert "aten.istft.default" not in operators
    for batch in (1, 3):
        x = draw(batch, bins, frames, 2, seed=batch)
        exact = copy.deepcopy(net).double()(x.double())
        torch.testing.assert_close(prepared(x).double(), exact, rtol=1e-4, atol=1e-5)


class Spectrogram(nn.Module):
    """What a network of sounds begins with, and what one of spectra may have in the middle."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.hop = size, size // 4
        bins = size // 2 + 1
        self.window = nn.Buffer(torch.hann_window(size))
        self.conv = nn.Conv1d(bins, 8, 3, padding=1)
        self.back = nn.Conv1d(8, 2 * bins, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        how = (self.size, self.hop)
        spectrum = torch.stft(x, *how, window=self.window, return_complex=True)
        loud = torch.log1p(spectrum.abs())
        parts = self.back(F.relu(self.conv(loud))).unflatten(1, (2, -1))
        mask = torch.complex(parts[:, 0], parts[:, 1])
        return torch.istft(spectrum * mask, *how, window=self.window, length=x.shape[1])


def _export(net: nn.Module, x: Tensor, path: Path) -> OnnxModel:
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    return to_onnx(program, path, input_names=["x"], output_names=["y"])


@pytest.mark.thorough
@pytest.mark.parametrize("size", [40, 400])
def test_both_engines_hear_and_say_what_torch_does_and_int8_leaves_the_waves(size, tmp_path):
    torch.manual_seed(0)
    net, length = Spectrogram(size).eval(), 5 * size
    model = _export(net, draw(2, length), tmp_path / "m.onnx")
    kinds = Counter(node.op_type for node in onnx.load(model.path).graph.node)
    assert kinds["Conv"] == (3 if size == 40 else 2)
    assert not {"STFT", "DFT", "Loop", "ScatterND"} & kinds.keys()
    session = onnxruntime.InferenceSession(model.path)
    with EngineProcess(EngineSpec("openvino", "fp32", str(model.path), 1)) as engine:
        for batch in (1, 3):
            x = draw(batch, length, seed=batch)
            exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
            for found in (session.run(None, {"x": x.numpy()})[0], engine({"x": x.numpy()})["y"]):
                np.testing.assert_allclose(found, exact, atol=2e-5 * np.abs(exact).max())
    waves = _list_waves(model.path)
    assert len(waves) >= 2
    ranges = calibrate(model, [{"x": draw(8, length, seed=5).numpy()}])
    for target in ("onnxruntime", "openvino"):
        path = tmp_path / f"{target}.onnx"
        quantize_int8(model, ranges, choose_scheme(target), path)
        assert _list_waves(path) == waves
        kinds = Counter(item.data_type for item in onnx.load(path).graph.initializer)
        assert kinds[onnx.TensorProto.INT8] >= 2  # both trained layers


def _list_waves(path: Path) -> set[str]:
    initializers = onnx.load(path).graph.initializer
    floats = {item.name for item in initializers if item.data_type == onnx.TensorProto.FLOAT}
    return {name for name in floats if name.startswith(FIXED)}


class GlobalFilter(nn.Module):
    """A layer of GFNet, which views what comes back in the order that torch gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(5, 3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        images = x.view(x.shape[0], 5, 5, 8)
        spectrum = fft.rfft2(images, dim=(1, 2), norm="ortho") * as_complex(self.weight)
        turned = as_complex(torch.view_as_real(spectrum)).view(x.shape[0], 5, 3, 2, 4)
        spectrum = turned.flatten(-2)
        return fft.irfft2(spectrum, s=(5, 5), dim=(1, 2), norm="ortho").view(x.shape)


@pytest.mark.thorough
def test_what_comes_back_is_viewed_as_torch_orders_it(tmp_path):
    net = GlobalFilter()
    program = capture(net, {"x": draw(2, 25, 8)}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = draw(batch, 25, 8, seed=batch)
        exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_spectra_of_float64_are_left_since_onnx_runtime_convolves_no_doubles(tmp_path):
    net = Heard({"n_fft": 16, "window": HANN}).double()
    x = draw(2, 50).double()
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, net(x).numpy(), rtol=1e-9, atol=1e-12)


class LongConvolution(nn.Module):
    """A convolution as long as the signal, through spectra of both; and two transforms besides."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(draw(3, 50))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        kernel = fft.rfft(self.kernel[:, :length], n=2 * length)
        long = fft.irfft(fft.rfft(x, n=2 * length) * kernel, n=2 * length)[..., :length]
        rough = fft.rfft2(x, norm="ortho") * (1 + 1j)  # neither end of it is real
        return long + fft.irfft2(rough, s=(3, length), norm="ortho")


class Loudness(nn.Module):
    """What is heard in long frames of which none begins where another ends."""

    def __init__(self) -> None:
        super().__init__()
        self.window = nn.Buffer(torch.hann_window(400))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x.flatten(1), 400, 150, window=self.window, return_complex=True)
        return torch.log1p(spectrum.abs())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("net", "rows", "lengths"),
    [
        pytest.param(LongConvolution(), 3, (4, 12, 39, 40), id="convolution"),
        pytest.param(
            Loudness(),
            1,
            (400, 800, 1111, 4000),
            id="loudness",
            marks=since("torch", "2.13", "divides no open length"),
        ),
    ],
)
def test_an_open_number_of_values_is_transformed(net, rows, lengths, tmp_path):
    known = SizeRange(lengths[0], lengths[1], lengths[-1])
    sizes = TensorSpec("x", ("batch", rows, "length"), "float32", {"length": known})
    x = draw(2, rows, lengths[1])
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True, inputs=[sizes])
    axes = {"x": {2: "length"}}
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"], axes=axes)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch, length in zip((1, 2, 3, 1), lengths, strict=True):
        x = draw(batch, rows, length, seed=length)
        exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())

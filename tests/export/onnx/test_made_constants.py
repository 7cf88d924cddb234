"""What forward makes by operators that the exporter has no function for, out of constants."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.fusion import fuse_program
from export.onnx.exporter import to_onnx

SIZE = 16
WINDOWS = (
    *(torch.bartlett_window, torch.blackman_window, torch.hamming_window, torch.hann_window),
    torch.kaiser_window,
)
MADE: dict[str, Callable[[], Tensor]] = {
    **{w.__name__: (lambda window=w: window(SIZE)) for w in WINDOWS},
    **{f"whole {w.__name__}": (lambda window=w: window(SIZE, False)) for w in WINDOWS},
    "hamming of others": lambda: torch.hamming_window(SIZE, True, 0.6, 0.3),
    "kaiser of another": lambda: torch.kaiser_window(SIZE, False, 8.0),
    "powers": lambda: torch.vander(torch.linspace(0, 1, SIZE))[:, 3],
}
COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "erfinv": lambda weight: torch.erfinv(weight / 4),
    "i0": torch.special.i0,
    "i0e": torch.special.i0e,
    "i1": torch.special.i1,
    "i1e": torch.special.i1e,
    "j0": torch.special.bessel_j0,
    "j1": torch.special.bessel_j1,
    "ndtri": lambda weight: torch.special.ndtri(weight / 4),
    "log_ndtr": torch.special.log_ndtr,
    "zeta": lambda weight: torch.special.zeta(weight + 1, 2.0),
}


class Scaled(nn.Module):
    """Its input times each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(SIZE) * 3 + 0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = [make() for make in MADE.values()]
        made += [compute(self.weight) for compute in COMPUTED.values()]
        return tuple(x * each for each in made)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By name what torch and what the exported model answers."""
    torch.manual_seed(0)
    module, path = Scaled().eval(), tmp_path_factory.mktemp("made") / "model.onnx"
    names = [*MADE, *COMPUTED]
    outputs = [f"y{number}" for number in range(len(names))]
    program = capture(module, {"x": torch.randn(2, SIZE)}, keyword=False, dynamic_batch=True)
    program = fuse_program(program).program
    to_onnx(program, path, input_names=["x"], output_names=outputs, opset=20)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"Mul"}
    x = torch.randn(3, SIZE)
    found = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected = [value.numpy() for value in module(x)]
    return dict(zip(names, zip(expected, found, strict=True), strict=True))


@pytest.mark.parametrize("name", [*MADE, *COMPUTED])
def test_its_value_is_stored(name: str, answers: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    expected, found = answers[name]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_a_spectrum_under_a_hamming_window_that_forward_makes(tmp_path: Path) -> None:
    """The exporter's own has coefficients of ONNX: 25/46 in place of 0.54."""

    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            window = torch.hamming_window(32)
            return torch.stft(x, 32, 16, window=window, return_complex=True).abs()

    module, x = Spectrum().eval(), torch.randn(2, 160)
    program = capture(module, {"x": x}, keyword=False, dynamic_batch=True)
    path = tmp_path / "model.onnx"
    to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, module(x).numpy(), rtol=1e-4, atol=1e-5)

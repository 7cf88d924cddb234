"""Only what adds 0 or multiplies by 1 is dropped from an exported model, not what nearly does."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxscript.rewriter import _matcher
from torch import Tensor, nn

from export.capture.program import capture
from export.onnx.exact_matching import match_exactly
from export.onnx.exporter import to_onnx


class Entropy(nn.Module):
    """Kept from minus infinity by its epsilon alone."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        p = x.relu()
        return p * torch.log(p + self.epsilon)


class Nearly(nn.Module):
    """Each of these is within what onnxscript takes for the identity."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * 1.000005, x / 1.000005, (x * 1e-9 + 1e-9) * 1e9, (x * 1e-9 - 2e-9) * 1e9


def export(module: nn.Module, x: Tensor, path: Path) -> list[np.ndarray]:
    program = capture(module.eval(), {"x": x}, keyword=True, dynamic_batch=True)
    with torch.no_grad():
        outputs = module(x)
    count = 1 if isinstance(outputs, Tensor) else len(outputs)
    names = [f"y{number}" for number in range(count)]
    to_onnx(program, path, input_names=["x"], output_names=names)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(names, {"x": x.numpy()})


@pytest.mark.parametrize("epsilon", [1e-8, 1e-9, 1e-12, 1e-15, 1e-30])
def test_an_epsilon_stays_however_small(epsilon, tmp_path):
    x = torch.tensor([[-1.0, 0.0, 0.5], [2.0, -3.0, 1e-6]])
    (found,) = export(Entropy(epsilon), x, tmp_path / "model.onnx")
    np.testing.assert_allclose(found, Entropy(epsilon)(x).numpy(), rtol=1e-5, atol=1e-7)


def test_factors_and_terms_that_are_nearly_none_stay(tmp_path):
    x = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.25, -4.0]])
    found = export(Nearly(), x, tmp_path / "model.onnx")
    wide = x.double().numpy()
    for ours, expected in zip(
        found, (wide * 1.000005, wide / 1.000005, wide + 1, wide - 2), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_what_does_nothing_is_still_dropped(tmp_path):
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x * 1.0 + 0.0) / 1.0 - 0.0).relu()

    program = capture(Nothing().eval(), {"x": torch.ones(2, 3)}, keyword=True, dynamic_batch=True)
    model = to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    assert [node.op_type for node in onnx.load(model.path).graph.node] == ["Relu"]


def test_the_matcher_is_as_it_was_afterwards():
    before = _matcher.SimplePatternMatcher._match_constant

    def fail():
        assert _matcher.SimplePatternMatcher._match_constant is not before
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), match_exactly():
        fail()
    assert _matcher.SimplePatternMatcher._match_constant is before

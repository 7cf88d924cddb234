"""Complex values as pairs, against torch's own arithmetic."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.onnx.complex.pairs import is_complex
from export.onnx.exporter import contain_noise, to_onnx
from export.onnx.preparation import prepare_program

as_complex = torch.view_as_complex


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CONSTANT = draw(3, 4, seed=7)
ROTATION = torch.polar(torch.ones(3), torch.arange(3.0))
LAYER = torch.polar(CONSTANT[:, :3], CONSTANT[:, 1:])


def write_into(c: Tensor) -> Tensor:
    out = torch.zeros(c.shape[0], 5, 3, dtype=c.dtype)
    out[:, :4, 1:] = c[..., :2] * 2
    out[:, 4] = 1.5
    out[:, 0, 0] = c[:, 1, 1]
    return out


def widen_into(c: Tensor) -> Tensor:
    out = torch.zeros_like(c)
    out[..., 0] += c[..., 1].abs()
    out.mul_(1 + 1j)
    return out


# x: [N, 4, 3, 2]; c: [N, 4, 3] complex of it; r: [N, 4, 3] real
CASES = {
    "as it is": lambda x, c, r: c,
    "parts": lambda x, c, r: c.real * 2 + c.imag,
    "length and angle": lambda x, c, r: c.abs() + c.angle(),
    "of two": lambda x, c, r: torch.complex(r, r.flip(-1)) + torch.polar(r.abs(), r),
    "conjugate": lambda x, c, r: c * c.conj() + torch.conj_physical(c),
    "sum": lambda x, c, r: c + c.flip(1) - torch.sub(c, c.roll(1, -1), alpha=0.5),
    "sum with real": lambda x, c, r: c + r + (r - c) + 2 + c - 1.5,
    "sum that spreads": lambda x, c, r: c + r[:, :1] + (c[:, :1] - r) + ROTATION,
    "what is left": lambda x, c, r: 2 - c + (1j - c) * 2 + torch.rsub(c, c.flip(1)) + (r - 1j),
    "shares of numbers": lambda x, c, r: c / (1 + 2j) + r / 2j + 2 / (c + 3),
    "product": lambda x, c, r: c * c.flip(-1) * ROTATION,
    "product with real": lambda x, c, r: r * c * 0.5 * CONSTANT.T,
    "product with numbers": lambda x, c, r: 1j * r + c * (2 - 1j) + r.cos() * (1 + 1j),
    "quotient": lambda x, c, r: c / (c.flip(-1) + 3) + c / (r.abs() + 1) + c / 2,
    "negative": lambda x, c, r: -c,
    "power": lambda x, c, r: torch.exp(c * 0.3) + torch.exp(1j * r) + c**2 + c.square(),
    "roots": lambda x, c, r: c.sqrt() + c**-0.5 + c.pow(3) + c**2.0,
    "logarithm": lambda x, c, r: c.log() * (1 - 1j),
    "gathered": lambda x, c, r: (
        c.gather(1, r.argsort(1)[:, :2]) + c.gather(-1, r.argsort(-1))[:, :2]
    ),
    "sums over axes": lambda x, c, r: c.sum(-1) + c.mean(1).sum(-1, keepdim=True) + c.sum(),
    "kept axes": lambda x, c, r: c.sum((1, 2), keepdim=True) * c.mean(-1, keepdim=True),
    "matrices": lambda x, c, r: c @ c.transpose(-1, -2),
    "constant matrix": lambda x, c, r: c @ torch.complex(CONSTANT, CONSTANT.flip(0)),
    "einsum": lambda x, c, r: torch.einsum("bij,bkj->bik", c, c * r),
    "inverse": lambda x, c, r: 1 / (c + 3) + torch.reciprocal(c + r - 4),
    "layer": lambda x, c, r: (
        torch.nn.functional.linear(c, LAYER, ROTATION) + torch.nn.functional.linear(c, LAYER)
    ),
    "hidden": lambda x, c, r: c.masked_fill(r > 0, 0) + c.masked_fill(r[:, :1] < 0, 2 - 1j),
    "choice with real": lambda x, c, r: (
        torch.where(r > 0, c, 0) + torch.where(r > 0, r, c) + torch.where(r[:1] > 0, 1j, c[:, :1])
    ),
    "running sums": lambda x, c, r: c.cumsum(-1) + c.cumsum(1),
    "double precision": lambda x, c, r: torch.zeros(5, 4, 3, dtype=torch.cdouble)[:1] + c * 1,
    "choice": lambda x, c, r: torch.where(r > 0, c, c.flip(1)),
    "shapes": lambda x, c, r: (
        c.reshape(-1, 2, 6).permute(0, 2, 1).transpose(-1, 1).flatten(1).unflatten(-1, (3, 4))
    ),
    "axes": lambda x, c, r: c.unsqueeze(-1).unsqueeze(1).squeeze(-1).squeeze(1) + c[:, None][:, 0],
    "slices": lambda x, c, r: c[:, 1:3, ::2] + c[:, -1:, :2] + c.select(-1, 1)[:, :2, None],
    "pieces": lambda x, c, r: (
        torch.stack([*c.chunk(2, 1)], 1).flatten(1, 2)
        + torch.cat([part * number for number, part in enumerate(c.split([1, 3], dim=1))], -2)
    ),
    "unbound": lambda x, c, r: torch.stack([part * 2 for part in c.unbind(-1)], -1),
    "repeated": lambda x, c, r: c[:, :1].expand(-1, 4, -1) * c + c.repeat(1, 1, 2)[..., 3:],
    "picked": lambda x, c, r: c.index_select(-1, torch.tensor([2, 0])) + c[:, :, [1, 1]],
    "filled": lambda x, c, r: torch.nn.functional.pad(c, (1, 0, 0, 2)),
    "written into": lambda x, c, r: write_into(c),
    "widened in place": lambda x, c, r: widen_into(c),
    "a real result": lambda x, c, r: torch.view_as_real(c).flatten(-2) * 2,
}


class Applied(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        result = CASES[self.name](x, as_complex(x), x[..., 0] - x[..., 1])
        return torch.view_as_real(result.resolve_conj()) if result.is_complex() else result


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_pairs_are_what_complex_values_are(name):
    net = Applied(name)
    program = capture(net, {"x": draw(2, 4, 3, 2)}, keyword=False, dynamic_batch=True)
    with contain_noise():
        prepared = prepare_program(program, opset=20)
    assert not [node for node in prepared.graph.nodes if is_complex(node)]
    for batch in (1, 3):
        x = draw(batch, 4, 3, 2, seed=batch)
        found, exact = prepared.module()(x), net(x)
        assert found.shape == exact.shape
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


class Operator(nn.Module):
    """A layer of a Fourier neural operator: its weights are complex, and it writes into zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(as_complex(draw(4, 5, 3, 3, 2)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros(x.shape[0], 5, x.shape[2], x.shape[3] // 2 + 1, dtype=torch.cfloat)
        low = spectrum[:, :, :3, :3]
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", low, self.weight)
        return torch.fft.irfft2(out, s=x.shape[-2:])


@pytest.mark.thorough
def test_an_operator_with_complex_weights_is_exported_with_any_batch(tmp_path):
    net = Operator()
    program = capture(net, {"x": draw(2, 4, 10, 7)}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert not {"DFT", "Loop", "If", "Scan"} & kinds
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = draw(batch, 4, 10, 7, seed=batch)
        exact = net(x).detach().numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


class Unusual(nn.Module):
    """An operator between complex values that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.sqrt(as_complex(x) * 2) + 1)


def test_an_operator_without_a_rule_reads_complex_values_as_before():
    x = draw(2, 4, 2)
    program = capture(Unusual(), {"x": x}, keyword=False, dynamic_batch=True)
    with contain_noise():
        prepared = prepare_program(program, opset=20)
    torch.testing.assert_close(prepared.module()(x), Unusual()(x))
    assert "aten.sqrt.default" in {str(node.target) for node in prepared.graph.nodes}

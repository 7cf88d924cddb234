"""Systems of a stored matrix are products with its inverse, whatever they are solved by."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from export.capture.program import capture
from export.onnx.exporter import to_onnx

Solve = Callable[[Tensor, Tensor, Tensor], Tensor]


class System(nn.Module):
    """A covariance and its factor, solved for each of [N, n] by all there are."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        a = torch.randn(rows, rows, generator=torch.Generator().manual_seed(rows))
        self.matrix = nn.Parameter(a @ a.mT / rows + torch.eye(rows))
        self.register_buffer("factor", torch.linalg.cholesky(self.matrix.detach()))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: solve(self.matrix, self.factor, x) for name, solve in SOLVES.items()}


def by_factors(a: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    factors, pivots = torch.linalg.lu_factor(a)
    return torch.linalg.lu_solve(factors, pivots, x, left=False, adjoint=True)


def density(a: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    zero = torch.zeros(factor.shape[-1], dtype=x.dtype)
    return MultivariateNormal(zero, scale_tril=factor, validate_args=False).log_prob(x)


def triangular(*, upper: bool, left: bool, unit: bool) -> Solve:
    def solve(a: Tensor, factor: Tensor, x: Tensor) -> Tensor:
        """Reads one triangle; what stands in the other is none of its business."""
        given = x.mT if left else x
        return torch.linalg.solve_triangular(
            a, given, upper=upper, left=left, unitriangular=unit
        ).sum(0 if left else 1)

    return solve


SOLVES: dict[str, Solve] = {
    "solve": lambda a, factor, x: torch.linalg.solve(a, x.mT).mT,
    "from the right": lambda a, factor, x: torch.linalg.solve(a, x, left=False),
    "of three axes": lambda a, factor, x: torch.linalg.solve(a, x.unsqueeze(-1)).squeeze(-1),
    "of one vector": lambda a, factor, x: torch.linalg.solve(a, x.sum(0)) + 0 * x,
    "by a factor": lambda a, factor, x: torch.cholesky_solve(x.mT, factor).mT,
    "by the upper": lambda a, factor, x: torch.cholesky_solve(x.mT, factor.mT, upper=True).mT,
    "by a factor that is made": lambda a, factor, x: (
        torch.cholesky_solve(x.mT, torch.linalg.cholesky(a)).mT
    ),
    "by pivots": by_factors,
    "density": density,
    **{
        f"triangular {upper} {left} {unit}": triangular(upper=upper, left=left, unit=unit)
        for upper in (False, True)
        for left in (False, True)
        for unit in (False, True)
    },
}


def export(net: nn.Module, x: Tensor, path: Path, *names: str) -> onnx.GraphProto:
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    to_onnx(program, path, input_names=["x"], output_names=names or ["y"], opset=20)
    return onnx.load(path).graph


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_stored_matrices_are_inverted_before(rows: int, tmp_path: Path) -> None:
    net = System(rows).eval()
    names = [f"y{number}" for number in range(len(SOLVES))]
    graph = export(net, torch.randn(2, rows), tmp_path / "m.onnx", *names)
    x = torch.randn(3, rows, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    answers = session.run(None, {"x": x.numpy()})
    for (name, expected), found in zip(net.double()(x.double()).items(), answers, strict=True):
        exact = expected.detach().numpy()
        limit = 2e-6 * np.abs(exact).max()
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=limit, err_msg=name)
    assert len(graph.node) < 60  # of 17 systems


def test_an_inverse_that_float32_has_with_much_error_is_exact(tmp_path: Path) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            turn, _ = torch.linalg.qr(
                torch.randn(20, 20, generator=torch.Generator().manual_seed(2))
            )
            self.matrix = nn.Parameter(turn * torch.logspace(0, -6, 20) @ turn.mT)

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.solve(self.matrix, x.mT).mT

    net = Steep().eval()
    export(net, torch.randn(2, 20), tmp_path / "m.onnx")
    x = torch.randn(3, 20)
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    exact = net.double()(x.double()).detach().numpy()
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6 * np.abs(exact).max())


def test_the_variance_of_a_gaussian_process_stays_one(tmp_path: Path) -> None:
    """b^T K^-1 b is 1 where b is seen, whatever the condition of K, which is a million here."""

    class Process(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            seen = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
            self.register_buffer("seen", seen)
            kernel = self.relate(seen.double()) + 1e-6 * torch.eye(60, dtype=torch.float64)
            self.register_buffer("factor", torch.linalg.cholesky(kernel).to(seen.dtype))

        def relate(self, x: Tensor) -> Tensor:
            return torch.exp(-5.5 * (x[:, None] - self.seen.to(x.dtype)).square().sum(-1))

        def forward(self, x: Tensor) -> Tensor:
            b = self.relate(x).mT
            return (b * torch.cholesky_solve(b, self.factor)).sum(0)

    net = Process().eval()
    export(net, torch.rand(2, 2), tmp_path / "m.onnx")
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(1))
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, net.double()(x.double()).detach(), atol=1e-4, rtol=0)


@pytest.mark.thorough
def test_factors_of_other_types_and_in_a_batch_of_one_are_inverted_too(tmp_path: Path) -> None:
    class Factored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            a = torch.randn(
                4, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(3)
            )
            self.register_buffer("of_complex", a.to(torch.complex64))
            self.register_buffer("of_double", a.real.clone())
            self.register_buffer("one", a.imag[None].float())

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            solved = [
                torch.linalg.lu_solve(*factors, x.mT.to(factors[0].dtype), adjoint=adjoint).mT
                for factors in map(torch.linalg.lu_factor, self.buffers())
                for adjoint in (False, True)
            ]
            return *(torch.view_as_real(each).flatten(1) for each in solved[:2]), *solved[2:]

    net = Factored().eval()
    export(net, torch.randn(2, 4), tmp_path / "m.onnx", *"abcdef")
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for number, found in enumerate(session.run(None, {"x": x.numpy()})):
        stored = list(net.buffers())[number // 2].numpy().astype(np.complex128)
        matrix = np.swapaxes(stored.conj(), -1, -2) if number % 2 else stored
        exact = np.swapaxes(np.linalg.inv(matrix) @ x.numpy().T.astype(np.complex128), -1, -2)
        exact = np.ascontiguousarray(exact)
        exact = exact.view(np.float64) if number < 2 else exact.real
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=2e-6 * np.abs(exact).max())


@pytest.mark.thorough
def test_a_matrix_of_each_sample_is_eliminated(tmp_path: Path) -> None:
    """Several stored matrices as well, where each solves for its own vector."""

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrices = nn.Parameter(torch.randn(2, 4, 4) + 4 * torch.eye(4))

        def forward(self, x: Tensor) -> Tensor:
            own = torch.eye(4) + x.unsqueeze(-1) * 0.1 / math.sqrt(4)
            return torch.linalg.solve(own, x.unsqueeze(-1)).squeeze(-1) + torch.linalg.solve(
                self.matrices, x.unsqueeze(1).expand(-1, 2, -1).unsqueeze(-1)
            ).sum((1, 3))

    net = Several().eval()
    export(net, torch.randn(2, 4), tmp_path / "m.onnx")
    x = torch.randn(3, 4)
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, net.double()(x.double()).detach(), rtol=1e-4, atol=1e-5)

"""Determinants, factors and substitutions: composed where they vary, stored where they do not."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from export.capture.program import capture
from export.errors import ExportError
from export.onnx.composed import matrices
from export.onnx.constant_matrices import store_constant_matrices
from export.onnx.exporter import to_onnx

ROWS = [1, 2, 3, 8]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    a = draw(*shape)
    return a @ a.mT + 0.1 * torch.eye(shape[-1])


def hard(rows: int) -> Tensor:
    """With a pivot that is none, with equal rows, of zeros, of ones, and large."""
    a = draw(6, 2, rows, rows)
    a[0, :, 0, 0] = 0.0
    a[1, :, -1] = a[1, :, 0]
    a[2], a[3] = 0.0, 1.0
    a[4] *= 1e6
    return a


@pytest.mark.parametrize("rows", ROWS)
def test_determinants(rows: int) -> None:
    a = hard(rows)
    exact = torch.linalg.det(a)
    torch.testing.assert_close(matrices.det(a), exact, rtol=1e-9, atol=1e-12)
    regular = a[[0, 4, 5]] if rows > 1 else a[[3, 4, 5]]
    for found, right in zip(matrices.slogdet(regular), torch.linalg.slogdet(regular), strict=True):
        torch.testing.assert_close(found, right)
    torch.testing.assert_close(matrices.logdet(regular), torch.logdet(regular), equal_nan=True)
    sign, logarithm = matrices.slogdet(torch.zeros(rows, rows))
    assert (sign.item(), logarithm.item()) == (0.0, -np.inf)


@pytest.mark.parametrize("rows", ROWS)
def test_one_vector_solves_for_a_batch_of_one(rows: int) -> None:
    a, b = positive(1, rows, rows), draw(rows)
    torch.testing.assert_close(matrices.solve(a, b), torch.linalg.solve(a, b))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("upper", [False, True])
def test_factors_read_the_triangle_that_they_give(rows: int, upper: bool) -> None:
    a = positive(4, rows, rows)
    other = torch.ones_like(a).tril(-1) if upper else torch.ones_like(a).triu(1)
    right = torch.linalg.cholesky(a, upper=upper)
    torch.testing.assert_close(matrices.cholesky(a + 9 * other, upper=upper), right)
    b = draw(4, rows, 3, seed=1)
    found = matrices.cholesky_solve(b, right, upper)
    torch.testing.assert_close(found, torch.cholesky_solve(b, right, upper))


def test_what_has_no_factor_is_not_a_number_and_told_by_its_place() -> None:
    a = positive(3, 4, 4)
    a[1, 2, 2] = -1.0
    factor, place = matrices.cholesky_ex(a)
    right, right_place = torch.linalg.cholesky_ex(a)
    assert place.tolist() == right_place.tolist() == [0, 3, 0]
    assert place.dtype == right_place.dtype
    torch.testing.assert_close(factor[[0, 2]], right[[0, 2]])
    assert factor[1].isnan().any()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
def test_substitution(rows: int, upper: bool, left: bool, unitriangular: bool) -> None:
    a = draw(5, 1, rows, rows) + 2 * torch.eye(rows)
    a = a.triu() if upper else a.tril()
    b = draw(2, rows, 3, seed=1) if left else draw(2, 3, rows, seed=1)
    how = {"upper": upper, "left": left, "unitriangular": unitriangular}
    found = matrices.solve_triangular(a, b, **how)
    torch.testing.assert_close(found, torch.linalg.solve_triangular(a, b, **how))


def test_large_matrices_integers_and_those_without_rows_are_left() -> None:
    compositions = (matrices.det, matrices.slogdet, matrices.logdet, matrices.cholesky)
    for compose in (*compositions, matrices.cholesky_ex):
        for a in (draw(9, 9), torch.ones(2, 2, dtype=torch.int64), draw(3, 0, 0)):
            assert compose(a) is NotImplemented
    assert matrices.solve_triangular(draw(9, 9), draw(9, 1), upper=True) is NotImplemented
    assert matrices.cholesky_solve(draw(9, 1), draw(9, 9)) is NotImplemented


class Gaussian(nn.Module):
    """Logarithms of densities whose covariance every sample has for itself."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        covariance = x @ x.mT + torch.eye(3)
        factor, wrong = torch.linalg.cholesky_ex(covariance)
        off = torch.linalg.solve_triangular(factor, x[..., :1], upper=False)
        return (
            -0.5 * off.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1) + wrong,
            torch.linalg.slogdet(x[..., :3])[0] * torch.logdet(covariance),
            torch.cholesky_solve(x, factor),
        )


def export(net: nn.Module, x: Tensor, path: Path, *names: str) -> onnxruntime.InferenceSession:
    program = capture(net.eval(), {"x": x}, keyword=False, dynamic_batch=True)
    to_onnx(program, path / "m.onnx", input_names=["x"], output_names=list(names))
    return onnxruntime.InferenceSession(path / "m.onnx")


@pytest.mark.thorough
def test_matrices_of_every_sample_are_exported_with_any_batch(tmp_path: Path) -> None:
    session = export(Gaussian(), draw(2, 3, 5).float(), tmp_path, "a", "b", "c")
    for batch in (1, 3):
        x = draw(batch, 3, 5, seed=batch).float()
        for found, right in zip(
            session.run(None, {"x": x.numpy()}), Gaussian()(x.double()), strict=True
        ):
            np.testing.assert_allclose(found, right.numpy(), rtol=1e-4, atol=1e-4)


class Flow(nn.Module):
    """Steps of a normalizing flow, whose volume changes by determinants of its weights."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.weight = nn.Parameter(draw(12, 12).float() / 4 + torch.eye(12))
        self.turn = parametrizations.orthogonal(nn.Linear(12, 12, bias=False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.make(self.weight)
        volume = torch.linalg.slogdet(self.weight)[1] + x.sum(-1)
        return self.turn(x) @ self.weight, volume * made.sum()


@pytest.mark.parametrize(
    "make",
    [
        torch.inverse,
        torch.linalg.det,
        lambda a: torch.matrix_exp(a - a.mT),
        lambda a: torch.linalg.qr(a)[1].diagonal().abs(),
        lambda a: torch.linalg.cholesky_ex(a @ a.mT)[0],
        lambda a: torch.linalg.solve(torch.eye(12) + a - a.mT, torch.eye(12) - a + a.mT),
        lambda a: torch.linalg.pinv(torch.matrix_exp(a)),  # of what is made so itself
        lambda a: torch.linalg.svd(a).S * torch.linalg.det(a),
    ],
    ids=["inverse", "det", "matrix_exp", "qr", "cholesky", "cayley", "pinv", "svd"],
)
def test_algebra_of_weights_is_stored(make: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    net = Flow(make)
    exact = copy.deepcopy(net).double()
    session = export(net, draw(2, 12).float(), tmp_path, "y", "volume")
    x = draw(3, 12, seed=1).float()
    for found, right in zip(session.run(None, {"x": x.numpy()}), exact(x.double()), strict=True):
        limit = 1e-5 * right.abs().max().item()
        np.testing.assert_allclose(found, right.detach().numpy(), rtol=1e-5, atol=limit)
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    assert len(nodes) < 20  # an elimination of 12 rows would have 200


@pytest.mark.parametrize(
    "make",
    [
        torch.linalg.pinv,
        torch.pinverse,
        lambda w: w.T * torch.linalg.matrix_rank(w),
        lambda w: (torch.linalg.eigh(w @ w.T)[1] * torch.arange(12.0))[:, :9].T,
    ],
    ids=["pinv", "pinverse", "rank", "eigenvectors of nothing"],
)
def test_what_lacks_a_rank_is_stored_as_the_model_has_it(
    make: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    """What float32 rounds to nothing is something in float64, whose inverse is large."""

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter((draw(12, 3) @ draw(3, 9, seed=1)).float())

        def forward(self, x: Tensor) -> Tensor:
            return x @ make(self.weight)

    net = Projection().eval()
    session = export(net, draw(2, 9).float(), tmp_path, "y")
    x = draw(3, 9, seed=2).float()
    right = net(x).detach().numpy()
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * np.abs(right).max())


def test_what_is_no_algebra_is_left_as_it_is() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(draw(4, 4).float())

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.detach() / torch.linalg.vector_norm(self.weight)

    x = draw(2, 4).float()
    program = capture(Detached().eval(), {"x": x}, keyword=False, dynamic_batch=True)
    assert store_constant_matrices(program) is program


def test_large_matrices_of_samples_are_named(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.slogdet(x)[1]

    with pytest.raises(ExportError, match="slogdet"):
        export(Large(), draw(2, 9, 9).float(), tmp_path, "y")

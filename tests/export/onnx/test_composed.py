"""Compositions of operators against the operators themselves."""

import cmath
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.capture.program import capture
from export.onnx.composed import COMPOSITIONS, matrices, order, pairs, scans, scattering
from export.onnx.exporter import to_onnx


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_nan(x: Tensor, seed: int) -> Tensor:
    return x.masked_fill(draw(*x.shape, seed=seed) > 1, math.nan)


TIES = torch.tensor([[2, 1, 2, 3, 3, -1, 3], [0, 0, -5, -5, 1, 1, 0]])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_running_products_and_extremes(size, dim):
    x = draw(size, size, 3)
    torch.testing.assert_close(scans.cumprod(x, dim), x.cumprod(dim))
    for own, theirs in ((scans.cummax, torch.cummax), (scans.cummin, torch.cummin)):
        for found, right in zip(own(x, dim), theirs(x, dim), strict=True):
            assert torch.equal(found, right)


def test_running_extremes_tell_the_last_of_equal_values_and_take_integers():
    for x in (TIES, TIES.float(), TIES.to(torch.int8), TIES > 0):
        for own, theirs in ((scans.cummax, torch.cummax), (scans.cummin, torch.cummin)):
            for found, right in zip(own(x, 1), theirs(x, 1), strict=True):
                assert torch.equal(found, right)
                assert found.dtype == right.dtype


def test_running_products_keep_the_type_that_torch_gives_them():
    for dtype in (None, torch.float32):
        found, right = scans.cumprod(TIES, 1, dtype=dtype), TIES.cumprod(1, dtype=dtype)
        assert torch.equal(found, right)
        assert found.dtype == right.dtype


@pytest.mark.parametrize("x", [draw(4, 6), with_nan(draw(4, 6), 3), TIES])
def test_extremes_of_two_pass_over_what_is_no_number(x):
    y = x.flip(-1) if x is not TIES else TIES.roll(1, 1)
    for own, theirs in ((pairs.fmax, torch.fmax), (pairs.fmin, torch.fmin)):
        torch.testing.assert_close(own(x, y), theirs(x, y), equal_nan=True)


def test_the_third_side():
    x, y = draw(5, 4), draw(4, seed=1)
    torch.testing.assert_close(pairs.hypot(x, y), torch.hypot(x, y))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("rows", [(3, 5), (26, 2)])
@pytest.mark.parametrize("mode", [None, 0, 1, 2])
def test_distances_of_rows(p, rows, mode):
    x, y = draw(2, 1, rows[0], 4), draw(3, rows[1], 4, seed=1)
    if p == 0:
        y[:, 0] = x[0, 0, 0]
    found = pairs.cdist(x, y, p, mode)
    exact = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), ord=p, dim=-1)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("x", [draw(4, 7, 3), draw(1, 6, 2), TIES.unsqueeze(-1).double()])
@pytest.mark.parametrize("keepdim", [True, False])
def test_medians(x, keepdim):
    assert torch.equal(order.median(x), x.median())
    values, places = order.median_along(x, 1, keepdim)
    assert torch.equal(values, x.median(1, keepdim).values)
    gathered = x.gather(1, places if keepdim else places.unsqueeze(1))
    assert torch.equal(gathered if keepdim else gathered.squeeze(1), values)
    for k in (1, 2, x.shape[1]):
        found = order.kthvalue(x, k, 1, keepdim)[0]
        assert torch.equal(found, x.kthvalue(k, 1, keepdim).values)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_places_among_sorted_values(right, dtype):
    bounds = torch.tensor([-2, -1, -1, 0, 3]).to(dtype)
    x = torch.tensor([[-3, -2, -1], [0, 1, 4]]).to(dtype)
    if dtype.is_floating_point:
        x[0, 1] = math.nan
    how = {"right": right, "out_int32": right}
    found, expected = order.searchsorted(bounds, x, **how), torch.searchsorted(bounds, x, **how)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    sides = {"side": "right" if right else "left"}
    rows = torch.stack([bounds, bounds + 1])
    expected = torch.searchsorted(rows, x, **sides)
    assert torch.equal(order.searchsorted(rows, x, **sides), expected)
    mixed = torch.tensor([3, 0, 4, 1, 2])
    unsorted = torch.empty_like(bounds).scatter(0, mixed, bounds)
    expected = torch.searchsorted(unsorted, x, sorter=mixed)
    assert torch.equal(order.searchsorted(unsorted, x, sorter=mixed), expected)


def test_whether_values_are_among_others():
    given = torch.tensor([[3, 1], [0, 0]])
    for invert in (True, False):
        found = order.isin(TIES, given, invert=invert)
        assert torch.equal(found, torch.isin(TIES, given, invert=invert))


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_inverses_and_solutions(rows):
    a = draw(5, 2, rows, rows)
    a[0, :, 0, 0] = 0.0  # a pivot that is none
    a[1] *= 1e6
    if rows == 1:
        a[0] = 2.0
    inverse = matrices.invert(a)
    torch.testing.assert_close(inverse, torch.linalg.inv(a), rtol=1e-7, atol=1e-9)
    b = draw(2, rows, 3, seed=1)
    torch.testing.assert_close(matrices.solve(a, b), torch.linalg.solve(a, b), rtol=1e-7, atol=1e-9)
    vectors = draw(5, 2, rows, seed=2)
    exact = torch.linalg.solve(a, vectors)
    torch.testing.assert_close(matrices.solve(a, vectors), exact, rtol=1e-7, atol=1e-9)


def test_large_systems_and_those_from_the_right_are_left():
    assert matrices.invert(draw(9, 9)) is NotImplemented
    assert matrices.solve(draw(9, 9), draw(9, 1)) is NotImplemented
    assert matrices.solve(draw(3, 3), draw(3, 3), left=False) is NotImplemented


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("include_self", [True, False])
def test_means_by_place(include_self):
    x, source = draw(4, 5), draw(6, 5, seed=1)
    index = torch.tensor([[0, 1, 1, 3, 0], [0, 1, 0, 3, 3], [0, 3, 1, 3, 1]])
    how = {"include_self": include_self}
    exact = x.scatter_reduce(0, index, source, "mean", **how)
    torch.testing.assert_close(scattering.scatter_reduce(x, 0, index, source, "mean", **how), exact)
    found = scattering.scatter_reduce(x, 0, index, source[:3], "amax", **how)
    assert found is NotImplemented
    for reduce in ("mean", "amax", "amin", "prod"):
        rows = torch.tensor([0, 3, 0, 1, 1, 0])
        exact = x.index_reduce(0, rows, source, reduce, **how)
        found = scattering.index_reduce(x, 0, rows, source, reduce, **how)
        torch.testing.assert_close(found, exact)


@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter")
def test_values_put_where_others_are():
    x, source, index = draw(3, 5), draw(3, 5, seed=1), torch.tensor([[0, 1, 1], [4, 0, 0]])
    for reduce in ("add", "multiply"):
        exact = x.scatter(1, index, source, reduce=reduce)
        found = scattering.scatter_in_a_way(x, 1, index, source, reduce=reduce)
        torch.testing.assert_close(found, exact)
        exact = x.scatter(1, index, 1.5, reduce=reduce)
        found = scattering.scatter_one_in_a_way(x, 1, index, 1.5, reduce=reduce)
        torch.testing.assert_close(found, exact)
    places = torch.tensor([[0, 3, 1], [4, 0, 2]])
    assert torch.equal(scattering.scatter(x, 1, places, source), x.scatter(1, places, source))
    exact = x.scatter_add(1, index, source)
    torch.testing.assert_close(scattering.scatter_add(x, 1, index, source), exact)
    exact = x.scatter_reduce(1, index, source, "amin", include_self=False)
    how = {"reduce": "amin", "include_self": False}
    torch.testing.assert_close(scattering.scatter_reduce(x, 1, index, source, **how), exact)
    for function in (scattering.scatter, scattering.scatter_add):
        assert function(x, 1, places, source[:2, :3]) is NotImplemented


class Everything(nn.Module):
    """Each composition once at least, on values that it is defined for."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = x.flatten(0, 0)
        square = x @ x.transpose(-1, -2) + torch.eye(4)
        index = (x > 0).long()
        return (
            torch.cat([x.cumprod(-1), x.cummax(-1)[0], x.cummin(1)[1].float()], -1),
            torch.cat([torch.fmax(x, x.flip(-1)), torch.fmin(x, x.flip(1))], -1),
            torch.cdist(rows, rows * 0.5 + 1) + torch.cdist(x, x + 1, p=1.0),
            torch.hypot(x.median(-1)[0], x.kthvalue(2, -1).values),
            torch.searchsorted(torch.arange(6.0) - 3, x),
            torch.isin(index + index.flip(-1), torch.tensor([0, 2])),
            torch.linalg.solve(square, x)
            + torch.linalg.inv(square) @ x
            + torch.inverse(square) @ x,
            torch.zeros_like(x).scatter_reduce(1, index, x, "mean"),
            torch.zeros_like(x).scatter_add(1, index[:, :2, :3], x) + x.scatter(1, index[:, :1], x),
            x.index_reduce(1, torch.tensor([0, 2, 1, 0]), x, "amax"),
        )


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_all_of_them_are_exported_with_any_batch(tmp_path):
    x, net = draw(2, 4, 6).float(), Everything().eval()
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    names = [f"y{number}" for number in range(len(net(x)))]
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=names)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = draw(batch, 4, 6, seed=batch).float()
        for found, right in zip(session.run(None, {"x": x.numpy()}), net(x.double()), strict=True):
            np.testing.assert_allclose(found, right.numpy(), rtol=1e-4, atol=1e-5)


class Attended(nn.Module):
    """The heads of attention are put side by side where it happens to lay out its answer so."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (2, 3)).transpose(1, 2)
        mask = x[:, None, None, :, 0] > -1
        joined = F.scaled_dot_product_attention(q, q.cos(), q * 0.5, mask).transpose(1, 2)
        return joined.reshape(-1, 6).cumprod(-1).unflatten(0, (-1, 4))


@pytest.mark.thorough
def test_what_was_a_view_is_none_of_another_layout(tmp_path):
    x = draw(2, 4, 6).float()
    program = capture(Attended(), {"x": x}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = draw(batch, 4, 6, seed=batch).float()
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, Attended()(x.double()).numpy(), rtol=1e-4, atol=1e-6)


class Running(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.cumprod(0), *x.cummax(0), x.cummin(0)[0]


def test_running_products_of_an_open_number_of_values(tmp_path):
    program = capture(Running(), {"x": draw(4, 3).float()}, keyword=False, dynamic_batch=True)
    names = ["product", "largest", "place", "least"]
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=names)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 9):
        x = draw(count, 3, seed=count).float()
        for found, right in zip(session.run(None, {"x": x.numpy()}), Running()(x), strict=True):
            np.testing.assert_allclose(found, right.numpy(), rtol=1e-6)


def test_every_composition_is_of_an_operator_that_is_there():
    assert all(isinstance(target, torch._ops.OpOverload) for target in COMPOSITIONS)


class Ranked(nn.Module):
    """Orders of values of which many are equal."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rounded = x.round()
        up = rounded.argsort(dim=1, stable=True)
        down = (rounded > 0).int().argsort(dim=1, descending=True, stable=True)
        values, places = rounded.sort(dim=-1, stable=True, descending=True)
        return up, down, values, places


def test_of_equal_values_the_first_comes_first(tmp_path):
    net = Ranked()
    names = ["up", "down", "values", "places"]
    program = capture(net, {"x": draw(2, 40).float()}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=names)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 3):
        x = draw(batch, 40, seed=batch).float()
        exact = [
            np.argsort(np.round(x.numpy()), 1, kind="stable"),
            np.argsort(-(np.round(x.numpy()) > 0).astype(int), 1, kind="stable"),
            -np.sort(-np.round(x.numpy()), 1, kind="stable"),
            np.argsort(-np.round(x.numpy()), 1, kind="stable"),
        ]
        for found, right in zip(session.run(None, {"x": x.numpy()}), exact, strict=True):
            np.testing.assert_array_equal(found, right)


class Angles(nn.Module):
    """Angles, logarithms and roots of all pairs of numbers, with zeros of either sign."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        root = torch.view_as_real(value.sqrt())
        return torch.atan2(x[:, 1::2], x[:, ::2]), value.log().imag, root


@pytest.mark.thorough
def test_angles_of_zeros_and_of_negative_numbers_are_right_in_a_file(tmp_path):
    numbers = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e-30, -1e-30]
    pairs_of = [(y, x) for x in numbers for y in numbers]
    feed = torch.tensor([[x, y] for y, x in pairs_of]).flatten().expand(2, -1).contiguous()
    program = capture(Angles(), {"x": feed}, keyword=False, dynamic_batch=True)
    to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["a", "b", "c"])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    angle, other, root = (part[0] for part in session.run(None, {"x": feed.numpy()}))
    exact = np.array([math.atan2(y, x) for y, x in pairs_of])
    assert np.abs(angle - exact).max() < 1e-6
    assert np.abs(other - exact).max() < 1e-6
    roots = [cmath.sqrt(complex(x, y)) for y, x in pairs_of]
    assert np.abs(root - [[value.real, value.imag] for value in roots]).max() < 1e-6


@pytest.mark.parametrize("numbers", [draw(3, 1, 5), with_nan(draw(3, 1, 5), 3)])
def test_angles_of_two(numbers):
    torch.testing.assert_close(
        pairs.atan2(numbers, numbers.mT), torch.atan2(numbers, numbers.mT), equal_nan=True
    )

"""Graphs that the exporter would refuse, or write with weights that are computed."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from combinations import combine, sometimes
from torch import Tensor, nn
from torch.nn import functional as F
from versions import since

from deploy.engines.openvino_core import open_core
from export.capture.program import capture
from export.onnx.execute import ExposedModel
from export.onnx.exporter import to_onnx
from export.onnx.preparation import prepare_program
from export.onnx.tensor_types import float_tensors


class Attention(nn.Module):
    def __init__(self, mask: Tensor | None, shape: tuple[int, ...], **options: object) -> None:
        super().__init__()
        self.mask, self.shape, self.options = mask, shape, options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x.reshape(x.shape[0], *self.shape) * factor for factor in (1.0, 0.5, -2.0))
        return F.scaled_dot_product_attention(q, k, v.cos(), self.mask, **self.options)


class Standardized(nn.Conv2d):
    """Weight standardization by F.batch_norm, as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def export(net, x, path, opset=20):
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    names = {"input_names": ["x"], "output_names": ["y"], "opset": opset}
    return onnx.load(to_onnx(program, path / "model.onnx", **names).path)


def assert_same(net, proto, *batches):
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for x in batches:
        (found,) = session.run(None, {"x": x.numpy()})
        exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
        assert found.shape == exact.shape
        assert np.abs(found - exact).max() / np.abs(exact).max() < 1e-5


def make_mask(kind: str) -> Tensor | None:
    rows = torch.arange(6)
    hidden = rows[:, None] >= rows[None, :]
    return {"none": None, "bool": hidden, "float": torch.where(hidden, 0.0, -3.0)}[kind]


@pytest.mark.parametrize(
    ("mask", "shape"),
    combine(["bool", "none", "float"], [(3, 2, 6, 4), (2, 6, 4), (6, 8)], together=1),
)
def test_attention_is_exported_whatever_its_axes(mask, shape, tmp_path):
    """In windows, as Hiera and Twins have it; and in heads, as most have it."""
    net = Attention(make_mask(mask), shape, scale=0.3 if mask == "none" else None).eval()
    torch.manual_seed(0)
    size = int(np.prod(shape))
    proto = export(net, torch.randn(2, size), tmp_path)
    if mask == "float":
        net.mask = net.mask.double()
    assert_same(net, proto, torch.randn(1, size), torch.randn(3, size))


def _hide_all(x: Tensor, kind: str) -> Tensor:
    """A mask of keys, all hidden where a sample begins with -9; or one that is a constant."""
    rows = torch.arange(6)
    if kind == "constant":
        return rows[:, None] > rows[None, :]
    hidden = x[:, None, None, :6] < -3
    if kind == "bool":
        return ~hidden
    return torch.zeros_like(hidden, dtype=x.dtype).masked_fill(hidden, -math.inf)


class Masked(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        q = x.reshape(-1, 2, 6, 4)
        return F.scaled_dot_product_attention(q, q * 0.5, q.cos(), _hide_all(x, self.kind))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "opset"),
    [
        ("bool", 20),
        ("bool", 23),
        ("float", 20),
        ("float", 23),
        ("constant", 20),
        pytest.param("constant", 23, marks=since("onnxruntime", "1.32", "gives it no zeros")),
    ],
)
def test_a_query_that_sees_no_key_gets_zeros_as_torch_has_it(kind, opset, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 48)
    x[1, :6] = -9.0
    net = Masked(kind).eval()
    exact = net(x.double())
    assert (exact[:, :, 0] if kind == "constant" else exact[1]).eq(0).all()
    proto = export(net, x, tmp_path, opset)
    assert_same(net, proto, x, x[:2])
    core = open_core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    model = core.read_model(proto.SerializeToString())
    (ours,) = core.compile_model(model, "CPU")([x.numpy()]).values()
    np.testing.assert_allclose(ours, exact, atol=1e-5)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_no_step_of_a_query_that_sees_no_key_holds_nan(kind, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 48)
    x[1, :6] = -9.0
    export(Masked(kind).eval(), x, tmp_path)
    floats = float_tensors(tmp_path / "model.onnx")
    assert len(floats) > 5
    values = ExposedModel(tmp_path / "model.onnx", floats)({"x": x.numpy()})
    assert not [name for name, value in values.items() if np.isnan(value).any()]


class Grouped(nn.Module):
    """Six heads of queries on as many of keys and of values, or fewer."""

    def __init__(self, keys: int, values: int, kind: str) -> None:
        super().__init__()
        self.keys, self.values, self.kind = keys, values, kind

    def forward(self, x: Tensor) -> Tensor:
        q = x.reshape(x.shape[0], 6, 6, 4)
        mask = None if self.kind in ("none", "causal") else _hide_all(x, self.kind)
        return F.scaled_dot_product_attention(
            q,
            q[:, 6 - self.keys :] * 0.5,
            q[:, : self.values].cos(),
            mask,
            is_causal=self.kind == "causal",
            enable_gqa=True,
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("keys", "values", "kind", "opset"),
    [
        sometimes(3, 3, "none", 20),
        (3, 3, "bool", 20),
        (1, 1, "float", 20),
        sometimes(3, 3, "constant", 20),
        (3, 3, "causal", 20),
        (3, 3, "bool", 23),
        (3, 3, "causal", 23),
        sometimes(6, 6, "bool", 20),
        sometimes(6, 6, "causal", 23),
    ],
)
def test_heads_of_queries_may_share_one_of_keys(keys, values, kind, opset, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(3, 144)
    x[1, :6] = -9.0
    net = Grouped(keys, values, kind).eval()
    proto = export(net, x, tmp_path, opset)
    assert_same(net, proto, x, x[:2], torch.randn(5, 144))


def test_a_constant_mask_that_hides_no_row_costs_no_operator(tmp_path):
    net = Attention(make_mask("bool"), (2, 6, 4)).eval()
    proto = export(net, torch.randn(2, 48), tmp_path)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["Where"] == 1


def test_attention_is_two_products_and_nothing_about_sizes(tmp_path):
    net = Attention(None, (2, 6, 4)).eval()
    proto = export(net, torch.randn(2, 48), tmp_path)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert kinds["MatMul"] == 2
    assert kinds["Softmax"] == kinds["Transpose"] == 1
    assert not {"Shape", "Slice", "Concat", "Sqrt"} & kinds.keys()


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}])
def test_attention_is_one_operator_where_the_opset_has_one(options, tmp_path):
    net = Attention(None, (2, 6, 4), **options).eval()
    proto = export(net, torch.randn(2, 48), tmp_path, opset=23)
    assert "Attention" in {node.op_type for node in proto.graph.node}
    assert "Softmax" not in {node.op_type for node in proto.graph.node}
    assert_same(net, proto, torch.randn(1, 48), torch.randn(3, 48))


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scales_that_the_operator_refuses_are_written_out(scale, tmp_path):
    net = Attention(None, (2, 6, 4), scale=scale).eval()
    proto = export(net, torch.randn(2, 48), tmp_path, opset=23)
    assert_same(net, proto, torch.randn(1, 48), torch.randn(3, 48))


@pytest.mark.thorough
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("shape", [(3, 2, 6, 4), (6, 8)], ids=["5 axes", "3 axes"])
def test_causal_attention_is_exported_whatever_its_axes(shape, opset, tmp_path):
    net = Attention(None, shape, is_causal=True).eval()
    size = int(np.prod(shape))
    proto = export(net, torch.randn(2, size), tmp_path, opset)
    assert_same(net, proto, torch.randn(1, size), torch.randn(3, size))


class Sequences(nn.Module):
    """One sequence, its steps in place of samples: what has no batch at all."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[1:] * 0.5, x[1:].cos(), is_causal=True)


@pytest.mark.thorough
def test_causal_attention_takes_any_number_of_queries_and_keys(tmp_path):
    net = Sequences().eval()
    proto = export(net, torch.randn(4, 8), tmp_path)
    assert_same(net, proto, torch.randn(3, 8), torch.randn(9, 8))


def test_causal_attention_over_four_axes_is_left_to_the_exporter(tmp_path):
    net = Attention(None, (2, 6, 4), is_causal=True).eval()
    program = capture(net, {"x": torch.randn(2, 48)}, keyword=False, dynamic_batch=True)
    assert prepare_program(program, opset=20) is program
    assert_same(net, export(net, torch.randn(2, 48), tmp_path), torch.randn(3, 48))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_computed_from_weights_are_stored(bias, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(Standardized(3, 4, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(4, 2, 1))
    before = copy.deepcopy(net.state_dict())
    proto = export(net.eval(), torch.randn(2, 3, 8, 8), tmp_path)
    assert Counter(node.op_type for node in proto.graph.node) == {"Conv": 2, "Relu": 1}
    assert_same(net, proto, torch.randn(1, 3, 8, 8), torch.randn(3, 3, 8, 8))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.rand(6, 1))

    def forward(self, x):
        weight = self.weight * self.scale
        return F.linear(F.linear(x, weight).relu(), weight) @ self.weight.T + self.scale.sum()


def test_a_computed_weight_of_two_layers_is_stored_once(tmp_path):
    torch.manual_seed(0)
    net = Shared().eval()
    proto = export(net, torch.randn(2, 6), tmp_path)
    matrices = {i.name for i in proto.graph.initializer if list(i.dims) == [6, 6]}
    assert len(matrices) <= 2
    assert "Mul" not in {node.op_type for node in proto.graph.node}
    assert_same(net, proto, torch.randn(1, 6), torch.randn(3, 6))


class MadeKernel(nn.Module):
    """A layer whose weight forward makes, of nothing or of a parameter as well."""

    def __init__(self, filter_by: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.filter_by = filter_by

    def forward(self, x: Tensor) -> Tensor:
        return self.filter_by(x, self.mix)


MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a box": lambda x, _: F.conv2d(x, torch.ones(4, 1, 3, 3) / 9, padding=1, groups=4),
    "one number": lambda x, _: F.conv_transpose2d(x, torch.full((4, 1, 2, 2), 0.3), groups=4),
    "an axis of numbers": lambda x, _: F.linear(x, torch.linspace(0.1, 1, 8).diag()),
    "a bias": lambda x, mix: F.conv1d(x.flatten(2), mix[..., None], torch.arange(4) / 3),
    "a product": lambda x, mix: F.conv2d(x, (torch.ones(4, 4) @ mix)[:, :, None, None]),
    "a convolution": lambda x, mix: F.conv1d(
        x.flatten(2), F.conv1d(torch.ones(4, 4, 5) / 2, mix[..., None])
    ),
    "a product with a sum": lambda x, mix: F.linear(x.flatten(2).mT, mix @ (mix + mix.T)),
    "a quotient of integers": lambda x, mix: F.linear(
        x.flatten(2).mT, mix @ (torch.eye(4, dtype=torch.int64) / 2)
    ),
    "what is resized": lambda x, _: (
        x * F.interpolate(torch.eye(4)[None, None] + 1, scale_factor=2, mode="bilinear")
    ),
}


@pytest.mark.parametrize("made", MADE)
def test_weights_that_forward_makes_are_stored(made: str, tmp_path: Path) -> None:
    net, x = MadeKernel(MADE[made]).eval(), torch.randn(3, 4, 8, 8)
    proto = export(net, x, tmp_path)
    assert not {"Div", "Resize", "ConstantOfShape", "Range"} & {n.op_type for n in proto.graph.node}
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": x.numpy()})
    expected = net(x).detach().numpy()
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-5


class Returned(Shared):
    def forward(self, x):
        weight = self.weight * self.scale
        return F.linear(x, weight * x.mean())


def test_a_weight_that_depends_on_the_data_stays_computed():
    program = capture(
        Returned().eval(), {"x": torch.randn(2, 6)}, keyword=False, dynamic_batch=True
    )
    assert prepare_program(program, opset=20) is program


class Embedded(nn.Module):
    """Position embeddings resized to the size at hand, smoothed on the way down."""

    def __init__(self, *, smooth: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.smooth = smooth
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 7 * 7, 6))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        grid = self.positions.reshape(1, 7, 7, 6).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, tokens.shape[2:], mode="bicubic", antialias=self.smooth)
        return tokens.flatten(2) + grid.flatten(2)


@pytest.mark.parametrize("smooth", [False, True])
def test_resized_constants_are_stored(smooth: bool, tmp_path) -> None:
    net, x = Embedded(smooth=smooth), torch.randn(3, 3, 12, 16)
    proto = export(net, x, tmp_path)
    assert "Resize" not in {node.op_type for node in proto.graph.node}
    assert_same(net, proto, x, x[:1])
    compiled = open_core().compile_model(
        str(tmp_path / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    exact = copy.deepcopy(net).double()(x.double()).detach().numpy()
    assert np.abs(compiled({"x": x.numpy()})[0] - exact).max() / np.abs(exact).max() < 1e-5
    assert [*net.state_dict()] == ["positions", "embed.weight", "embed.bias"]


class ResizedKernel(nn.Module):
    """A kernel made of a resized one: both operators are within the weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(4, 3, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, 2 * F.interpolate(self.kernel, (3, 3), mode="bilinear"))


def test_a_resize_within_a_weight_is_stored_with_it(tmp_path) -> None:
    net, x = ResizedKernel().eval(), torch.randn(2, 3, 9, 9)
    proto = export(net, x, tmp_path)
    assert Counter(node.op_type for node in proto.graph.node) == {"Conv": 1}
    assert_same(net, proto, x, x[:1])


@pytest.mark.parametrize(
    "clamp",
    [
        lambda x: x.clamp(0, 1.5),
        lambda x: torch.clip(x, -0.5, 1),
        lambda x: (x * 1).clamp_(min=-1, max=0.5),
        lambda x: x.clamp(max=1),
    ],
)
def test_a_clamp_between_an_integer_and_a_float_is_exported(clamp, tmp_path):
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return clamp(x)

    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert_same(Clamped(), export(Clamped(), x, tmp_path), x[:1], x)


@pytest.mark.parametrize(
    "split",
    [
        lambda x: x.chunk(1),
        lambda x: x.split(x.shape[0]),
        lambda x: x.split(9, 1),
        lambda x: torch.split_with_sizes(x, [4], 1),
        lambda x: torch.unsafe_chunk(x, 1),
    ],
)
@pytest.mark.parametrize("plain", [False, True], ids=["of a product", "of an input"])
def test_a_split_into_one_part_is_what_it_splits(split, plain, tmp_path):
    """As virtual batches have it, of which there is one in inference."""

    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return split(x)[0] if plain else torch.cat([part.sin() for part in split(x * 2)])

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    proto = export(Split(), x, tmp_path)
    assert "Split" not in {node.op_type for node in proto.graph.node}
    assert_same(Split(), proto, x[:1], x)


@pytest.mark.parametrize(
    ("stack", "axes"),
    combine([torch.hstack, torch.vstack, torch.dstack, torch.column_stack], [0, 1, 2], together=1),
)
def test_stacks_are_concatenations(stack, axes, tmp_path):
    """The exporter's own form is a loop over a sequence, which OpenVINO cannot open."""

    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x[(..., *(0,) * (2 - axes))]
            return stack([x, x.sin(), -x])

    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    proto = export(Stacked(), x, tmp_path)
    kinds = {node.op_type for node in proto.graph.node}
    assert "Concat" in kinds
    assert not any("Sequence" in kind for kind in kinds)
    assert_same(Stacked(), proto, x[:1], x)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=4), (2, 7, 6)),
        (lambda x: F.avg_pool2d(x, (2, 3), 1, (1, 0), False, False, 5), (2, 7, 6)),
        (lambda x: F.avg_pool3d(x, 2, divisor_override=3), (2, 4, 5, 6)),
        (lambda x: F.avg_pool2d(x, 3, 2, 0, True, True, 5), (2, 8, 7)),
        pytest.param(
            lambda x: F.avg_pool2d(x, (2, 1), (3, 2), (1, 0), True, False, 3),
            (2, 8, 7),
            marks=since("onnxruntime", "1.32", "opens no pool with these pads"),
        ),
    ],
)
def test_the_divisor_of_an_average_pool_is_kept(pool, shape, tmp_path):
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return pool(x)

    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert_same(Pooled(), export(Pooled(), x, tmp_path), x[:1], x)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_random_slope_is_its_mean(inplace, tmp_path):
    net = nn.Sequential(nn.Linear(5, 7), nn.RReLU(0.1, 0.5, inplace=inplace)).eval()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    proto = export(net, x, tmp_path)
    assert Counter(node.op_type for node in proto.graph.node) == {"Gemm": 1, "LeakyRelu": 1}
    assert_same(net, proto, x[:1], x)

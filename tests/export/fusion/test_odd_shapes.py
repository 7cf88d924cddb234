"""Layers of shapes that are seldom seen: what merges is right, and what does not is left alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import relative_error
from nets import randomize_norms
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from versions import since

from export import fuse
from export.artifacts import SizeRange, TensorSpec
from export.capture.program import capture, contain_noise
from export.errors import ExportError
from export.fusion import FusionOptions, fuse_program
from export.fusion.batch_norm import BatchNorm
from export.fusion.cost import count_macs
from export.fusion.norms import read_norm

aten = torch.ops.aten


class Net(nn.Module):
    """Calls `function(self, x)` over named members."""

    def __init__(self, function: Callable[..., Tensor], **members: nn.Module | Tensor) -> None:
        super().__init__()
        self._function = function
        for name, member in members.items():
            setattr(self, name, nn.Parameter(member) if isinstance(member, Tensor) else member)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def crop(*sides: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ZeroPad2d(sides), nn.Conv2d(6, 4, 1))


def slice_rows(m: nn.Module, x: Tensor) -> Tensor:
    return m.bn(m.layer(x)[:, :, m.start : m.end].reshape(-1, 6))


def sliced(start: int | None, end: int | None) -> nn.Module:
    net = Net(slice_rows, layer=nn.Linear(5, 6), bn=nn.BatchNorm1d(6))
    net.start, net.end = start, end
    return net


MERGED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a crop that is wider than the kernel": (lambda: crop(-5, -5, -4, -6), (3, 24, 23)),
    "a crop of one side": (lambda: crop(0, -9, 0, -9), (3, 24, 23)),
    "a transposed layer whose padding cuts off all of a small input": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 1, padding=2), nn.BatchNorm2d(4)),
        (3, 8, 9),
    ),
    "the same with one number for all axes, and dilation": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(4, 6, 3, 2, (7,), 1, groups=2, dilation=2), nn.BatchNorm1d(6)
        ),
        (4, 15),
    ),
    "rows of a linear layer, a few of them cut off": (lambda: sliced(1, -2), (3, 6, 5)),
    "rows of a linear layer, from far inside": (lambda: sliced(10, 11), (3, 14, 5)),
    "a linear layer with one bias for all": (
        lambda: Net(
            lambda m, x: m.bn(F.linear(x, m.weight, m.bias)),
            weight=torch.randn(4, 5),
            bias=torch.randn(1),
            bn=nn.BatchNorm1d(4),
        ),
        (5,),
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_it_merges_into_one_layer(name: str) -> None:
    make, shape = MERGED[name]
    torch.manual_seed(0)
    net = randomize_norms(make().eval())
    result = fuse(net, torch.randn(2, *shape))
    assert len(result.fused) == 1
    assert result.skipped == ()
    x = torch.randn(3, *shape)
    assert relative_error(result.module(x), net(x)) < 1e-5


def add_rows(m: nn.Module, x: Tensor) -> Tensor:
    return F.linear(m.layer(x), m.weight, m.bias)


def add_rows_by_hand(m: nn.Module, x: Tensor) -> Tensor:
    return torch.addmm(m.bias, m.layer(x), m.weight.T)


LEFT = {
    "a bias for each sample": (add_rows, (4, 3)),
    "a number for each sample": (add_rows, (4, 1)),
    "a bias for each sample, in a product of matrices": (add_rows_by_hand, (4, 3)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_differs_by_sample_stays(name: str) -> None:
    """The model then takes no other batch than this one."""
    function, shape = LEFT[name]
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.bn(function(m, x)),
        layer=nn.Linear(5, 6),
        weight=torch.randn(3, 6),
        bias=torch.randn(shape),
        bn=nn.BatchNorm1d(3),
    )
    randomize_norms(net.eval())
    result = fuse(net, torch.randn(4, 5))
    assert result.fused == ()
    x = torch.randn(4, 5)
    assert relative_error(result.module(x), net(x)) < 1e-6


def test_a_sum_that_is_scaled_by_a_size_stays() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: torch.add(m.a(x), m.b(x), alpha=x.shape[0]),
        a=nn.Conv2d(3, 3, 3, padding=1),
        b=nn.Conv2d(3, 3, 1),
    )
    result = fuse(net.eval(), torch.randn(2, 3, 6, 7))
    assert [skip.reason for skip in result.skipped] == ["a part of a sum is scaled by a size"]
    for batch in (1, 3):
        x = torch.randn(batch, 3, 6, 7)
        assert relative_error(result.module(x), net(x)) < 1e-6


TOKENS = since("torch", "2.13", "traces no convolution over a length that depends on data")


@pytest.mark.parametrize(
    "last", ["linear", pytest.param("conv", marks=TOKENS), pytest.param("norm", marks=TOKENS)]
)
def test_how_many_tokens_are_looked_at_may_depend_on_the_data(last: str) -> None:
    """Such a size has no number in the graph, and costs are counted for one of 1."""
    torch.manual_seed(0)
    net = {
        "linear": Net(lambda m, x: m.b(m.a(pick(x).mT)), a=nn.Linear(5, 6), b=nn.Linear(6, 4)),
        "conv": Net(lambda m, x: m.b(m.a(pick(x))), a=nn.Conv1d(5, 6, 3), b=nn.Conv1d(6, 4, 1)),
        "norm": Net(lambda m, x: m.b(m.a(pick(x))), a=nn.Conv1d(5, 6, 3), b=nn.BatchNorm1d(6)),
    }[last]
    randomize_norms(net.eval())
    result = fuse(net, torch.randn(2, 5, 40))
    assert len(result.fused) == 1
    for _ in range(2):
        x = torch.randn(3, 5, 40)
        assert relative_error(result.module(x), net(x)) < 1e-5


def pick(x: Tensor) -> Tensor:
    """The positions at which the first value of the first sample is positive."""
    return x[:, :, x[0, 0] > 0]


def test_a_tensor_of_the_model_may_have_the_name_of_a_merged_layer() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: torch.relu(m.a(x) + m.b(x)) * m.merged,
        a=nn.Conv2d(3, 3, 3, padding=1),
        b=nn.Conv2d(3, 3, 1),
        merged=torch.randn(3, 1, 1),
    )
    x = torch.randn(2, 3, 6, 7)
    result = fuse(net.eval(), x)
    assert len(result.fused) == 1
    assert relative_error(result.module(x), net(x)) < 1e-5


@pytest.mark.parametrize("merge_always", [False, True])
def test_a_pool_that_rounds_up_stays_where_sizes_are_dynamic(merge_always: bool) -> None:
    """At even sizes, and the axes have no others, it gives one output more than rounded down."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 2, ceil_mode=True)).eval()
    even = SizeRange(6, 8, 64, 2)
    spec = TensorSpec("x", ("batch", 4, "h", "w"), "float32", {"h": even, "w": even})
    feeds = {"x": torch.randn(2, 4, 8, 8)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True, inputs=(spec,))
    result = fuse_program(program, FusionOptions(merge_always=merge_always))
    module = result.program.module(check_guards=False)
    for sizes in ((6, 10), (8, 8), (12, 6)):
        x = torch.randn(3, 4, *sizes)
        assert relative_error(module(x), net(x)) < 1e-6


def test_a_transposed_convolution_costs_the_same_in_a_decomposed_program() -> None:
    """Each input value meets ``out / groups`` kernels of 3 x 3."""
    net = nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2).eval()
    feeds = {"x": torch.randn(2, 4, 5, 7)}
    program = capture(net, feeds, keyword=False, dynamic_batch=True)
    with contain_noise():
        decomposed = program.run_decompositions()
    expected = [4 * 5 * 7 * (6 // 2) * 3 * 3]
    for form in (program, decomposed):
        assert [count_macs(n) for n in form.graph.nodes if n.op == "call_function"] == expected


def test_a_norm_of_cudnn_names_its_epsilon_otherwise() -> None:
    graph = fx.Graph()
    x, gamma, beta, mean, variance = (graph.placeholder(name) for name in "xgbmv")
    arguments = (x, gamma, beta, mean, variance, False, 0.1, 0.25)
    norm = graph.call_function(aten.cudnn_batch_norm.default, arguments)
    tensors = {gamma: [2.0], beta: [5.0], mean: [3.0], variance: [0.75]}
    found = read_norm(norm, lambda node: torch.tensor(tensors[node]))
    assert isinstance(found, BatchNorm)
    scale, shift = found.scale_and_shift()  # 2 / sqrt(0.75 + 0.25), 5 - 3 * 2
    assert (float(scale), float(shift)) == (2.0, -1.0)


class ConvolvedSizes(TorchDispatchMode):
    """Records the spatial sizes of what is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten.convolution.default and type(args[0]) is Tensor:
            self.seen.add(tuple(args[0].shape[2:]))
        return func(*args, **(kwargs or {}))


def test_kernels_dilated_past_the_map_are_proven_on_the_map_itself() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=36, dilation=36, bias=False), nn.BatchNorm2d(4)
    )
    model = randomize_norms(model).eval()
    x = torch.randn(2, 3, 8, 9)
    with ConvolvedSizes() as convolved:
        result = fuse(model, x)
    assert [fused.kind for fused in result.fused] == ["conv-bn"]
    assert convolved.seen == {(8, 9)}
    exact = model.double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-5


def pool_then_layers(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(m.first(x.mean(0)))


def test_layers_of_a_single_vector_are_left() -> None:
    """A mean over the batch, as networks of sets have it."""
    torch.manual_seed(0)
    net = Net(pool_then_layers, first=nn.Linear(5, 4), second=nn.Linear(4, 3)).eval()
    result = fuse(net, torch.randn(2, 5))
    assert [skip.reason for skip in result.skipped] == ["the channels are not known"]
    x = torch.randn(3, 5)
    assert relative_error(result.module(x), net(x)) < 1e-6


def test_layers_without_a_batch_axis_are_left() -> None:
    """As many rows as channels, so that the one could be taken for the other."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(4, 4, 1) for name in "ab"}
    net = Net(lambda m, x: m.b(m.a(x[0])) + m.a(x[1]), **layers).eval()
    result = fuse(net, torch.randn(2, 4, 4, 6), merge_always=True)
    assert result.fused == ()
    x = torch.randn(3, 4, 4, 6)
    assert relative_error(result.module(x), net(x)) < 1e-6


def convolve_all_channels(m: nn.Module, x: Tensor) -> Tensor:
    some, others = x.split([4, 0], 1)
    return m.point(torch.cat([m.layer(some), others], 1))


EMPTY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "a partial convolution that leaves no channel out": (
        lambda: Net(convolve_all_channels, layer=nn.Conv2d(4, 4, 1), point=nn.Conv2d(4, 3, 1)),
        (4, 5, 6),
        1,
    ),
    "rows of none before a norm": (
        lambda: Net(
            lambda m, x: m.norm(m.layer(x)[:, :, 9:]),
            layer=nn.Conv2d(4, 4, 1),
            norm=nn.BatchNorm2d(4),
        ),
        (4, 5, 6),
        1,
    ),
    "channels from beyond the last": (
        lambda: Net(
            lambda m, x: torch.cat([m.layer(x)[:, 4:], m.point(x)], 1),
            layer=nn.Conv2d(4, 4, 1),
            point=nn.Conv2d(4, 3, 1),
        ),
        (4, 5, 6),
        2,
    ),
    "a sum of layers without outputs": (
        lambda: Net(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(5, 0), b=nn.Linear(5, 0)),
        (5,),
        2,
    ),
    "a layer without outputs before another": (
        lambda: nn.Sequential(nn.Linear(5, 0), nn.Linear(0, 3)),
        (5,),
        2,
    ),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", EMPTY)
def test_channels_may_be_none_at_all(name: str) -> None:
    make, shape, layers = EMPTY[name]
    torch.manual_seed(0)
    net = make().eval()
    result = fuse(net, torch.randn(2, *shape), merge_always=True)
    assert result.certificate.model.layers_after == layers
    x = torch.randn(3, *shape)
    torch.testing.assert_close(result.module(x), net(x))


def test_a_model_without_values_is_told_how_to_get_them() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).to("meta").eval()
    with pytest.raises(ExportError, match=r"0\.weight lies on the meta device.*to_empty"):
        fuse(net, torch.randn(2, 4, 5, 6, device="meta"))

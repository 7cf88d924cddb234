import copy
import io
import warnings

import pytest
import torch
from nets import Net, bottleneck_net, randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

from export import fuse, fuse_program
from export.capture.program import capture


def prepare(module: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    for child in module.modules():
        if hasattr(child, "reset_parameters"):
            child.reset_parameters()
    return randomize_norms(module, seed).eval()


def assert_same_function(module: nn.Module, fused: nn.Module, *inputs: Tensor) -> None:
    """The oracle is the unfused original in float64."""
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(*(x.double() for x in inputs))
        found = fused(*inputs).double()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-6


def reasons(result) -> list[tuple[str, str]]:
    return [(skip.where, skip.reason) for skip in result.skipped]


_NON_LINEAR = "a non-linearity (relu) stands between"
"""Why the residual sums of a ResNet are left."""


BLOCKS = {
    "1d": (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (4, 9)),
    "2d": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), (4, 9, 8)),
    "3d": (nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), (4, 5, 6, 7)),
    "no bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 9, 8)),
    "not affine": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), (4, 9, 8)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2), nn.BatchNorm2d(6), (4, 9, 8)),
    "even kernel": (nn.Conv2d(4, 6, (2, 4), stride=2), nn.BatchNorm2d(6), (4, 9, 8)),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), nn.BatchNorm2d(6), (4, 9, 8)),
    "reflect": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(6),
        (4, 9, 8),
    ),
    "circular": (
        nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular"),
        nn.BatchNorm2d(6),
        (4, 9, 8),
    ),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), (4, 9)),
    "transposed 2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, dilation=2),
        nn.BatchNorm2d(6),
        (4, 5, 4),
    ),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), nn.BatchNorm3d(6), (4, 3, 4, 3)),
    "transposed grouped": (
        nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        (4, 5, 4),
    ),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (4,)),
    "linear no bias": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (4,)),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("batch", [1, 3])
def test_layer_and_norm_become_one_layer(name, batch):
    layer, norm, shape = BLOCKS[name]
    net = prepare(nn.Sequential(copy.deepcopy(layer), copy.deepcopy(norm)))
    result = fuse(net, torch.randn(2, *shape))
    assert [item.paths for item in result.fused] == [("0", "1")]
    assert result.fused[0].error_float64 < 5e-7
    assert result.skipped == ()
    assert_same_function(net, result.module, torch.randn(batch, *shape))


def test_norm_with_variance_near_zero_is_folded_in_float64():
    net = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)))
    net[1].running_var.fill_(1e-10)
    net[1].running_mean.fill_(0.0)
    assert_same_function(net, fuse(net, torch.randn(2, 3, 6, 6)).module, torch.randn(3, 3, 6, 6))


def test_half_precision_keeps_its_dtype():
    net = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    result = fuse(net, torch.randn(2, 3, 6, 6, dtype=torch.bfloat16))
    assert {p.dtype for p in result.module.parameters()} == {torch.bfloat16}
    assert result.fused[0].error_float64 < 1e-12
    assert 1e-5 < result.fused[0].error_float32 < 2e-2


def test_half_precision_that_would_overflow_is_left():
    net = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).half()
    net[1].running_mean.fill_(60000.0)
    net[1].running_var.fill_(1e-4)
    result = fuse(net, torch.randn(2, 3, 6, 6, dtype=torch.float16))
    assert reasons(result) == [("1", "the folded weight does not fit float16")]


def test_dropout_between_layer_and_norm_is_seen_through():
    net = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4)))
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert [item.paths for item in result.fused] == [("0", "2")]
    assert_same_function(net, result.module, torch.randn(3, 3, 6, 6))


CUT = {
    "end": lambda y: y[:, :, :-8],
    "both ends": lambda y: y[:, :, 3:-2],
    "every other": lambda y: y[:, :, 1::2],
    "last": lambda y: y[:, :, -1:],
    "narrow": lambda y: y[:, :, 2:5],
}


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("name", CUT)
def test_slice_of_positions_between_layer_and_norm_is_seen_through(name, stride):
    """As causal convolutions have it: padded at both ends, and cut at one."""
    conv = nn.Conv1d(4, 6, 3, stride, padding=8, dilation=4)
    net = prepare(Net(lambda m, x: m.bn(CUT[name](m.conv(x))), conv=conv, bn=nn.BatchNorm1d(6)))
    x = torch.randn(3, 4, 41)
    result = fuse(net, x)
    assert not any("batch_norm" in str(node.target) for node in result.module.graph.nodes)
    assert_same_function(net, result.module, torch.randn(3, 4, 41))


def test_slice_of_everything_behind_a_linear_layer_is_seen_through():
    net = prepare(Net(lambda m, x: m.bn(m.fc(x)[:, :]), fc=nn.Linear(4, 6), bn=nn.BatchNorm1d(6)))
    x = torch.randn(3, 4)
    result = fuse(net, x)
    assert not any("batch_norm" in str(node.target) for node in result.module.graph.nodes)
    assert_same_function(net, result.module, x)


@pytest.mark.parametrize("join", [lambda y: y.flatten(0, 1), lambda y: y.reshape(-1, 6)])
def test_rows_put_into_one_batch_between_layer_and_norm_are_seen_through(join):
    """As LeViT has it: a batch norm of every token's features."""
    fc, bn = nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)
    net = prepare(Net(lambda m, x: m.bn(join(y := m.fc(x))).reshape_as(y), fc=fc, bn=bn))
    result = fuse(net, torch.randn(2, 5, 4))
    assert [item.paths for item in result.fused] == [("fc", "bn")]
    assert result.skipped == ()
    assert_same_function(net, result.module, torch.randn(3, 5, 4))


@pytest.mark.parametrize(
    "join",
    [lambda y: y.transpose(1, 2).flatten(0, 1), lambda y: y.reshape(-1, 5), lambda y: y[:, 0]],
)
def test_rows_that_are_mixed_or_picked_before_the_norm_are_no_other_function(join):
    norm = nn.BatchNorm1d(join(torch.empty(2, 5, 6)).shape[1])
    net = prepare(Net(lambda m, x: m.bn(join(m.fc(x))), fc=nn.Linear(4, 6), bn=norm))
    x = torch.randn(2, 5, 4)
    assert_same_function(net, fuse(net, x).module, x)


def test_norm_of_a_weight_is_no_norm_of_the_network():
    """Weight standardization by F.batch_norm, as timm writes it."""

    def standardized(m, x):
        flat = m.conv.weight.reshape(1, 4, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return m.bn(F.conv2d(x, weight.reshape_as(m.conv.weight), m.conv.bias)).relu()

    net = prepare(Net(standardized, conv=conv(), bn=nn.BatchNorm2d(4)))
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert result.skipped == ()
    assert not any("batch_norm" in str(node.target) for node in result.module.graph.nodes)
    assert_same_function(net, result.module, torch.randn(3, 3, 6, 6))


@pytest.mark.parametrize(
    "cut", [lambda y: y[:, 1:4], lambda y: y[:, :, :, 1:], lambda y: y[1:]], ids=["c", "w", "n"]
)
def test_slices_in_two_dimensions_are_no_other_function(cut):
    norm = nn.BatchNorm2d(cut(torch.empty(3, 6, 2, 2)).shape[1])
    net = prepare(Net(lambda m, x: m.bn(cut(m.conv(x))), conv=nn.Conv2d(4, 6, 3), bn=norm))
    x = torch.randn(3, 4, 9, 8)
    assert_same_function(net, fuse(net, x).module, x)


def test_decomposed_program_is_folded_as_well():
    net = prepare(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2)))
    x = torch.randn(2, 3, 6, 6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        program = capture(net, {"x": x}, keyword=False, dynamic_batch=True).run_decompositions()
    result = fuse_program(program)
    assert [item.paths for item in result.fused] == [("0", "1")]
    assert not any("norm" in str(node.target) for node in result.program.graph.nodes)
    assert_same_function(net, result.program.module(), torch.randn(3, 3, 6, 6))


def conv(inputs=3, outputs=4, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


MUST_NOT = {
    "output used elsewhere": (
        Net(lambda m, x: m.bn(y := m.conv(x)).relu() + y, conv=conv(), bn=nn.BatchNorm2d(4)),
        "the convolution's output is used elsewhere as well",
    ),
    "no running statistics": (
        Net(
            lambda m, x: m.bn(m.conv(x)),
            conv=conv(),
            bn=nn.BatchNorm2d(4, track_running_stats=False),
        ),
        "batch norm has no running statistics",
    ),
    "computed weight": (
        Net(
            lambda m, x: m.bn(F.conv2d(x, m.conv.weight * x.mean(), m.conv.bias)),
            conv=conv(),
            bn=nn.BatchNorm2d(4),
        ),
        "is computed, not stored",
    ),
    "norm first": (
        Net(lambda m, x: m.conv(m.bn(x)), conv=conv(), bn=nn.BatchNorm2d(3)),
        "the border would change: a bias stands before the padding",
    ),
    "alone": (
        Net(lambda m, x: m.bn(x).relu() + m.conv(x), conv=conv(3, 3), bn=nn.BatchNorm2d(3)),
        "batch norm follows no convolution or linear layer",
    ),
    "linear over the last axis": (
        Net(
            lambda m, x: m.bn(m.linear(x.flatten(2))),
            linear=nn.Linear(36, 3),
            bn=nn.BatchNorm1d(3),
        ),
        "channel mismatch: the linear layer gives a tensor of rank 3",
    ),
    "nonlinearity between": (
        Net(lambda m, x: m.bn(m.conv(x).relu()), conv=conv(), bn=nn.BatchNorm2d(4)),
        "batch norm follows no convolution or linear layer",
    ),
}


@pytest.mark.parametrize("name", MUST_NOT)
def test_what_cannot_be_folded_is_left_with_its_reason(name):
    net, reason = MUST_NOT[name]
    net = prepare(net)
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert result.fused == ()
    assert [found for where, found in reasons(result) if "bn" in where and reason in found]
    assert_same_function(net, result.module, torch.randn(2, 3, 6, 6))


def test_norm_in_training_mode_is_left():
    net = prepare(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    net[1].train()
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert reasons(result) == [("1", "batch norm is in training mode")]


def test_norm_inside_a_branch_is_left():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.cond(
                x.sum() > 0, lambda x: self.bn(self.conv(x)), lambda x: self.conv(x), (x,)
            )

    result = fuse(prepare(Branch()), torch.randn(2, 3, 6, 6))
    assert result.fused == ()
    assert reasons(result) == [("bn", "batch norm stands inside a branch of torch.cond or a loop")]


def test_unbatched_input_is_left():
    net = prepare(Net(lambda m, x: m.bn(m.conv(x)), conv=conv(3, 6), bn=nn.BatchNorm1d(6)))
    result = fuse(net, torch.randn(3, 6, 6))
    assert "channel mismatch: the convolution gives a tensor of rank 3" in reasons(result)[0][1]


def test_weight_shared_by_two_sites_is_folded_for_each():
    net = prepare(
        Net(
            lambda m, x: m.bn1(m.conv(x)).relu() + m.bn2(m.conv(x * 2)).relu() + m.conv(x),
            conv=conv(),
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        )
    )
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert {item.paths for item in result.fused} == {("conv", "bn1"), ("conv", "bn2")}
    assert_same_function(net, result.module, torch.randn(3, 3, 6, 6))
    assert len([name for name, _ in result.module.named_parameters() if "weight" in name]) == 3


def test_tied_weights_and_shared_norm_are_folded_for_each():
    net = prepare(
        Net(
            lambda m, x: m.bn(m.b(m.bn(m.a(x)).relu())),
            a=conv(4, 4),
            b=conv(4, 4),
            bn=nn.BatchNorm2d(4),
        )
    )
    net.b.weight = net.a.weight
    result = fuse(net, torch.randn(2, 4, 6, 6))
    assert [item.paths for item in result.fused] == [("a", "bn"), ("b", "bn")]
    assert_same_function(net, result.module, torch.randn(3, 4, 6, 6))


def test_caller_model_is_not_changed():
    net = bottleneck_net()
    objects = {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()}
    values = copy.deepcopy(net.state_dict())
    result = fuse(net, torch.randn(2, 3, 32, 32))
    for tensor in result.module.parameters():
        tensor.data.zero_()
    assert {name: id(tensor) for name, tensor in net.state_dict(keep_vars=True).items()} == objects
    assert all(torch.equal(net.state_dict()[name], value) for name, value in values.items())
    assert not net.training


def test_program_given_is_not_changed():
    net = bottleneck_net()
    x = torch.randn(2, 3, 32, 32)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    before = str(program.graph), dict(program.state_dict)
    fuse_program(program)
    assert str(program.graph) == before[0]
    assert all(program.state_dict[name] is value for name, value in before[1].items())


def test_bottleneck_net_is_folded_whole_with_the_users_names():
    net = bottleneck_net()
    result = fuse(net, torch.randn(1, 3, 32, 32))
    assert {skip.reason for skip in result.skipped} == {_NON_LINEAR}
    paths = {item.paths for item in result.fused}
    assert len(paths) == 9
    assert ("stages.1.0.conv1", "stages.1.0.bn1") in paths
    assert ("stages.1.0.downsample.0", "stages.1.0.downsample.1") in paths
    assert "stages.1.0.conv1.bias" in dict(result.module.named_parameters())
    assert not any("running" in name for name in result.module.state_dict())
    for batch in (1, 2, 3):
        assert_same_function(net, result.module, torch.randn(batch, 3, 32, 32))


@pytest.mark.thorough
def test_fused_module_trains_copies_and_exports_again():
    net = bottleneck_net()
    module = fuse(net, torch.randn(2, 3, 32, 32)).module
    x = torch.randn(2, 3, 32, 32)
    before = module(x).detach()
    assert module.train().training
    assert torch.equal(module(x).detach(), before)
    assert not module.eval().training
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    with warnings.catch_warnings():  # torch says this of its own pytree specification
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        twin = copy.deepcopy(module)
    assert torch.equal(twin(x).detach(), before)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(x).detach(), before)
    again = fuse(module, x)
    assert again.fused == ()
    assert {skip.reason for skip in again.skipped} == {_NON_LINEAR}
    assert torch.allclose(again.module(x), before, atol=1e-6)


def test_fusing_twice_keeps_paths_by_weight_names():
    module = fuse(prepare(nn.Sequential(conv(), nn.ReLU())), torch.randn(2, 3, 6, 6)).module
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias"]


def test_named_inputs_are_passed_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)

        def forward(self, image, *, scale):
            return self.bn(self.conv(image)) * scale

    net = prepare(Two())
    feeds = {"scale": torch.rand(2, 1, 1, 1), "image": torch.randn(2, 3, 6, 6)}
    module = fuse(net, feeds).module
    torch.testing.assert_close(module(**feeds), net(**feeds), rtol=1e-4, atol=1e-5)


def test_model_that_fixes_its_batch_is_fused_at_that_batch():
    net = prepare(
        Net(lambda m, x: m.bn(m.conv(x)).reshape(2, -1), conv=conv(), bn=nn.BatchNorm2d(4))
    )
    result = fuse(net, torch.randn(2, 3, 6, 6))
    assert len(result.fused) == 1
    assert_same_function(net, result.module, torch.randn(2, 3, 6, 6))


def test_random_state_of_the_caller_is_not_touched():
    net = bottleneck_net()
    x = torch.randn(2, 3, 32, 32)
    before = torch.get_rng_state()
    fuse(net, x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.thorough
def test_resnet50_sized_net_is_fused_in_full():
    net = bottleneck_net((3, 4, 6, 3), 64, 1000)
    program = capture(net, {"x": torch.randn(2, 3, 64, 64)}, keyword=False, dynamic_batch=True)
    assert len(fuse_program(program).fused) == 53

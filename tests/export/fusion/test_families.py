"""Every known family of re-parameterizable blocks becomes what its authors deploy."""

import copy
import functools

import pytest
import torch
from families import (
    FAMILIES,
    Block,
    build,
    count_operators,
    find_layers,
    randomize_far,
    read,
    relative_error,
)
from torch import Tensor, nn

from export import fuse
from export.fusion import FusionResult

pytestmark = pytest.mark.long

LIMIT = 1e-5
NOISE_FACTOR = 4
NOISE_FLOOR = 1e-6


@functools.cache
def fuse_family(name: str) -> tuple[Block, FusionResult]:
    """A family's block and what becomes of it; nobody changes either."""
    block = build(name)
    return block, fuse(block, make_input(name, 2))


@functools.cache
def fuse_in_float64(name: str) -> tuple[Block, FusionResult]:
    block = build(name).double()
    return block, fuse(block, make_input(name, 3).double())


def make_input(name: str, batch: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *FAMILIES[name].shape, generator=generator)


def assert_as_exact_as_eager(
    model: nn.Module, module: nn.Module, x: Tensor, limit: float = LIMIT
) -> None:
    """The oracle is the original in float64; what it loses in float32 is the measure."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        noise = relative_error(model(x), expected)
        error = relative_error(module(x), expected)
    assert error < limit
    assert error <= max(NOISE_FACTOR * noise, NOISE_FLOOR)


@pytest.mark.parametrize("name", FAMILIES)
def test_deploy_form_of_the_test_equals_the_block(name):
    block, x = build(name).double(), make_input(name, 3).double()
    deploy = block.deploy()
    convolutions = [child for child in deploy.modules() if isinstance(child, nn.Conv2d)]
    assert len(convolutions) == FAMILIES[name].convolutions
    numbers = sum(p.numel() for conv in convolutions for p in conv.parameters())
    assert numbers == FAMILIES[name].parameters
    with torch.no_grad():
        assert relative_error(deploy(x), block(x)) < 1e-13


@pytest.mark.parametrize("name", FAMILIES)
def test_block_becomes_its_authors_deploy_form(name):
    block, result = fuse_family(name)
    layers = find_layers(result.module)
    assert len(layers) == FAMILIES[name].convolutions
    assert sum(layer.parameters for layer in layers) == FAMILIES[name].parameters
    deploy = torch.export.export(block.deploy(), (make_input(name, 2).double(),))
    assert count_operators(result.module) == count_operators(deploy.module(check_guards=False))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_block_is_as_exact_as_eager(name, batch):
    block, result = fuse_family(name)
    assert_as_exact_as_eager(block, result.module, make_input(name, batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_evidence_names_the_block_and_its_savings(name):
    block, result = fuse_family(name)
    merged = [item for item in result.fused if item.kind in ("branches", "sequence")]
    assert merged
    paths = {path for path, _ in block.named_modules()}
    for item in result.fused:
        assert item.paths
        assert paths >= set(item.paths)
        assert item.structure
        assert item.macs_after <= item.macs_before
        assert item.parameters_after < item.parameters_before
        assert item.error_float64 < 1e-10
        assert item.error_float32 <= max(NOISE_FACTOR * item.noise_float32, NOISE_FLOOR)


@pytest.mark.parametrize("name", FAMILIES)
def test_kernels_are_those_of_the_deploy_form(name):
    """In float64, channel by channel: a small channel is as right as a large one."""
    block, result = fuse_in_float64(name)
    layers = find_layers(result.module)
    convolutions = [child for child in block.deploy().modules() if isinstance(child, nn.Conv2d)]
    for layer, conv in zip(layers, convolutions, strict=True):
        expected = read(conv)
        assert layer.bias is not None
        assert layer.weight.dtype == torch.float64
        difference = (layer.weight - expected.weight).flatten(1).abs().amax(1)
        assert (difference <= 1e-10 * expected.weight.flatten(1).abs().amax(1)).all()
        assert relative_error(layer.bias, expected.bias) < 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_the_merged_weights_and_the_input(name):
    block, result = fuse_in_float64(name)
    module, deploy, x = result.module, block.deploy(), make_input(name, 3).double()
    gradients = []
    for model in (block, deploy, module):
        leaf = x.clone().requires_grad_()
        result = model(leaf)
        (result * torch.linspace(-1, 2, result.numel()).reshape(result.shape)).sum().backward()
        gradients.append(leaf.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-10
    assert relative_error(gradients[2], gradients[0]) < 1e-10
    convolutions = [child for child in deploy.modules() if isinstance(child, nn.Conv2d)]
    for layer, conv in zip(find_layers(module), convolutions, strict=True):
        assert relative_error(layer.weight.grad, conv.weight.grad) < 1e-10
        assert relative_error(layer.bias.grad, conv.bias.grad) < 1e-10


@pytest.mark.parametrize("name", ["RepVGG", "DBB", "RepMixer", "MobileOne, gated"])
def test_train_and_eval_keep_the_function(name):
    block, x = build(name), make_input(name, 3)
    module = fuse(block, x).module
    before = module(x).detach()
    assert module.train().training
    assert torch.equal(module(x).detach(), before)
    assert not module.eval().training
    assert torch.equal(module(x).detach(), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_callers_block_is_not_changed(name):
    block, result = fuse_family(name)
    fresh = build(name)
    assert block.state_dict().keys() == fresh.state_dict().keys()
    for key, value in fresh.state_dict().items():
        assert value.numpy().tobytes() == block.state_dict()[key].numpy().tobytes()
    assert not block.training
    own = {tensor.data_ptr() for tensor in block.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in result.module.state_dict().values()}


def test_chain_of_blocks_becomes_a_chain_of_convolutions():
    names = ["RepVGG", "DBB", "MobileOne", "RepConv"]
    net = nn.Sequential(*(build(name, seed) for seed, name in enumerate(names)))
    net.insert(0, nn.Conv2d(3, 8, 3, 2, 1))
    x = torch.randn(3, 3, 17, 19)
    result = fuse(net, x)
    assert count_operators(result.module) == {"conv2d": 5, "relu": 3, "silu": 1}
    assert_as_exact_as_eager(net, result.module, x)


def test_blocks_in_sequence_without_activation_stay_apart():
    """Their biases would reach into the border of zeros between them."""
    net = nn.Sequential(build("RepVGG"), build("RepVGG", 1))
    net[0].act = nn.Identity()
    x = make_input("RepVGG", 3)
    result = fuse(net, x)
    assert [layer.weight.shape for layer in find_layers(result.module)] == [(8, 8, 3, 3)] * 2
    assert_as_exact_as_eager(net, result.module, x)


@pytest.mark.parametrize("rank", [1, 3])
def test_branches_merge_in_one_and_three_dimensions(rank):
    conv = getattr(nn, f"Conv{rank}d")
    norm = getattr(nn, f"BatchNorm{rank}d")

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Sequential(conv(6, 6, 3, padding=1, bias=False), norm(6))
            self.point = nn.Sequential(conv(6, 6, 1, bias=False), norm(6))
            self.kept = norm(6)

        def forward(self, x):
            return torch.relu(self.wide(x) + self.point(x) + self.kept(x))

    net = randomize_far(Branches()).eval()
    x = torch.randn(3, 6, *(7, 5, 6)[:rank])
    result = fuse(net, x)
    assert count_operators(result.module) == {f"conv{rank}d": 1, "relu": 1}
    (layer,) = find_layers(result.module)
    assert layer.parameters == 6 * 6 * 3**rank + 6
    assert_as_exact_as_eager(net, result.module, x)


@functools.cache
def fuse_network(name: str) -> tuple[nn.Module, FusionResult]:
    from timm_zoo import SIZE, make_network

    model = make_network(name)
    return model, fuse(model, torch.randn(2, 3, SIZE, SIZE))


NETWORKS = ("repvgg_a0", "mobileone_s1", "fastvit_t8", "repvit_m0_9", "repghostnet_050")
"""One network of every family that timm re-parameterizes with branches."""

SLOW_NETWORKS = ("fastvit_t8", "repghostnet_050", "repvit_m0_9", "mobileone_s1")
TIMM_NETWORKS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_NETWORKS else [])
    for name in NETWORKS
]


@pytest.mark.parametrize("name", TIMM_NETWORKS)
def test_timm_network_has_as_many_convolutions_as_timm_leaves(name):
    from timm_zoo import SIZE, count_convolutions, reparameterize

    model, result = fuse_network(name)
    x = torch.randn(2, 3, SIZE, SIZE)
    expected = count_convolutions(reparameterize(model), x)
    assert expected <= count_convolutions(model, x)
    counts = count_operators(result.module)
    assert counts["conv2d"] == expected
    assert not any("batch_norm" in operator for operator in counts)


@pytest.mark.parametrize("name", TIMM_NETWORKS)
def test_timm_network_is_as_exact_as_eager(name):
    """A hundred layers lose more than a block does; eager's own loss is the measure."""
    from timm_zoo import SIZE

    model, result = fuse_network(name)
    assert_as_exact_as_eager(model, result.module, torch.randn(3, 3, SIZE, SIZE), limit=1e-4)

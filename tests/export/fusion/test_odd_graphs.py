"""Graphs with parts that nobody asked for: results that are dropped, padding that cuts off."""

import pytest
import torch
from families import relative_error
from nets import Net, randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

from export import fuse
from export.fusion.paths import read_module_path


class WithDeadHead(nn.Module):
    """An auxiliary head that is computed and dropped, as in inference."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.aux, self.last = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        self.aux(x)
        return self.last(x)


def test_what_was_merged_of_the_models_own_layers_has_the_name_of_the_first() -> None:
    torch.manual_seed(0)
    result = fuse(WithDeadHead().eval(), torch.randn(2, 4, 5, 6))
    (merged,) = [n for n in result.module.graph.nodes if "conv2d" in str(n.target)]
    assert read_module_path(merged) == "first"


@pytest.mark.parametrize("merge_always", [False, True])
def test_a_layer_whose_result_is_dropped_stops_nothing(merge_always: bool) -> None:
    torch.manual_seed(0)
    net, x = WithDeadHead().eval(), torch.randn(2, 4, 5, 6)
    result = fuse(net, x, merge_always=merge_always)
    assert result.certificate.model.layers_after == 1
    assert relative_error(result.module(x), net(x)) < 1e-5


class Cut(nn.Module):
    """Padding that cuts off on one side and adds on the others, before a layer."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.layer = getattr(nn, f"Conv{rank}d")(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        sides = (1, 2, 0, 2, -1, 0)[: 2 * self.rank]
        return self.layer(-F.pad(x, sides))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_that_cuts_off_merges_whatever_the_batch(rank: int) -> None:
    torch.manual_seed(0)
    net = Cut(rank).eval()
    result = fuse(net, torch.randn(2, 4, *[6, 5, 4][:rank]), merge_always=True)
    assert result.fused
    for batch in (1, 3):
        x = torch.randn(batch, 4, *[6, 5, 4][:rank])
        assert relative_error(result.module(x), net(x)) < 1e-5


class Cropped(nn.Module):
    """The middle of a map goes into a layer, as in a U-Net without padding."""

    def __init__(self, kernel: int, padding: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, :, 2:-2, 1:-1])


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("merge_always", [False, True])
def test_a_crop_of_the_middle_before_a_layer(kernel: int, padding: int, merge_always: bool) -> None:
    torch.manual_seed(0)
    net = Cropped(kernel, padding).eval()
    result = fuse(net, torch.randn(2, 4, 9, 8), merge_always=merge_always)
    x = torch.randn(3, 4, 9, 8)
    assert relative_error(result.module(x), net(x)) < 1e-5


POOLS = {
    "norm": lambda: nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(4)),
    "border": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_with_no_layer_beside_it_becomes_none(name: str) -> None:
    """As NextViT has it, a pool and a norm: in engines a convolution is the slower of the two."""
    net, x = POOLS[name]().eval(), torch.randn(2, 4, 7, 7)
    result = fuse(net, x)
    assert (result.fused, result.certificate.model.layers_after) == ((), 0)
    assert relative_error(result.module(x), net(x)) < 1e-6


def test_a_pool_in_a_sum_of_branches_is_a_branch_like_any_other() -> None:
    """PoolFormer's, with its border counted."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x) - x

    net, x = Mixer().eval(), torch.randn(2, 4, 7, 7)
    result = fuse(net, x)
    assert [item.kind for item in result.fused] == ["branches"]
    assert relative_error(result.module(x), net(x)) < 1e-6


def scale_by_numbers(m: nn.Module, x: Tensor) -> Tensor:
    return m.b(m.a((x - torch.tensor(0.5)) / torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)))


def test_numbers_that_the_forward_writes_down_are_constants() -> None:
    """Such as the mean and the deviation of images."""
    torch.manual_seed(0)
    net = Net(scale_by_numbers, a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 1)).eval()
    result = fuse(net, torch.randn(2, 4, 5, 6))
    assert len(result.fused) == 1
    assert [n for n in result.module.graph.nodes if "div" in str(n.target)] == []
    x = torch.randn(3, 4, 5, 6)
    assert relative_error(result.module(x), net(x)) < 1e-5


def list_dropouts(inplace: bool) -> list[nn.Module]:
    kinds = nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout
    return [kind(0.3, inplace) for kind in kinds]


DROPPING = {
    "a layer and its norm": lambda drops: nn.Sequential(
        nn.Conv2d(4, 4, 1), *drops, nn.BatchNorm2d(4)
    ),
    "two layers": lambda drops: nn.Sequential(nn.Conv2d(4, 8, 1), *drops, nn.Conv2d(8, 3, 1)),
    "a norm, a global pool and a classifier": lambda drops: nn.Sequential(
        nn.BatchNorm2d(4), *drops, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", DROPPING)
def test_every_form_of_dropout_is_nothing_in_inference(name: str, inplace: bool) -> None:
    torch.manual_seed(0)
    net = randomize_norms(DROPPING[name](list_dropouts(inplace)).eval())
    result = fuse(net, torch.randn(2, 4, 5, 6))
    assert result.certificate.model.layers_after == 1
    assert [n for n in result.module.graph.nodes if "norm" in str(n.target)] == []
    x = torch.randn(3, 4, 5, 6)
    assert relative_error(result.module(x), net(x)) < 1e-5


def test_dropout_in_place_that_is_in_training_mode_stays() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Dropout(0.3, inplace=True), nn.Conv2d(8, 3, 1))
    net.eval()[1].train()
    result = fuse(net, torch.randn(2, 4, 5, 6), merge_always=True)
    assert result.fused == ()
    assert "dropout is in training mode" in [skip.reason for skip in result.skipped]


def change_behind_dropout(m: nn.Module, x: Tensor) -> Tensor:
    x = x * 2
    y = m.a(x)
    m.drop(x).detach().add_(1)
    return y + m.b(x)


def test_what_dropout_returns_in_inference_is_what_it_was_given() -> None:
    """So that a change of the one is a change of the other."""
    torch.manual_seed(0)
    for drop in list_dropouts(inplace=True):
        net = Net(change_behind_dropout, drop=drop, a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 3))
        x = torch.randn(2, 4, 5, 6)
        result = fuse(net.eval(), x, merge_always=True)
        assert relative_error(result.module(x), net(x)) < 1e-5


def test_what_is_taken_away_as_a_whole_stands_in_brackets() -> None:
    layers = {name: nn.Conv2d(4, 4, 1) for name in "ab"}
    net = Net(lambda m, x: m.a(x) - (m.b(x) - x), **layers).eval()
    (block,) = fuse(net, torch.randn(2, 4, 5, 6)).fused
    assert block.structure == "conv1x1(x) - (conv1x1(x) - x)"


class SplitBehind(nn.Module):
    """Two layers without anything between, whose result is taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.joined = nn.Linear(12, 12, bias=False), nn.Linear(12, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.joined(self.narrow(x)).split([8, 8, 8], -1)
        return q * k + v


def test_two_layers_in_front_of_a_split_become_one() -> None:
    torch.manual_seed(0)
    net, x = SplitBehind().eval(), torch.randn(2, 5, 12)
    result = fuse(net, x)
    assert result.certificate.model.layers_after == 1
    exact = net.double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-6

"""Layers with their costs, and receptive fields held against what gradients say."""

import pytest
import torch
from nets import bottleneck_net
from torch import Tensor, nn

from export.capture.inspection import list_layers
from export.capture.program import capture


def inspect(module: nn.Module, x: Tensor):
    return list_layers(capture(module.eval(), {"x": x}, keyword=False, dynamic_batch=True))


def measure_field(module: nn.Module, x: Tensor, shift: int = 0) -> tuple[int, ...]:
    """Extent of the input positions that one output position depends on, by gradient."""
    x = x.clone().requires_grad_()
    y = module(x)
    middle = tuple(size // 2 + shift for size in y.shape[2:])
    y[(0, slice(None), *middle)].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    return tuple(int(n) for n in touched.amax(0) - touched.amin(0) + 1)


CHAINS = {
    "3x3 twice": (nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)),
    "stride then dilation": (nn.Conv2d(2, 3, 3, 2), nn.Conv2d(3, 2, 3, dilation=2)),
    "pool between": (nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.Conv2d(3, 2, (3, 5))),
    "depthwise": (nn.Conv2d(2, 2, 5, groups=2), nn.ReLU(), nn.Conv2d(2, 2, 1)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_receptive_field_is_what_the_gradient_reaches(name: str) -> None:
    chain = nn.Sequential(*CHAINS[name])
    for child in chain.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.uniform_(child.weight, 0.5, 1.0)
    x = torch.rand(2, 2, 40, 44)
    assert inspect(chain, x)[-1].receptive_field == measure_field(chain.eval(), x)


BILINEAR = nn.Upsample(scale_factor=2, mode="bilinear")
GROWING = {
    "transposed, then 3x3": (nn.ConvTranspose2d(2, 2, 2, 2), nn.Conv2d(2, 2, 3)),
    "wide transposed": (nn.Conv2d(2, 2, 3, 2), nn.ConvTranspose2d(2, 2, 5, 2)),
    "nearest, then 3x3 twice": (
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2, 2, 3),
        nn.Conv2d(2, 2, 3),
    ),
    "pooled and bilinear": (nn.AvgPool2d(2), nn.Conv2d(2, 2, 3), BILINEAR, nn.Conv2d(2, 2, 3)),
    "shuffled": (nn.Conv2d(2, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 2, 3)),
}


@pytest.mark.parametrize("name", GROWING)
def test_what_enlarges_a_map_sees_no_further_than_its_gradient(name: str) -> None:
    chain = nn.Sequential(*GROWING[name])
    for child in chain.modules():
        if isinstance(child, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.uniform_(child.weight, 0.5, 1.0)
    x = torch.rand(2, 2, 40, 44)
    found = inspect(nn.Sequential(*chain, nn.Conv2d(2, 1, 1)), x)[-1].receptive_field
    widest = [measure_field(chain.eval(), x, shift) for shift in range(4)]
    assert found == tuple(map(max, zip(*widest, strict=True)))


def test_a_batch_that_attention_moved_is_no_part_of_a_sample() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    rows = inspect(encoder, torch.randn(2, 5, 8))
    sizes = [(row.output, row.macs) for row in rows]
    inside, outside = ((5, 24), 5 * 8 * 24), ((5, 8), 5 * 8 * 8)
    assert sizes == [inside, outside, ((5, 16), 5 * 8 * 16), ((5, 8), 5 * 16 * 8)]


def test_branches_see_as_far_as_the_widest() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(2, 2, 7, padding=3), nn.Conv2d(2, 2, 1)
            self.last = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wide(x).relu() + self.narrow(x))

    fields = {row.path: row.receptive_field for row in inspect(Branches(), torch.rand(2, 2, 9, 9))}
    assert fields == {"wide": (7, 7), "narrow": (1, 1), "last": (7, 7)}


def test_layers_carry_the_users_paths_and_add_up() -> None:
    net = bottleneck_net()
    rows = inspect(net, torch.randn(2, 3, 32, 32))
    stem = next(row for row in rows if row.path == "stem.0")
    assert (stem.operator, stem.output, stem.receptive_field) == ("conv7x7", (8, 16, 16), (7, 7))
    assert (stem.parameters, stem.macs) == (3 * 8 * 49, 8 * 16 * 16 * 3 * 49)
    assert rows[-1].path == "fc"
    assert rows[-1].receptive_field is None  # it follows a global pool
    assert sum(row.operator == "batch norm" for row in rows) == 9


class Recurrent(nn.Module):
    """The network alone, and the first of what it returns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.LSTM, 4), (nn.RNN, 1)])
def test_recurrent_networks_are_layers_with_the_macs_of_every_step(
    kind: type[nn.Module], gates: int
) -> None:
    network = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    (row,) = inspect(Recurrent(network), torch.randn(2, 9, 6))
    assert row.path == "network"
    assert row.parameters == sum(p.numel() for p in network.parameters())
    first, second = (gates * 5 * (width + 5) for width in (6, 10))
    assert row.macs == 9 * 2 * (first + second)
    assert row.output == (9, 10)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_normed_weight_counts_with_what_it_is_computed_from(old: bool) -> None:
    norm = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    layer = norm(nn.Conv1d(4, 6, 3))
    (row,) = inspect(nn.Sequential(layer), torch.randn(2, 4, 12))
    assert row.parameters == sum(p.numel() for p in layer.parameters())
    assert row.macs == 10 * 6 * 4 * 3


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        memory = x.flip(1)
        return self.attention(x, memory, memory)[0]


def test_attention_to_a_memory_has_the_parameters_of_its_projections() -> None:
    """torch cuts the weights of queries, and of keys and values, out of one."""
    layer = Remembering()
    rows = inspect(layer, torch.randn(3, 5, 8))
    assert [row.parameters for row in rows] == [8 * 9, 16 * 9, 8 * 9]
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in layer.parameters())

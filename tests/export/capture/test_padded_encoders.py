import pytest
import torch
from combinations import combine
from families import relative_error
from nets import randomize_norms
from torch import Tensor, nn

from export.capture.program import capture


class Net(nn.Module):
    def __init__(self, norm: bool, **options: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        last = nn.LayerNorm(8) if norm else None
        self.encoder = nn.TransformerEncoder(layer, 2, last, **options)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


def make_net(norm: bool = False, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(Net(norm, **options)).eval()


def make_padding(*lengths: int) -> Tensor:
    return torch.arange(6) >= torch.tensor(lengths)[:, None]


pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
HOLE = make_padding(6, 3, 5)
HOLE[1, 0] = True


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("norm", "mask_check", "as_float"), combine([False, True], [True, False], [False, True])
)
def test_padding_that_eager_drops_is_zero_in_a_capture_too(norm, mask_check, as_float) -> None:
    net, x = make_net(norm, mask_check=mask_check), torch.randn(3, 6, 8)
    paddings = [make_padding(6, 3, 5), make_padding(1, 1, 1), make_padding(6, 6, 6)]
    if mask_check:
        paddings.append(HOLE)
    if as_float:
        paddings = [torch.zeros(3, 6).masked_fill(p, -torch.inf) for p in paddings]
    feeds = {"x": x, "padding": paddings[0]}
    program = capture(net, feeds, keyword=True, dynamic_batch=True)
    for padding in paddings:
        with torch.no_grad():
            eager = net(x, padding)
            found = program.module()(x=x, padding=padding)
        assert relative_error(found, eager) < 1e-6


def test_eager_drops_no_padding_of_a_batch_with_a_hole() -> None:
    net, x = make_net(), torch.randn(3, 6, 8)
    with torch.no_grad():
        assert net(x, make_padding(6, 3, 5))[1, 3:].abs().max() == 0
        assert net(x, HOLE)[1, 3:].abs().max() > 0


@pytest.mark.thorough
def test_padding_is_kept_where_the_encoder_is_told_to_keep_it() -> None:
    net, x = make_net(enable_nested_tensor=False), torch.randn(3, 6, 8)
    feeds = {"x": x, "padding": make_padding(6, 3, 5)}
    program = capture(net, feeds, keyword=True, dynamic_batch=True)
    with torch.no_grad():
        eager, found = net(**feeds), program.module()(**feeds)
    assert eager[1, 3:].abs().max() > 0
    assert relative_error(found, eager) < 1e-6


@pytest.mark.thorough
def test_capture_leaves_the_encoder_as_it_was() -> None:
    net, forward = make_net(norm=True), nn.TransformerEncoder.forward
    feeds = {"x": torch.randn(3, 6, 8), "padding": make_padding(6, 3, 5)}
    capture(net, feeds, keyword=True, dynamic_batch=True)
    assert nn.TransformerEncoder.forward is forward
    assert isinstance(net.encoder.norm, nn.LayerNorm)

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture


class Net(nn.Module):
    def __init__(self, take: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        return self.take(x) * 2


FORMS = {
    "function": lambda x: torch.take_along_dim(x, x[..., :1].argsort(1), 1),
    "method": lambda x: x.take_along_dim(x[..., :1].argsort(1), dim=-2),
    "by name": lambda x: torch.take_along_dim(input=x, indices=x[..., :1].argsort(1), dim=1),
    "fewer": lambda x: torch.take_along_dim(x, x[..., :1].argsort(1)[:, :2], 1),
    "of one channel": lambda x: torch.take_along_dim(x[..., :1], x.argsort(1), 1),
    "alike": lambda x: torch.take_along_dim(x, x.argsort(2), 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_taken_at_any_batch(form: str) -> None:
    torch.manual_seed(0)
    net = Net(FORMS[form]).eval()
    program = capture(net, {"x": torch.randn(2, 5, 3)}, keyword=False, dynamic_batch=True)
    for batch in (1, 2, 4):
        x = torch.randn(batch, 5, 3)
        assert torch.equal(program.module()(x), net(x))


def test_without_an_axis_it_is_torchs_own() -> None:
    net = Net(lambda x: x + torch.take_along_dim(x, torch.tensor([0, 3])).sum()).eval()
    x = torch.randn(2, 5, 3)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=False)
    assert torch.equal(program.module()(x), net(x))

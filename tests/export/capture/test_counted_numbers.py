"""Numbers that a model counts by ``arange`` and reads back, as of axes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from export.capture.counted_numbers import CountedNumbers
from export.capture.program import capture
from export.capture.replaced_calls import ReplacedCalls
from export.errors import ExportError


class Read(nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x) * 2


def _changed(x: Tensor) -> Tensor:
    axes = torch.arange(2)
    axes.add_((x.sum() > 1e9).long())
    return x.mean(axes.tolist())


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "axes": lambda x: x.mean(torch.arange(1, x.ndim).tolist(), keepdim=True),
    "one end": lambda x: x.flip(torch.arange(x.ndim).tolist()[1:]),
    "steps": lambda x: x.sum(torch.arange(start=2, end=0, step=-1).tolist()),
    "one number": lambda x: x.sum(torch.arange(1, 2).item()),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_batch_is_captured(form):
    net = Read(FORMS[form])
    program = capture(net, {"x": torch.randn(2, 5, 3)}, keyword=False, dynamic_batch=True)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 3, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(program.module()(x), net(x), rtol=0, atol=0)


def test_what_was_changed_since_or_counts_a_size_is_left_to_torch():
    with ReplacedCalls(CountedNumbers()):
        numbers = torch.arange(3)
        numbers.add_(5)
        assert numbers.tolist() == [5, 6, 7]
        assert torch.arange(0, 1, 0.25).tolist() == [0, 0.25, 0.5, 0.75]
        assert torch.arange(3, dtype=torch.float32).tolist() == [0.0, 1.0, 2.0]
        assert torch.arange(4).reshape(2, 2).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ExportError):
        capture(Read(_changed), {"x": torch.randn(2, 5, 3)}, keyword=False, dynamic_batch=True)

"""Where no exporter takes a model, the message says what to change in it."""

import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.capture.remedies import suggest_remedies
from export.errors import ExportError


class Switch(nn.Module):
    """Doubles what it is given if any of it is negative."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool((x < 0).any().item()) else x


def test_a_way_that_hangs_on_the_value_of_a_tensor_is_to_be_taken_in_the_graph() -> None:
    with pytest.raises(ExportError) as caught:
        capture(Switch(), {"x": torch.randn(2, 3)}, keyword=False, dynamic_batch=True)
    assert "torch.where" in suggest_remedies(Switch(), str(caught.value))


def test_of_a_reason_that_is_not_known_nothing_is_said() -> None:
    assert suggest_remedies(nn.Linear(2, 2), "RuntimeError: no kernel") == ""

"""A call of ``interpolate`` names the size where its factors are whole, and else stays as it is."""

from typing import Any

import numpy as np
import pytest
import torch

from export.capture.whole_scales import _name_size


@pytest.mark.parametrize("factor", [2, 2.0, (2, 3.0), [4, 1]])
def test_whole_factors_become_a_size(factor: Any) -> None:
    value = torch.ones(1, 1, 5, 7)
    named = _name_size({"input": value, "scale_factor": factor})
    expected = torch.nn.functional.interpolate(value, scale_factor=factor).shape[2:]
    assert (tuple(named["size"]), named["scale_factor"]) == (tuple(expected), None)


@pytest.mark.parametrize("factor", [1.5, (2, 0.5), (2,), np.float32(2), torch.tensor(2.0), None])
def test_other_factors_are_left_to_torch(factor: Any) -> None:
    given = {"input": torch.ones(1, 1, 5, 7), "scale_factor": factor}
    assert _name_size(given) is given

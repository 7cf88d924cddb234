"""Tensors and arrays hold the same values, over the same memory."""

import ml_dtypes
import numpy as np
import pytest
import torch

from export.capture.arrays import to_array, to_tensor

DTYPES = ("float32", "float16", "float64", "bfloat16", "int64", "int32", "uint8", "bool")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_values_and_format_stay(name, shape):
    values = torch.arange(float(np.prod(shape))).reshape(shape) - 1.5
    tensor = values.to(getattr(torch, name))
    array = to_array(tensor)
    assert array.dtype == (ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name))
    np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())
    back = to_tensor(array)
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor)


def test_memory_is_shared():
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    to_tensor(to_array(tensor)).fill_(2)
    assert tensor.tolist() == [2, 2, 2]

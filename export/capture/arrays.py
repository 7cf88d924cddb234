"""Tensors as arrays and back, bfloat16 among them, which numpy knows through ml_dtypes alone."""

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def to_tensor(array: Array) -> Tensor:
    """A tensor over the memory of `array`."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Tensor) -> Array:
    """An array over the memory of `tensor`, which lies on the CPU."""
    if tensor.dtype is torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.detach().numpy()
    return array

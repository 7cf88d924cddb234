"""Matrices that transform signals into spectra and back, in float64.

Of a real and an imaginary part there are two orders: by value and then by part, as complex values
lie in memory, and by part and then by value.
"""

import math

import torch
from torch import Tensor


def make_spectrum(size: int, bins: int, *, forward: bool = True) -> Tensor:
    """Of a complex signal its spectrum: ``[2 size, 2 bins]``, both by number and part."""
    matrix = expand(make_waves(size, bins, size, forward=forward))
    return order_by_number(order_by_number(matrix).T).T


def make_signal(bins: int, size: int) -> Tensor:
    """Of the first half of a spectrum the real signal: ``[2 bins, size]``.

    A bin stands for its mirror image as well, where it has one. Bins beyond the half count nothing.
    """
    waves = count_mirrored(bins, size) * make_waves(bins, size, size, forward=False)
    return order_by_number(expand(waves)[:, :size])


def make_waves(rows: int, columns: int, size: int, *, forward: bool = True) -> Tensor:
    """``exp(-2 pi i row column / size)``, or with a plus where not `forward`: complex128."""
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % size
    angles = turns.to(torch.float64) * (2 * math.pi / size)
    return torch.polar(torch.ones_like(angles), -angles if forward else angles)


def count_mirrored(bins: int, size: int) -> Tensor:
    """How many bins of a real signal's spectrum each of its half stands for: ``[bins, 1]``."""
    numbers = torch.arange(bins)
    times = torch.where((numbers == 0) | (2 * numbers == size), 1.0, 2.0).to(torch.float64)
    return torch.where(numbers > size // 2, 0.0, times).unsqueeze(1)


def expand(matrix: Tensor) -> Tensor:
    """What multiplies rows of complex values by `matrix`, ``[n, m]``: ``[2n, 2m]``, by part."""
    real, imaginary = matrix.real, matrix.imag
    return torch.cat([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)])


def order_by_number(rows: Tensor) -> Tensor:
    """Rows by part and number as rows by number and part, ``[2n, ...]``."""
    return rows.reshape(2, -1, rows.shape[1]).transpose(0, 1).reshape(rows.shape)

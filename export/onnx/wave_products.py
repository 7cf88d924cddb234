"""Transforms along a last axis as a product with a matrix, or as two where those are less work.

    X[f] = sum over t of x[t] exp(-2 pi i f t / n)

is linear in the real and imaginary parts: a transform of n values is a product with a matrix of 2n
columns at most. Where n = a b, with t = b u + v and f = g + a h, it is

    sum over v of exp(-2 pi i v h / b) exp(-2 pi i v g / n) sum over u of exp(-2 pi i u g / a) x[t],

products with a matrix of a rows and one of b, and waves between them.

Source: Bailey, FFTs in external or hierarchical memory, Journal of Supercomputing 4 (1990).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft
from export.onnx.fixed import store_fixed
from export.onnx.waves import (
    count_mirrored,
    expand,
    make_signal,
    make_spectrum,
    make_waves,
    order_by_number,
)

aten = torch.ops.aten

_LARGEST = 4096
"""Real values that one product transforms; of complex ones half as many, whose matrix is as
large."""

_SHORT, _LARGEST_FACTORS = 400, 512
"""Values below which one product takes no longer than two, and how large the factors may be
together: beyond, the products are no faster than ONNX Runtime's own operator."""


def is_product_faster(size: object, *, real: bool) -> bool:
    """Whether products are the way to transform `size` values, `real` or complex."""
    if not isinstance(size, int) or size < 1:
        return False
    return split(size) is not None or size <= (_LARGEST if real else _LARGEST // 2)


def split(size: int) -> tuple[int, int] | None:
    """The two factors of `size` nearest to each other, the smaller first, if two products pay."""
    first = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    together = first + size // first
    pays = size >= _SHORT and together <= min(size // 4, _LARGEST_FACTORS)
    return (first, size // first) if pays else None


class WaveProducts:
    """Writes transforms into the graph of `draft` where it inserts now, as a part of `place`."""

    def __init__(self, draft: Draft, place: fx.Node) -> None:
        self._draft, self._place = draft, place

    def turn_signal(self, value: fx.Node, bins: int, scale: float = 1.0) -> fx.Node:
        """Of real values, ``[..., n]``, the first `bins` of the spectrum: ``[..., bins, 2]``."""
        size = int(value.meta["val"].shape[-1])
        factors = split(size)
        if factors is None:
            matrix = make_spectrum(size, bins)[::2] * scale
            return self._pair(self._multiply(value, matrix))
        first, second = factors
        value = self._call(aten.unflatten.int, value, -1, [first, second])
        matrix = expand(make_waves(first, first, first))[:first]
        return self._turn_rows(value, matrix * scale, bins, forward=True)

    def turn(self, value: fx.Node, *, forward: bool, scale: float = 1.0) -> fx.Node:
        """Of complex values, ``[..., n, 2]``, the spectrum, or the other way round."""
        size = int(value.meta["val"].shape[-2])
        factors = split(size)
        if factors is None:
            matrix = make_spectrum(size, size, forward=forward) * scale
            value = self._call(aten.flatten.using_ints, value, -2, -1)
            return self._pair(self._multiply(value, matrix))
        first, second = factors
        value = self._call(aten.transpose.int, value, -2, -1)
        value = self._call(aten.unflatten.int, value, -1, [first, second])
        value = self._call(aten.flatten.using_ints, value, -3, -2)
        matrix = expand(make_waves(first, first, first, forward=forward))
        return self._turn_rows(value, matrix * scale, size, forward=forward)

    def return_signal(self, value: fx.Node, size: int, scale: float = 1.0) -> fx.Node:
        """Of the first half of a spectrum, ``[..., bins, 2]``, the real signal: ``[..., size]``."""
        bins = int(value.meta["val"].shape[-2])
        factors = split(size)
        if factors is None:
            value = self._call(aten.flatten.using_ints, value, -2, -1)
            return self._multiply(value, make_signal(bins, size) * scale)
        first, second = factors
        blocks = -(-(size // 2 + 1) // first)
        value = self._resize(value, blocks * first)
        times = self._store(count_mirrored(blocks * first, size) * scale, value)
        value = self._call(aten.mul.Tensor, value, times)
        value = self._call(aten.unflatten.int, value, -2, [blocks, first])
        value = self._call(aten.transpose.int, value, -3, -2)
        value = self._call(aten.flatten.using_ints, value, -2, -1)
        rows = expand(make_waves(blocks, second, second, forward=False))
        value = self._multiply(value, order_by_number(rows))
        value = self._twist(value, first, second, forward=False, axis=-1)
        matrix = expand(make_waves(first, first, first, forward=False))[:, :first]
        value = self._call(aten.matmul.default, self._store(matrix.T, value), value)
        return self._call(aten.flatten.using_ints, value, -2, -1)

    def _turn_rows(self, value: fx.Node, matrix: Tensor, bins: int, *, forward: bool) -> fx.Node:
        """Of ``[..., a or 2 a, b]``, by part, the first `bins` of ``a b``: ``[..., bins, 2]``.

        Args:
            matrix: of a column its spectrum, ``[a or 2 a, 2 a]``.
        """
        first, second = matrix.shape[1] // 2, int(value.meta["val"].shape[-1])
        value = self._call(aten.matmul.default, self._store(matrix.T, value), value)
        value = self._twist(value, first, second, forward=forward, axis=-2)
        blocks = -(-bins // first)
        columns = expand(make_waves(second, blocks, second, forward=forward))
        value = self._pair(self._multiply(value, order_by_number(columns.T).T))
        value = self._call(aten.transpose.int, value, -3, -2)
        value = self._call(aten.flatten.using_ints, value, -3, -2)
        return self._resize(value, bins)

    def _twist(
        self, value: fx.Node, first: int, second: int, *, forward: bool, axis: int
    ) -> fx.Node:
        """`value` times the waves between two products; its parts go from one axis to the other.

        Args:
            value: ``[..., 2 first, second]`` where `axis` is -2, ``[..., first, 2 second]`` at -1.
        """
        waves = make_waves(first, second, first * second, forward=forward)
        real, imaginary = (self._store(part, value) for part in (waves.real, waves.imag))
        half = (first, second)[axis]
        left, right = (
            self._call(aten.slice.Tensor, value, axis, start, start + half) for start in (0, half)
        )
        mul = aten.mul.Tensor
        parts = [
            self._call(
                aten.sub.Tensor, self._call(mul, left, real), self._call(mul, right, imaginary)
            ),
            self._call(
                aten.add.Tensor, self._call(mul, left, imaginary), self._call(mul, right, real)
            ),
        ]
        return self._call(aten.cat.default, parts, -3 - axis)

    def _resize(self, value: fx.Node, bins: int) -> fx.Node:
        """``[..., n, 2]`` with zeros behind it, or without its end: ``[..., bins, 2]``."""
        missing = bins - int(value.meta["val"].shape[-2])
        if missing > 0:
            return self._call(aten.constant_pad_nd.default, value, [0, 0, 0, missing])
        return self._call(aten.slice.Tensor, value, -2, 0, bins) if missing else value

    def _multiply(self, value: fx.Node, matrix: Tensor) -> fx.Node:
        return self._call(aten.matmul.default, value, self._store(matrix, value))

    def _pair(self, value: fx.Node) -> fx.Node:
        """Of ``[..., 2 n]`` ``[..., n, 2]``."""
        return self._call(aten.unflatten.int, value, -1, [-1, 2])

    def _store(self, matrix: Tensor, like: fx.Node) -> fx.Node:
        return store_fixed(self._draft, "fourier", matrix, like.meta["val"])

    def _call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return add_call(self._place, target, *args)

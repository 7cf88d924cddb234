"""The proof of a rewrite: the merged layer beside what it stands for, on random input with borders.

Three numbers, each the largest difference over the largest value of the original in float64:

- ``error_float64``: the merged layer in float64. It shows the algebra: only rounding may be left.
- ``error_float32``: the merged layer as it is stored, run in the model's own precision.
- ``noise_float32``: the original in the model's own precision, which is what eager loses by itself.

A rewrite that is further from the truth than a few times what eager loses is not done.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from export.fusion.algebra import LinearMap
from export.fusion.draft import Draft
from export.fusion.evaluation import evaluate, hint
from export.fusion.geometry import Axis

NOISE_FACTOR = 4.0
"""A merged layer may lose this many times what eager itself loses ..."""

FLOOR_EPSILONS = 16.0
"""... or this many roundings of the number format, whichever is more, ..."""

MOST_EPSILONS = 80.0
"""... and as many as a sum of so many products may lose, which is the root of their number: some
CPUs begin with the bias, which may be large beside the products, where eager adds it last. In
float32 no more than 1e-5.
"""

EXACT = 1e-9
"""In float64 more than this is no rounding but a mistake."""

_SEED = 20_260_101
_ROWS = 8
_MARGIN = 3

Run = Callable[[Tensor, torch.dtype], Tensor]
"""Runs a layer on an input, in this precision."""


@dataclass(frozen=True)
class Error:
    """The three numbers above."""

    float64: float
    float32: float
    noise: float


@dataclass(frozen=True)
class Trial:
    """An original to hold a rewrite against.

    Attributes:
        nodes: the operators of the original, in graph order, with all that only they need.
        source: the value that they read.
        result: the value that they compute.
        shape: of the random input.
        dtype: the model's own.
        device: the model's own.
    """

    nodes: tuple[fx.Node, ...]
    source: fx.Node
    result: fx.Node
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def measure_error(draft: Draft, trial: Trial, merged: Run) -> Error:
    """Run both on the same seeded random input, in float64 and in the model's own precision."""
    generator = torch.Generator().manual_seed(_SEED)
    x = torch.randn(trial.shape, dtype=torch.float64, generator=generator)
    x = x.to(trial.device, trial.dtype)
    with torch.no_grad():
        exact = _run_original(draft, trial, x, torch.float64)
        scale = float(exact.abs().max().clamp_min(torch.finfo(torch.float64).tiny))

        def distance(found: Tensor) -> float:
            return float((found.double() - exact).abs().max()) / scale

        return Error(
            float64=distance(merged(x.double(), torch.float64)),
            float32=distance(merged(x, trial.dtype)),
            noise=distance(_run_original(draft, trial, x, trial.dtype)),
        )


def find_fault(error: Error, dtype: torch.dtype, *, terms: int = 1) -> str | None:
    """Why a rewrite with this error must not be done; None if it may.

    Args:
        error: of the rewrite.
        dtype: the model's own.
        terms: products that the merged layer adds up for one output.
    """
    roundings = min(max(FLOOR_EPSILONS, terms**0.5), MOST_EPSILONS)
    floor = max(roundings * torch.finfo(dtype).eps, EXACT if dtype == torch.float64 else 0.0)
    allowed = max(NOISE_FACTOR * error.noise, floor)
    if not error.float64 <= EXACT:
        return f"merged it differs by {error.float64:.1e} even in float64, more than {EXACT:.0e}"
    if not error.float32 <= allowed:
        return (
            f"merged it loses {error.float32:.1e}, eager itself {error.noise:.1e}: more than "
            f"{NOISE_FACTOR:.0f} times as much"
        )
    return None


def choose_sizes(axes: Iterable[Axis]) -> tuple[int, ...]:
    """The smallest sizes on which a map shows what it does at the captured ones.

    Borders, the inside, and the same remainder by the stride, which decides how much is cut off.
    """
    sizes = []
    for axis in axes:
        least = axis.span + _MARGIN * axis.stride + max(0, abs(axis.origin) - axis.span) + 1
        # where it cuts off more than it pads
        least = max(least, _MARGIN * axis.stride - axis.margin)
        if axis.size is None:
            sizes.append(least)
        elif least >= axis.size:
            sizes.append(axis.size)
        else:
            sizes.append(least + (axis.size - least) % axis.stride)
    return tuple(sizes)


def make_shape(source: fx.Node, map_: LinearMap, *, captured: bool) -> tuple[int, ...]:
    """The shape of the random input of a region whose map is `map_`."""
    rank = source.meta["val"].ndim
    if map_.axes and captured:
        return tuple(hint(size) for size in source.meta["val"].shape)
    if map_.axes:
        return (2, map_.inputs, *choose_sizes(map_.axes))
    return (*[2] * (rank - 2), _ROWS, map_.inputs)


def _run_original(draft: Draft, trial: Trial, x: Tensor, dtype: torch.dtype) -> Tensor:
    known = {trial.source: x.to(dtype, copy=True)}
    values = evaluate(draft, trial.nodes, known, dtype=dtype, keep=(trial.result,))
    result: Tensor = values[trial.result]
    return result

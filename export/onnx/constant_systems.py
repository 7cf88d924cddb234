"""Linear systems whose matrix is stored: solved by a product with its inverse, which is stored too.

A Mahalanobis distance, the density of a normal distribution, the variance of a Gaussian process:
the exporter has none of these operators, and an elimination takes fifteen for each row. The inverse
is one of those that `export.onnx.constant_matrices` works out, in float64. A Cholesky factor is
inverted itself, for two products:

    (L L^H)^-1 b = L^-H (L^-1 b)

Its product with b^H is a sum of squares, as the variance of a process has it. With the inverse of
the whole the error of that is float32's times the condition of the matrix.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.calls import add_call
from export.fusion.constants import Constants
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations

aten = torch.ops.aten


def solve_by_inverses(draft: Draft) -> bool:
    """Whether there were systems of one stored matrix, to be solved for values that are none."""
    constants = Constants(draft, Mutations(draft.graph))
    found = [node for node in draft.graph.nodes if _has_stored_matrix(node, constants)]
    for node in found:
        with draft.graph.inserting_before(node):
            given = read_argument(node, _SYSTEMS[node.target][0])
            inverses = _SYSTEMS[node.target][1](node, partial(add_call, node))
            left = read_argument(node, "left", True)
            solved = given
            for inverse in reversed(inverses) if left else inverses:
                sides = (inverse, solved) if left else (solved, inverse)
                solved = add_call(node, aten.matmul.default, *sides)
            draft.erase(node, solved)
    return bool(found)


def _has_stored_matrix(node: fx.Node, constants: Constants) -> bool:
    if node.target not in _SYSTEMS:
        return False
    given = read_argument(node, _SYSTEMS[node.target][0])
    others = [source for source in node.all_input_nodes if source is not given]
    return (
        given not in constants
        and bool(others)
        and all(source in constants for source in others)
        and all(_is_one_matrix(node, source.meta["val"]) for source in others)
    )


def _is_one_matrix(node: fx.Node, example: Tensor) -> bool:
    """Not several, of which each would solve for its own sample; pivots of one are a vector.

    What `torch.linalg.solve` takes for a vector for each matrix of a batch, a product does not.
    """
    before = example.shape[:-2]
    return not before if node.target is aten.linalg_solve.default else all(n == 1 for n in before)


def _invert(node: fx.Node, call: Callable[..., fx.Node]) -> tuple[fx.Node, ...]:
    return (call(aten.linalg_inv.default, read_argument(node, "A")),)


def _invert_triangular(node: fx.Node, call: Callable[..., fx.Node]) -> tuple[fx.Node, ...]:
    matrix, upper = read_argument(node, "self"), read_argument(node, "upper")
    part = aten.triu.default if upper else aten.tril.default
    if not read_argument(node, "unitriangular"):
        return (call(aten.linalg_inv.default, call(part, matrix)),)
    ones = call(aten.eye.default, matrix.meta["val"].shape[-1])
    beside = call(part, matrix, 1 if upper else -1)
    return (call(aten.linalg_inv.default, call(aten.add.Tensor, beside, ones)),)


def _invert_product(node: fx.Node, call: Callable[..., fx.Node]) -> tuple[fx.Node, ...]:
    upper = read_argument(node, "upper")
    factor = call(aten.triu.default if upper else aten.tril.default, read_argument(node, "input2"))
    sides = (factor, call(aten.adjoint.default, factor))
    return tuple(call(aten.linalg_inv.default, s) for s in (sides if upper else sides[::-1]))


def _invert_factors(node: fx.Node, call: Callable[..., fx.Node]) -> tuple[fx.Node, ...]:
    factors, pivots = read_argument(node, "LU"), read_argument(node, "pivots")
    example: Tensor = factors.meta["val"]
    ones = call(aten.eye.default, example.shape[-1], dtype=example.dtype)
    adjoint = read_argument(node, "adjoint")
    return (call(aten.linalg_lu_solve.default, factors, pivots, ones, adjoint=adjoint),)


_Invert = Callable[[fx.Node, Callable[..., fx.Node]], tuple[fx.Node, ...]]
_SYSTEMS: dict[Any, tuple[str, _Invert]] = {
    aten.linalg_solve.default: ("B", _invert),
    aten.linalg_solve_triangular.default: ("B", _invert_triangular),
    aten.cholesky_solve.default: ("self", _invert_product),
    aten.linalg_lu_solve.default: ("B", _invert_factors),
}
"""By operator the name of what it is solved for, and what makes the inverse, or its factors."""

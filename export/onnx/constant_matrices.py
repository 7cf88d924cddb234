"""What linear algebra makes of stored tensors alone, stored: a determinant, inverse or factor.

A flow whose volume is ``slogdet(weight)``, a rotation by ``matrix_exp``: the exporter knows few of
these operators, and none of them depends on the input. Worked out in float64.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from export.fusion.constants import Constants
from export.fusion.draft import Draft
from export.fusion.mutation import Mutations
from export.fusion.operators.base import name_operator
from export.fusion.paths import read_module_path

_FAMILIES = ("linalg_", "_linalg_", "cholesky")
"""How the names of operators begin."""

_OTHERS = frozenset(
    {
        *("inverse", "pinverse", "det", "logdet", "slogdet", "matrix_exp", "matrix_power"),
        *("triangular_solve", "qr", "geqrf", "orgqr", "ormqr", "svd"),
    }
)

_LEFT = ("linalg_norm", "linalg_vector_norm", "linalg_matrix_norm", "linalg_cross", "linalg_diag")
"""Those of the same family that the exporter knows, and does well with."""


def store_constant_matrices(program: ExportedProgram) -> ExportedProgram:
    """`program` with stored tensors in place of such operators; itself where it has none."""
    if not any(map(_is_algebra, program.graph.nodes)):
        return program
    draft, done = Draft(program), False
    while any(_store(draft, node, known) for node, known in _find_constant(draft)):
        done = True  # what takes the result of it may be constant now
    return draft.finish() if done else program


def _is_algebra(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    name = name_operator(node)
    return name in _OTHERS or (name.startswith(_FAMILIES) and not name.startswith(_LEFT))


def _find_constant(draft: Draft) -> list[tuple[fx.Node, Constants]]:
    """Such operators on what is constant, from the last to the first."""
    constants = Constants(draft, Mutations(draft.graph))
    return [
        (node, constants)
        for node in reversed(draft.graph.nodes)
        if _is_algebra(node)
        and node.users
        and node.all_input_nodes
        and all(source in constants for source in node.all_input_nodes)
    ]


def _store(draft: Draft, node: fx.Node, constants: Constants) -> bool:
    """Give what reads the results of `node` stored tensors; whether they are numbers to store."""
    if not node.users:  # what read it is stored by now
        return False
    device = torch.device("cpu")
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda source: constants.value(source, device)
    )
    with torch.no_grad():
        made: Any = node.target(*args, **kwargs)  # type: ignore[operator]
    parts = {node: made} if isinstance(made, Tensor) else _read_parts(node, made)
    if not parts or not all(part.isfinite().all() for part in parts.values()):
        return False
    sources = [s for i in node.all_input_nodes for s in (i, *constants.computed(i))]
    beside = next((source for source in sources if draft.target(source)), None)
    prefix = draft.target(beside).rpartition(".")[0] if beside else read_module_path(node)
    wanted = f"{prefix}.{node.name}" if prefix else node.name
    for item, part in parts.items():
        example: Tensor = item.meta["val"]
        value = nn.Parameter(part.to(example.device, example.dtype), requires_grad=False)
        draft.erase(item, draft.add(wanted, value, beside=beside))
    if not isinstance(made, Tensor):
        draft.graph.erase_node(node)
    return True


def _read_parts(node: fx.Node, made: Any) -> dict[fx.Node, Tensor]:
    """What is taken out of several results; none where more is done with them together."""
    if any(user.target is not operator.getitem for user in node.users):
        return {}
    return {user: made[user.args[1]] for user in node.users}

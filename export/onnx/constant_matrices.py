"""What linear algebra makes of stored tensors alone, stored: a determinant, inverse or factor.

A flow whose volume is ``slogdet(weight)``, a rotation by ``matrix_exp``: the exporter knows few of
these operators, and none of them depends on the input. Worked out in float64, but for what float32
has otherwise by more than rounding: the pseudoinverse of a matrix that lacks a rank, say, cuts off
what is small for its own type. The model computes that, and was trained with it.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from export.fusion.constants import Constants
from export.fusion.draft import Draft
from export.fusion.evaluation import evaluate
from export.fusion.mutation import Mutations
from export.fusion.operators.base import name_operator
from export.fusion.paths import read_module_path
from export.onnx.constant_systems import solve_by_inverses

_FAMILIES = ("linalg_", "_linalg_", "cholesky")
"""How the names of operators begin."""

_OTHERS = frozenset(
    {
        *("inverse", "pinverse", "det", "logdet", "slogdet", "matrix_exp", "matrix_power"),
        *("triangular_solve", "qr", "geqrf", "orgqr", "ormqr", "svd"),
    }
)

_SMOOTH = frozenset(
    {
        *("inverse", "linalg_inv", "linalg_inv_ex", "cholesky_inverse", "linalg_solve"),
        *("linalg_solve_triangular", "linalg_lu_factor", "linalg_lu_solve", "cholesky_solve"),
        *("cholesky", "linalg_cholesky", "linalg_cholesky_ex", "det", "linalg_det"),
    }
)
"""Those that cut nothing off and have one result: float32 has it with more error, and no other."""

_ROUNDING = 1e-3
"""Of the largest value: what differs by less is float32's rounding, by more another result."""

_LEFT = ("linalg_norm", "linalg_vector_norm", "linalg_matrix_norm", "linalg_cross", "linalg_diag")
"""Those of the same family that the exporter knows, and does well with."""


def store_constant_matrices(program: ExportedProgram) -> ExportedProgram:
    """`program` with stored tensors in place of such operators; itself where it has none."""
    if not any(map(_is_algebra, program.graph.nodes)):
        return program
    draft, done = Draft(program), False
    while solve_by_inverses(draft) or any(
        _store(draft, node, known) for node, known in _find_constant(draft)
    ):
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
    made = _work_out(draft, node, constants)
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


def _work_out(draft: Draft, node: fx.Node, constants: Constants) -> Any:
    """Its results in float64 where they are those of the model's own types but for rounding."""
    needed = {s for source in node.all_input_nodes for s in constants.computed(source)}
    order = [each for each in draft.graph.nodes if each in needed or each is node]
    with torch.no_grad():
        exact = evaluate(draft, order, {}, dtype=torch.float64, keep=(node,))[node]
        if all(name_operator(each) in _SMOOTH for each in order if _is_algebra(each)):
            return exact
        own = evaluate(draft, order, {}, dtype=None, keep=(node,))[node]
    return exact if all(map(_agree, _tensors(exact), _tensors(own))) else own


def _tensors(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)


def _agree(exact: Tensor, own: Tensor) -> bool:
    scale = exact.abs().amax() if exact.numel() else 0
    return bool(((exact - own).abs() <= _ROUNDING * scale).all())


def _read_parts(node: fx.Node, made: Any) -> dict[fx.Node, Tensor]:
    """What is taken out of several results; none where more is done with them together."""
    if any(user.target is not operator.getitem for user in node.users):
        return {}
    return {user: made[user.args[1]] for user in node.users}

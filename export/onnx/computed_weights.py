"""Weights that a model computes from stored tensors or from nothing, stored as what they come to.

Weight standardization, a scale on a weight, a kernel of ones: the exporter writes the computation
into the graph, where whatever looks for constant weights, such as int8, finds none. The same of
stored tensors that are resized, as position embeddings are for another image size: engines work
that out when they load, and OpenVINO's way is not torch's where the resize smooths. And what the
exporter has no function for: most windows, and special functions; its Hamming window has the
coefficients of ONNX, which are others than torch's. The value is worked out in float64.
"""

import torch
from torch import Tensor, fx, nn

from export.fusion.constants import Constants
from export.fusion.cost import name_weight
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations
from export.fusion.operators.base import name_operator
from export.fusion.paths import read_module_path

aten = torch.ops.aten

_ONLY_MOVE = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.expand.default),
        *(aten.permute.default, aten.transpose.int, aten.t.default, aten.numpy_T.default),
        *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
        *(aten.slice.Tensor, aten.select.int, aten.alias.default, aten.detach.default),
        *(aten.clone.default, aten.contiguous.default),
    }
)
"""What takes no arithmetic is left: engines do it once, and a copy would make the file larger."""

_RESIZES = ("upsample_", "_upsample_")
"""How the names of operators begin that interpolate."""

_WITHOUT_FORM = frozenset(
    {
        *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
        *("digamma", "erfinv", "i0", "lgamma", "vander", "special_bessel_j0", "special_bessel_j1"),
        *("special_i0", "special_i0e", "special_i1", "special_i1e", "special_log_ndtr"),
        *("special_ndtri", "special_zeta"),
    }
)
"""Operators by name."""


def store_computed_weights(draft: Draft) -> bool:
    """Give `draft` stored tensors for the weights and biases that it computes, and what it resizes.

    Likewise for what the exporter has no function for.

    Returns:
        Whether anything was done.
    """
    constants = Constants(draft, Mutations(draft.graph))
    found: dict[fx.Node, str] = {}
    for node in draft.graph.nodes:
        weight = name_weight(node)
        for name in (weight, "bias") if weight else ():
            value = read_argument(node, name)
            if _is_worth_storing(constants, value):
                found.setdefault(value, "bias" if name == "bias" else "weight")
    within = {item for node in found for item in constants.computed(node)}
    for node in reversed(draft.graph.nodes):
        made = _name_made(node)
        if made is not None and node not in within and _is_worth_storing(constants, node):
            found[node] = made
            within |= {*constants.computed(node)}
    stored = False
    for node in [item for item in reversed(draft.graph.nodes) if item in found]:
        if node.users:  # else it was within a weight that is stored now
            stored |= _store(draft, constants, node, found[node])
    return stored


def _name_made(node: fx.Node) -> str | None:
    """What to call the value of a node that is stored wherever it is constant; None of others."""
    if node.op != "call_function":
        return None
    name = name_operator(node)
    if name.startswith(_RESIZES):
        return "resized"
    return name if name in _WITHOUT_FORM else None


def _is_worth_storing(constants: Constants, value: object) -> bool:
    if not isinstance(value, fx.Node) or value not in constants:
        return False
    computed = constants.computed(value)
    returned = any(user.op == "output" for user in value.users)
    dtype = value.meta["val"].dtype
    return (
        any(node.target not in _ONLY_MOVE for node in computed)
        and not returned
        and bool(dtype.is_floating_point)
    )


def _store(draft: Draft, constants: Constants, node: fx.Node, name: str) -> bool:
    example: Tensor = node.meta["val"]
    tensor = constants.value(node, torch.device("cpu")).to(example.device, example.dtype)
    if not tensor.isfinite().all():
        return False
    computed = constants.computed(node)
    stored = [s for item in computed for s in item.all_input_nodes if draft.target(s)]
    beside = stored[0] if stored else None  # forward may make all of it out of nothing
    prefix = draft.target(beside).rpartition(".")[0] if beside else read_module_path(node)
    trains = beside is not None and draft.requires_grad(beside)
    value = nn.Parameter(tensor.contiguous(), requires_grad=trains)
    wanted = f"{prefix}.{name}" if prefix else name
    draft.erase(node, draft.add(wanted, value, beside=beside))
    for item in reversed(computed[:-1]):
        if not item.users:
            draft.graph.erase_node(item)
    return True

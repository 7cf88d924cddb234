"""Complex values as pairs of real ones.

ONNX has few operators for complex values, and engines fewer. So each complex value of a program
becomes a real one with one axis more, the last, along which real and imaginary part lie side by
side: ``[...]`` complex to ``[..., 2]``, as `torch.view_as_real` has it. What is done to complex
values becomes what that is for pairs. An operator without a rule is left to the exporter.
"""

from typing import Any

import torch
from torch import fx, nn

from export.fusion.draft import Draft
from export.onnx.complex import arithmetic, layout
from export.onnx.complex.pairs import Pairs, Rule, is_complex

RULES: dict[Any, Rule] = {**arithmetic.RULES, **layout.RULES}
"""By operator; those that are not here are left to the exporter."""


def pair_complex_values(draft: Draft) -> bool:
    """Whether there was a complex value, each of which is a pair now.

    What returns the same memory or is written into must have been taken out before.
    """
    nodes = list(draft.graph.nodes)
    if not any(is_complex(node) for node in nodes):
        return False
    pairs = Pairs()
    for node in nodes:
        if node.op == "placeholder":
            _pair_stored(draft, node, pairs)
        elif is_complex(node) or any(is_complex(source) for source in node.all_input_nodes):
            _rewrite(draft, node, pairs)
    for node in reversed(nodes):
        if node.op == "call_function" and is_complex(node) and not node.users:
            draft.graph.erase_node(node)
    return True


def _pair_stored(draft: Draft, node: fx.Node, pairs: Pairs) -> None:
    stored = draft.stored(node)
    if stored is None or not stored.is_complex():
        return
    values = torch.view_as_real(stored.detach().resolve_conj()).contiguous()
    parts = nn.Parameter(values, requires_grad=False)
    pairs.carry(node, draft.add(f"{draft.target(node)}_parts", parts, beside=None))


def _rewrite(draft: Draft, node: fx.Node, pairs: Pairs) -> None:
    rule = RULES.get(node.target) if node.op == "call_function" else None
    with draft.graph.inserting_before(node):
        made = None if rule is None else rule(pairs.place(node))
    if made is None:
        with draft.graph.inserting_before(node):
            pairs.restore_inputs(node)
    elif is_complex(node):
        pairs.carry(node, made)
    else:
        draft.erase(node, made)

"""Values of a captured graph that do not depend on its inputs, whatever computes them.

Parametrizations (weight norm, spectral norm), ``weight + identity``, ``gamma.view(1, -1, 1, 1)``
and the like stand in the graph as operators on stored tensors, ``torch.full((8, 1, 1), 0.5)`` as an
operator on nothing. To a rewrite they are constants.
"""

import torch
from torch import Tensor, fx

from export.fusion.draft import Draft
from export.fusion.evaluation import evaluate
from export.fusion.mutation import Mutations, written_arguments

aten = torch.ops.aten

_WINDOWS = (
    *(aten.bartlett_window.default, aten.bartlett_window.periodic),
    *(aten.blackman_window.default, aten.blackman_window.periodic),
    *(aten.hamming_window.default, aten.hamming_window.periodic),
    *(aten.hamming_window.periodic_alpha, aten.hamming_window.periodic_alpha_beta),
    *(aten.hann_window.default, aten.hann_window.periodic),
    *(aten.kaiser_window.default, aten.kaiser_window.periodic, aten.kaiser_window.beta),
)
_MADE = frozenset(
    {
        *_WINDOWS,
        *(aten.full.default, aten.ones.default, aten.zeros.default, aten.scalar_tensor.default),
        *(aten.eye.default, aten.eye.m, aten.linspace.default),
        *(aten.arange.default, aten.arange.start, aten.arange.start_step),
    }
)
"""What makes a value out of nothing, and always the same."""

_LARGEST = 2**28
"""Elements of the largest value that is worked out."""


class Constants:
    """The constants of one graph, as it was when this was made."""

    def __init__(self, draft: Draft, mutations: Mutations) -> None:
        self._draft = draft
        self._values: dict[fx.Node, Tensor] = {}
        self._sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in draft.graph.nodes:
            if draft.stored(node) is not None:
                self._sources[node] = ()
            elif self._is_constant(node) and not mutations.writes(node):
                merged = {s: None for i in node.all_input_nodes for s in self._sources[i]}
                self._sources[node] = (*merged, node)

    def __contains__(self, node: object) -> bool:
        return isinstance(node, fx.Node) and node in self._sources

    def computed(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The operators that compute a constant, in graph order; none for a stored tensor."""
        return self._sources[node]

    def value(self, node: fx.Node, device: torch.device) -> Tensor:
        """The constant in float64; on the meta device only its shape."""
        if device.type == "meta":
            shape = tuple(node.meta["val"].shape)
            return torch.empty(shape, dtype=torch.float64, device=device)
        if node not in self._values:
            stored = self._draft.stored(node)
            if stored is None:
                computed = self._sources[node]
                with torch.no_grad():
                    found = evaluate(self._draft, computed, {}, dtype=torch.float64, keep=(node,))
                self._values[node] = found[node].to(torch.float64)
            else:
                return stored.detach().to(device, torch.float64)
        return self._values[node].to(device)

    def find(self, node: object, device: torch.device) -> Tensor | None:
        """The same, or None where `node` is no constant."""
        return self.value(node, device) if isinstance(node, fx.Node) and node in self else None

    def _is_constant(self, node: fx.Node) -> bool:
        if any(_gains_bits(source, node) for source in node.all_input_nodes):
            return False
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return False
        if torch.Tag.nondeterministic_seeded in node.target.tags or any(written_arguments(node)):
            return False
        value = node.meta.get("val")
        return (
            isinstance(value, Tensor)
            and all(isinstance(size, int) for size in value.shape)
            and value.numel() <= _LARGEST
            and (bool(node.all_input_nodes) or node.target in _MADE)
            and all(source in self._sources for source in node.all_input_nodes)
        )


def _gains_bits(source: fx.Node, node: fx.Node) -> bool:
    """Whether what was computed in one number format goes on in a finer one.

    ``weight.half().float()`` is rounded to fewer bits on purpose, which float64 would not show.
    """
    before, after = source.meta.get("val"), node.meta.get("val")
    if source.op == "placeholder" or not isinstance(before, Tensor):
        return False
    if not (isinstance(after, Tensor) and before.is_floating_point() and after.is_floating_point()):
        return False
    return torch.finfo(before.dtype).eps > torch.finfo(after.dtype).eps

"""Which values of a captured graph are changed in place, and whether a rewrite could notice.

Captured graphs keep the user's in-place operators. Most are harmless: ``relu_`` of a value that
nothing else reads is ``relu``. A rewrite that reads a value later than the original did, or that
drops the operator which changes it, must know of the others.
"""

from collections.abc import Iterator
from operator import getitem

import torch
from torch import fx

DROPOUTS = frozenset(
    getattr(torch.ops.aten, f"{kind}{suffix}").default
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for suffix in ("", "_")
)
"""All forms of dropout; in inference they return what they were given, and change nothing."""

_DETACH = torch.ops.aten.detach_.default
"""Cuts off gradients alone; every ``torch.tensor(...)`` in a forward ends with it."""

_MAY_RETURN_INPUT = frozenset(
    {
        *DROPOUTS,
        torch.ops.aten.einsum.default,
        torch.ops.aten.meshgrid.default,
        torch.ops.aten.meshgrid.indexing,
        torch.ops.aten.unsafe_chunk.default,
        torch.ops.aten.unsafe_split.Tensor,
        torch.ops.aten.unsafe_split_with_sizes.default,
        getitem,
    }
)
"""Operators that may return what they were given, or a view of it, which no schema says."""

_LEARNS_BY: dict[object, str] = {
    torch.ops.aten.batch_norm.default: "training",
    torch.ops.aten.native_batch_norm.default: "training",
    torch.ops.aten.cudnn_batch_norm.default: "training",
    torch.ops.aten.instance_norm.default: "use_input_stats",
}
"""Norms that change their running statistics if that argument is true; their schema hides it."""


class Mutations:
    """Aliases and in-place changes of one graph, as it was when this was made."""

    def __init__(self, graph: fx.Graph) -> None:
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        self._parent: dict[fx.Node, fx.Node] = {}
        self._writes: list[tuple[fx.Node, fx.Node]] = []
        for node in graph.nodes:
            for source in _aliased_arguments(node):
                self._parent[self._root(source)] = self._root(node)
            self._writes += [(node, argument) for argument in written_arguments(node)]
        self._classes: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            self._classes.setdefault(self._root(node), []).append(node)

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with `node`, itself included, in graph order."""
        return self._classes[self._root(node)]

    def writes(self, node: fx.Node) -> list[fx.Node]:
        """The operators that change the memory of `node`, in graph order."""
        root = self._root(node)
        return [writer for writer, argument in self._writes if self._root(argument) is root]

    def changed(self) -> frozenset[fx.Node]:
        """All values whose memory is changed in place."""
        roots = {self._root(argument) for _, argument in self._writes}
        return frozenset(node for root in roots for node in self._classes[root])

    def is_stale(self, node: fx.Node) -> bool:
        """Whether some value in the memory of `node` is read after it was changed in place."""
        return any(
            self.position[user] > self.position[writer]
            for writer in self.writes(node)
            for alias in self.aliases(node)
            if self.position[alias] < self.position[writer]
            for user in alias.users
        )

    def is_changed_between(
        self, source: fx.Node, result: fx.Node, *, without: frozenset[fx.Node]
    ) -> bool:
        """Whether the memory of `source` is changed before `result`, not counting `without`."""
        return any(
            self.position[source] < self.position[writer] < self.position[result]
            for writer in self.writes(source)
            if writer not in without
        )

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self._parent and self._parent[node] is not node:
            node = self._parent[node]
        return node


def written_arguments(node: fx.Node) -> Iterator[fx.Node]:
    """The values that an operator changes in place."""
    values = {argument.name: value for argument, value in _schema_arguments(node)}
    if node.target is _DETACH or (node.target in DROPOUTS and not values["train"]):
        return
    learns = values.get(_LEARNS_BY.get(node.target, ""))
    for argument, value in _schema_arguments(node):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes or (learns and argument.name in ("running_mean", "running_var")):
            yield from _nodes(value)


def _aliased_arguments(node: fx.Node) -> Iterator[fx.Node]:
    """The values that the result of `node` may share memory with."""
    if node.target in _MAY_RETURN_INPUT:
        yield from _nodes(node.args)
        return
    for argument, value in _schema_arguments(node):
        if argument.alias_info is not None:
            yield from _nodes(value)


def _schema_arguments(node: fx.Node) -> Iterator[tuple[torch.Argument, object]]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for index, argument in enumerate(node.target._schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        yield argument, given


def _nodes(value: object) -> Iterator[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nodes(item)

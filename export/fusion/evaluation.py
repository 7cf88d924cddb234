"""Runs parts of a captured graph on given values, in a precision of choice.

This is the original's own arithmetic, operator by operator: what rewrites are held against.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.draft import Draft

_CHECK = torch.ops.aten._assert_tensor_metadata.default


def evaluate(
    draft: Draft,
    nodes: Iterable[fx.Node],
    known: Mapping[fx.Node, Any],
    *,
    dtype: torch.dtype | None,
    keep: Iterable[fx.Node] = (),
) -> dict[fx.Node, Any]:
    """The values of `nodes`, run in their order.

    Args:
        draft: where stored tensors come from.
        nodes: in graph order; what they read is stored, in `known`, or among them.
        known: values that are given; they are not cast, and not changed.
        dtype: of every floating tensor and of every floating dtype that an operator names; None
            leaves all as it was captured.
        keep: values that are wanted; all others are dropped after their last use.

    Returns:
        `known` and what is in `keep`.
    """
    order = list(nodes)
    wanted = {*keep, *known}
    last = {source: node for node in order for source in node.all_input_nodes}
    values: dict[fx.Node, Any] = dict(known)

    def load(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        stored = draft.stored(node)
        if stored is not None:
            return cast(stored.detach(), dtype)
        return _read_hint(node)

    for node in order:
        if node in values or (dtype is not None and node.target is _CHECK):
            continue  # a check of the format that was captured fails in any other
        named = dtype if node.all_input_nodes else None  # what is made of nothing is rounded first
        given: Any = fx.node.map_aggregate(
            (node.args, node.kwargs), partial(_cast_dtype, dtype=named)
        )
        args, kwargs = fx.node.map_arg(given, load)
        made: Any = node.target(*args, **kwargs)  # type: ignore[operator]
        values[node] = fx.node.map_aggregate(made, partial(_cast_value, dtype=dtype))
        for source in node.all_input_nodes:
            if last[source] is node and source not in wanted:
                values.pop(source, None)
    return values


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` in `dtype` if it holds floating numbers."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _cast_value(item: Any, *, dtype: torch.dtype | None) -> Any:
    """What an operator makes of no floats, such as ``ones``, is of torch's default type."""
    return cast(item, dtype) if isinstance(item, Tensor) else item


def hint(size: int | torch.SymInt) -> int:
    """The number that a size had when the graph was captured; 1 where the data decides it."""
    if isinstance(size, int):
        return size
    return 1 if size.node.hint is None else int(size.node.hint)


def _read_hint(node: fx.Node) -> Any:
    """The captured value of a size that the graph computes.

    Raises:
        KeyError: `node` is a tensor, and nobody gave it.
    """
    value = node.meta.get("val")
    if isinstance(value, (int, float, bool)):
        return value
    if isinstance(value, torch.SymInt):
        return hint(value)
    raise KeyError(node.name)


def _cast_dtype(item: Any, *, dtype: torch.dtype | None) -> Any:
    if dtype is not None and isinstance(item, torch.dtype) and item.is_floating_point:
        return dtype
    return item

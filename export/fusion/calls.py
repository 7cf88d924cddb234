"""New calls of operators in a graph, with the example values that shapes are read from."""

from collections.abc import Callable
from typing import Any

from torch import fx


def add_call(place: fx.Node, target: Callable[..., Any], *args: Any) -> fx.Node:
    """A call of `target` where the graph of `place` inserts now, told of as a part of `place`.

    Args:
        place: the node that the call is a part of; gives the user's module path.
        target: an operator of aten, or one of Python's on sizes.
        args: nodes with example values, numbers, or lists of them.
    """
    made = place.graph.call_function(target, args)
    made.meta = {key: item for key, item in place.meta.items() if key != "val"}
    with place.meta["val"].fake_mode:
        made.meta["val"] = target(*fx.node.map_arg(args, lambda item: item.meta["val"]))
    return made

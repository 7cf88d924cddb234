"""New calls of operators in a graph, with the example values that shapes are read from."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import fx
from torch._dispatch.python import enable_python_dispatcher


def add_call(place: fx.Node, target: Callable[..., Any], *args: Any, **options: Any) -> fx.Node:
    """A call of `target` where the graph of `place` inserts now, told of as a part of `place`.

    Args:
        place: the node that the call is a part of; gives the user's module path.
        target: an operator of aten, or one of Python's on sizes.
        args: nodes with example values, numbers, or lists of them.
        options: what `target` takes by keyword alone; no nodes.
    """
    made = place.graph.call_function(target, args, options)
    made.meta = {key: item for key, item in place.meta.items() if key != "val"}
    value = place.meta["val"]
    mode = (value[0] if isinstance(value, list | tuple) else value).fake_mode
    unbound = nullcontext() if mode.shape_env is None else mode.shape_env.suppress_guards()
    # What is asked of open sizes on the way must not bind them, nor the kernels in C++ that ask for
    # numbers, as that of a pad does.
    with mode, unbound, enable_python_dispatcher():
        made.meta["val"] = target(*fx.node.map_arg(args, lambda item: item.meta["val"]), **options)
    return made

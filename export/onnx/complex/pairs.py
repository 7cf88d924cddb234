"""Which pair stands for which complex value, and the arithmetic of parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.calls import add_call
from export.fusion.draft import read_argument

aten = torch.ops.aten

Part = fx.Node | float
"""The real or the imaginary part of a value: a node or a number."""
Parts = tuple[Part, Part | None]
"""Both parts; None where the imaginary one is 0 by kind."""


def is_complex(value: object) -> bool:
    """Whether a number or what a node makes is complex, or a list of such."""
    if not isinstance(value, fx.Node):
        return isinstance(value, complex)
    made = value.meta.get("val")
    items = made if isinstance(made, list | tuple) else (made,)
    return any(isinstance(item, Tensor) and item.is_complex() for item in items)


class Pairs:
    """The pairs of one graph."""

    def __init__(self) -> None:
        self._carried: dict[fx.Node, Any] = {}

    def carry(self, node: fx.Node, pair: Any) -> None:
        """From now on `pair` stands for the complex value of `node`."""
        self._carried[node] = pair

    def find(self, place: fx.Node, node: fx.Node) -> Any:
        """The pair of a complex value; one that no rule made is taken apart where it is read."""
        if node not in self._carried:
            return add_call(place, aten.view_as_real.default, node)
        return self._carried[node]

    def place(self, node: fx.Node) -> "Place":
        """Where the pair of `node` is made."""
        return Place(self, node)

    def restore_inputs(self, node: fx.Node) -> None:
        """Let `node` read complex values again."""

        def restore(source: fx.Node) -> fx.Node:
            if source not in self._carried or not isinstance(source.meta["val"], Tensor):
                return source
            pair = add_call(source, aten.contiguous.default, self._carried[source])
            return add_call(source, aten.view_as_complex.default, pair)

        node.args = fx.node.map_arg(node.args, restore)
        node.kwargs = fx.node.map_arg(node.kwargs, restore)


@dataclass(frozen=True)
class Place:
    """A node whose pair is made, and what its rule needs.

    Attributes:
        node: it; new calls stand before it.
    """

    pairs: Pairs
    node: fx.Node

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """A new call, told of as a part of the node."""
        return add_call(self.node, target, *args)

    def read(self, name: str, default: Any = None) -> Any:
        """An argument of the node."""
        return read_argument(self.node, name, default)

    def pair(self, value: fx.Node) -> fx.Node:
        """The pair of a complex value, ``[..., 2]``."""
        found: fx.Node = self.pairs.find(self.node, value)
        return found

    def first(self) -> fx.Node:
        """The pair of the first argument."""
        return self.pair(self.node.args[0])  # type: ignore[arg-type]

    def parts(self, value: Any) -> Parts:
        """Both parts of a value or a number."""
        if isinstance(value, fx.Node) and is_complex(value):
            pair = self.pair(value)
            real, imaginary = (self.call(aten.select.int, pair, -1, part) for part in (0, 1))
            return real, imaginary
        if isinstance(value, complex):
            return value.real, value.imag
        return value, None

    def join(self, real: Part | None, imaginary: Part | None) -> fx.Node | None:
        """A pair of two parts of the node's own shape; None: neither has it."""
        shape = tuple(map(str, self.node.meta["val"].shape))
        whole = [part for part in (real, imaginary) if _has_shape(part, shape)]
        if not whole:
            return None
        parts = [
            part if _has_shape(part, shape) else self.spread(part, whole[0])
            for part in (real, imaginary)
        ]
        return self.call(aten.stack.default, parts, -1)

    def spread(self, part: Part | None, like: Any) -> fx.Node:
        """A part, or 0, in the shape of a real value."""
        if isinstance(part, fx.Node):
            return self.call(aten.expand_as.default, part, like)
        return self.call(aten.full_like.default, like, 0.0 if part is None else part)

    def add(self, x: Part | None, y: Part | None, *, minus: bool = False) -> Part | None:
        """Sum or difference of two parts."""
        if y is None:
            return x
        if x is None:
            return self.negate(y) if minus else y
        targets = (
            (aten.sub.Tensor, aten.sub.Scalar) if minus else (aten.add.Tensor, aten.add.Scalar)
        )
        if isinstance(x, fx.Node):
            return self.call(targets[not isinstance(y, fx.Node)], x, y)
        if isinstance(y, fx.Node):
            return self.call(aten.add.Scalar, self.negate(y) if minus else y, x)
        return x - y if minus else x + y

    def multiply(self, x: Part | None, y: Part | None) -> Part | None:
        """Product of two parts."""
        if x is None or y is None:
            return None
        if isinstance(x, fx.Node):
            kind = aten.mul.Tensor if isinstance(y, fx.Node) else aten.mul.Scalar
            return self.call(kind, x, y)
        return self.call(aten.mul.Scalar, y, x) if isinstance(y, fx.Node) else x * y

    def negate(self, x: Part) -> Part:
        """A part with the other sign."""
        return self.call(aten.neg.default, x) if isinstance(x, fx.Node) else -x

    def axis(self, number: int, rank: int | None = None) -> int:
        """An axis of the first argument, counted from the front."""
        return number % (self.rank if rank is None else rank)

    @property
    def rank(self) -> int:
        """Axes of the first argument."""
        first: fx.Node = self.node.args[0]  # type: ignore[assignment]
        count: int = first.meta["val"].ndim
        return count


def _has_shape(part: Part | None, shape: tuple[str, ...]) -> bool:
    return isinstance(part, fx.Node) and tuple(map(str, part.meta["val"].shape)) == shape


Rule = Callable[[Place], Any]
"""Returns what stands for the node of a `Place`: a pair where it is complex, else a real value;
None: it has no form for these arguments."""

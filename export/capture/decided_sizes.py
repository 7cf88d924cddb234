"""Where the code of a module decides by a size that is to be open, and what holds where it did.

torch.export says of an axis that its size is a constant, or has to fulfil something, and not which
line of the model made it so. While the model's Python runs that line is on the stack.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from export.capture.locating import describe_place, is_of_user, list_running_lines
from export.capture.surroundings import replaced

Axis = tuple[str, int]
"""The name of an input, and which of its axes."""

_SOURCE = re.compile(r"L\['(\w+)'\](?:\[(\d+)\])?\.size\(\)\[(\d+)\]")
_FLAT = "flat_args"
_TORCH = Path(torch.__file__).parent
_ASKING = (str(_TORCH / "__init__.py"), str(_TORCH / "fx" / "experimental"))
"""Where a size that is open becomes a truth or a number; who asks for that is the next one out."""


@dataclass(frozen=True)
class Decision:
    """One way that was taken through the code, by sizes.

    Attributes:
        condition: a formula that holds on this way, of the symbols of `axes`.
        axes: which axis each symbol is the size of.
        place: the module and the line, as `describe_place` has them.
    """

    condition: sympy.Basic
    axes: Mapping[sympy.Symbol, Axis]
    place: str

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes go the same way; True where that cannot be told."""
        sizes = {symbol: shapes[name][axis] for symbol, (name, axis) in self.axes.items()}
        return self.condition.subs(sizes) is not sympy.false


class DecidedSizes:
    """What a module decides by open sizes while it is captured by `listening`.

    Args:
        module: the user's, or what stands around it.
        feeds: example inputs by name, in the order of the call.

    Attributes:
        decisions: in the order of the code. Of those by torch's own code only what it held as a
            guard is among them.
        fixed: axes whose size became a constant, with the place.
    """

    def __init__(self, module: nn.Module, feeds: Mapping[str, Tensor]) -> None:
        self.decisions: list[Decision] = []
        self.fixed: dict[Axis, str] = {}
        self._module = module
        self._names = list(feeds)
        self._shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        self._seen: set[tuple[object, int, sympy.Basic]] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what is asked of sizes, for the length of the block; forget what was before."""
        self.decisions.clear()
        self.fixed.clear()
        self._seen.clear()
        evaluate = ShapeEnv.evaluate_expr

        def listen(env: ShapeEnv, formula: Any, *args: Any, **kwargs: Any) -> Any:
            guards = len(env.guards)
            result = evaluate(env, formula, *args, **kwargs)
            self._hear(env, formula, result, len(env.guards) > guards)
            return result

        with replaced(ShapeEnv, "evaluate_expr", listen):
            yield

    def find_fixed_batch(self) -> str:
        """Where the size of a leading axis became a constant; nothing: not known."""
        return next((place for (_, axis), place in self.fixed.items() if axis == 0 and place), "")

    def find_place(self, axis: Axis, sizes: Iterable[int]) -> str:
        """Where the size of `axis` became a constant, or one of `sizes` goes another way there."""
        if place := self.fixed.get(axis):
            return place
        name, number = axis
        found = ""
        for size in sizes:
            shape = list(self._shapes[name])
            shape[number] = size
            found = found or self.find_other_way({**self._shapes, name: shape})
        return found

    def find_other_way(self, shapes: Mapping[str, Sequence[int]]) -> str:
        """Where inputs of these shapes go another way than the captured one; nothing: not known."""
        others = (d.place for d in self.decisions if d.place and not d.holds(shapes))
        return next(others, "")

    def _hear(self, env: ShapeEnv, formula: Any, result: Any, guarded: bool) -> None:
        if not isinstance(formula, sympy.Basic) or not formula.free_symbols:
            return
        asking = _find_asking(sys._getframe(2))
        if asking is None or not (guarded or is_of_user(asking)):
            return
        key = asking.f_code, asking.f_lineno, formula
        if key in self._seen and not guarded:
            return
        self._seen.add(key)
        lines = list_running_lines(asking, torch.export.export)
        place = describe_place(self._module, lines)
        axes = self._list_axes(env)
        if formula.free_symbols <= axes.keys():
            held = {symbol: axes[symbol] for symbol in formula.free_symbols}
            self.decisions.append(Decision(_hold(formula, result), held, place))
        for symbol, axis in axes.items():
            if axis not in self.fixed and env.replace(symbol).is_number:
                self.fixed[axis] = place

    def _list_axes(self, env: ShapeEnv) -> dict[sympy.Symbol, Axis]:
        """Which axis of which input each symbol was made for."""
        found = {}
        for symbol, sources in env.var_to_sources.items():
            named = _SOURCE.fullmatch(str(sources[0].name)) if sources else None
            if named is not None and (name := self._find_input(named[1], named[2])) is not None:
                found[symbol] = (name, int(named[3]))
        return found

    def _find_input(self, parameter: str, index: str | None) -> str | None:
        """The input that torch calls so; one of ``*args`` has a number, counted from the first."""
        if index is None:
            return parameter if parameter in self._names else None
        number = int(index) if parameter == _FLAT else int(index) + self._count_named(parameter)
        return self._names[number] if number < len(self._names) else None

    def _count_named(self, parameter: str) -> int:
        """How many inputs come before those of the parameter ``*args``."""
        named = list(inspect.signature(self._module.forward).parameters)
        return named.index(parameter) if parameter in named else 0


def _find_asking(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename.startswith(_ASKING):
        frame = frame.f_back
    return frame


def _hold(formula: sympy.Basic, result: Any) -> sympy.Basic:
    """The formula that says that `formula` came to `result`."""
    if not isinstance(formula, Boolean):
        return sympy.Eq(formula, result)
    return formula if result else sympy.Not(formula)

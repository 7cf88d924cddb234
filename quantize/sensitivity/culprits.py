"""The smallest set of nodes that must stay in float for a gate to hold, by bisection.

Every question builds and runs one mix. With one culprit among n nodes it takes ``log2(n) + 2``
questions; each further culprit takes as many again, on the nodes before the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Culprits:
    """What was found.

    Attributes:
        names: that must stay float, in graph order; none where the gate holds without.
        builds: how many mixes were asked about.
        complete: whether the gate holds with these; otherwise the questions ran out, and there are
            more.
    """

    names: tuple[str, ...]
    builds: int
    complete: bool


def find_culprits(
    nodes: Sequence[str], passes: Callable[[frozenset[str]], bool], *, builds: int
) -> Culprits:
    """Find a set that none of its members can leave.

    Believes that what passes with some nodes in float passes with more of them, and that all in
    float passes. A node is a culprit where the gate holds with all nodes up to it in float and
    fails without it.

    Args:
        nodes: in graph order.
        passes: whether the gate holds with these in float and the rest in low precision.
        builds: at most that many questions, at least 1.
    """
    asked = 0
    found: list[str] = []

    def ask(kept: Sequence[str]) -> bool:
        nonlocal asked
        asked += 1
        return passes(frozenset((*kept, *found)))

    left = list(nodes)
    while not ask(()):
        low, high = 0, len(left)  # the first `low` do not do, the first `high` do
        while high - low > 1:
            if asked >= builds:
                return _finish(nodes, found, asked, complete=False)
            middle = (low + high) // 2
            low, high = (low, middle) if ask(left[:middle]) else (middle, high)
        if high == 0:
            return _finish(nodes, found, asked, complete=False)  # nothing is left to blame
        found.append(left[high - 1])
        left = left[: high - 1]
        if asked >= builds:
            return _finish(nodes, found, asked, complete=False)
    return _finish(nodes, found, asked, complete=True)


def _finish(nodes: Sequence[str], found: list[str], asked: int, *, complete: bool) -> Culprits:
    return Culprits(tuple(name for name in nodes if name in found), asked, complete)

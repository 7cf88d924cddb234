"""What torch puts in the place of composed operators while it decomposes, made once a process.

Each `run_decompositions`, and so each export, gives 500 operators a score of kernels of Python and
takes them away again: a quarter of the time that a small network takes. They are the same every
time, so those of an operator are kept and given again.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

Override = Callable[[Mapping[Any, Any]], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class _Kept:
    """The kernels of one operator.

    Attributes:
        composition: that they were made for.
        before: the kernels that it had without them.
        during: all that it has with them.
        rule: how its results are told without values, if it had no such rule before.
    """

    composition: Any
    before: dict[Any, Any]
    during: dict[Any, Any]
    rule: Any


_KEPT: dict[Any, _Kept] = {}
"""By operator."""


@contextlib.contextmanager
def keep_overrides() -> Iterator[None]:
    """Have each decomposition of the block use the kernels that were made before.

    Those of an operator with another composition, or other kernels of its own, than then are made
    anew. Where another release of torch has no such parts, nothing changes.
    """
    from torch._subclasses import fake_impls
    from torch.export import exported_program

    owner: Any = exported_program
    original: Override | None = getattr(owner, "_override_composite_implicit_decomp", None)
    rules: dict[Any, Any] | None = getattr(fake_impls, "op_implementations_dict", None)
    if original is None or rules is None:
        yield
        return

    @contextlib.contextmanager
    def override(compositions: Mapping[Any, Any]) -> Iterator[None]:
        plain = {operator: dict(operator.py_kernels) for operator in compositions}
        ruled = {operator for operator in compositions if operator in rules}
        known = {
            operator: kept
            for operator, composition in compositions.items()
            if (kept := _KEPT.get(operator)) is not None
            and _is_same(kept.composition, composition)
            and kept.before == plain[operator]
            and (kept.rule is None) == (operator in ruled)
        }
        others = {operator: c for operator, c in compositions.items() if operator not in known}
        with original(others):
            for operator, composition in others.items():
                rule = None if operator in ruled else rules.get(operator)
                during = dict(operator.py_kernels)
                _KEPT[operator] = _Kept(composition, plain[operator], during, rule)
            try:
                for operator, kept in known.items():
                    _set_kernels(operator, kept.during)
                    if kept.rule is not None:
                        rules[operator] = kept.rule
                yield
            finally:
                for operator, kept in known.items():
                    _set_kernels(operator, kept.before)
                    if kept.rule is not None:
                        rules.pop(operator, None)

    owner._override_composite_implicit_decomp = override
    try:
        yield
    finally:
        owner._override_composite_implicit_decomp = original


def _is_same(first: Any, second: Any) -> bool:
    """Whether two compositions do the same: one, or two that torch made alike of its own kernel."""
    if first is second:
        return True
    if not (isinstance(first, partial) and isinstance(second, partial)):
        return False
    codes = [getattr(each.func, "__code__", None) for each in (first, second)]
    bound = any(getattr(each.func, "__closure__", None) for each in (first, second))
    same = (first.args, first.keywords) == (second.args, second.keywords)
    return same and codes[0] is not None and codes[0] is codes[1] and not bound


def _set_kernels(operator: Any, kernels: Mapping[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()

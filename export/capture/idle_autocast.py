"""``torch.autocast(enabled=False)`` where nothing is cast anyway leaves no trace in a capture.

Attention that must stay in float32 is often written so. torch.export records the block as a graph
of its own, into which no rewrite and no proof looks.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_Autocast = torch.amp.autocast_mode.autocast


@contextlib.contextmanager
def skip_idle_autocast() -> Iterator[None]:
    """Have blocks that switch autocast off do nothing where it is not on."""
    enter: Any = _Autocast.__enter__
    leave: Any = _Autocast.__exit__
    entered: list[tuple[Any, bool]] = []

    def begin(self: Any) -> Any:
        on = torch.is_autocast_enabled(self.device) or any(ours._enabled for ours, _ in entered)
        idle = not self._enabled and not on
        entered.append((self, idle))
        return self if idle else enter(self)

    def end(self: Any, *raised: Any) -> Any:
        _, idle = entered.pop()
        return None if idle else leave(self, *raised)

    _Autocast.__enter__, _Autocast.__exit__ = begin, end  # type: ignore[method-assign]
    try:
        yield
    finally:
        _Autocast.__enter__, _Autocast.__exit__ = enter, leave  # type: ignore[method-assign]

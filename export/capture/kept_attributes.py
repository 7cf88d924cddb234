"""What a module keeps on itself from call to call, put back behind a capture.

A detector that keeps the anchors of the last size of image is left with tensors without values by
torch.export, and with sizes that are symbols; whoever compares such a size later binds it in the
program that was captured.
"""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any

from torch import nn

_DICTS = (dict, OrderedDict, defaultdict)


class Attributes:
    """The attributes of a module and of its parts, with what the dicts and lists among them hold.

    Tensors are known by identity: one that is changed in place is not looked at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = _note(module)

    def differ(self) -> bool:
        """Whether anything was set since."""
        return any(not _holds(container, items) for container, items in self._held)

    def put_back(self) -> None:
        """Set all attributes to what they were."""
        for container, items in self._held:
            if _holds(container, items):
                continue
            container.clear()
            if isinstance(container, list):
                container.extend(items)
            else:
                container.update(items)


@contextlib.contextmanager
def kept_attributes(module: nn.Module) -> Iterator[Attributes]:
    """Put the attributes of `module` back at the end of the block."""
    attributes = Attributes(module)
    try:
        yield attributes
    finally:
        attributes.put_back()


def _note(module: nn.Module) -> list[tuple[Any, Any]]:
    """The dicts and lists within `module`, each with a copy of what it holds."""
    found: dict[int, tuple[Any, Any]] = {}
    waiting: list[Any] = [module]
    while waiting:
        item = waiting.pop()
        container = vars(item) if isinstance(item, nn.Module) else item
        if id(container) in found:
            continue
        if type(container) in _DICTS:
            found[id(container)] = (container, dict(container))
            waiting += container.values()
        elif type(container) is list:
            found[id(container)] = (container, list(container))
            waiting += container
        elif type(container) is tuple:
            waiting += container
    return list(found.values())


def _holds(container: Any, items: Any) -> bool:
    if isinstance(container, list):
        return len(container) == len(items) and all(map(_is, container, items))
    return container.keys() == items.keys() and all(container[key] is items[key] for key in items)


def _is(one: object, other: object) -> bool:
    return one is other

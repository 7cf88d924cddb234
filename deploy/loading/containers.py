"""Containers of trusted classes in a pickle: torch's safe reader fills its own alone.

A model's configuration is often a dict of a class of its own, such as diffusers' FrozenDict.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import _weights_only_unpickler

from export.errors import LoadError, Remedy

_REFUSED = re.compile(r"Can only (?:append|extend|SETITEMS?)\b.* but got <class '([\w.]+)'>")


@contextmanager
def filled_dicts(trusted: list[Any]) -> Iterator[None]:
    """Let torch's safe reader fill dicts whose class is one of `trusted`.

    Where another release has no such part, nothing changes.

    Args:
        trusted: ``(object, name)``, as torch's safe globals are.
    """
    classes = {found for found, _ in trusted if isinstance(found, type) and issubclass(found, dict)}
    unpickler: Any = _weights_only_unpickler.Unpickler
    check = getattr(unpickler, "_check_set_item_target", None)
    if check is None:
        yield
        return

    def check_target(reader: Any, opcode: str) -> None:
        if type(reader.stack[-1]) not in classes:
            check(reader, opcode)

    unpickler._check_set_item_target = check_target
    try:
        yield
    finally:
        unpickler._check_set_item_target = check


def explain_container(error: pickle.UnpicklingError, path: object) -> LoadError | None:
    """The error for a container that torch's safe reader does not fill; None where it is another.

    Args:
        error: torch's.
        path: the file, for messages.
    """
    found = _REFUSED.search(str(error))
    if found is None:
        return None
    text = (
        f"{path} holds a {found[1]}, which --trust does not fill: keep a list or a dict in its "
        "place, or give the state_dict with --model."
    )
    lead = "To let the file run any code as you, so only if you made it:"
    return LoadError(text, Remedy(lead, (("--trust-all",),), 'trust=("*",)'))

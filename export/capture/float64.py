"""A module in float64: what float32 itself loses is told by it."""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from export.capture.copying import deep_copy

Result = TypeVar("Result")

_OWN = ("_parameters", "_buffers", "_modules")
"""Of a module: what `nn.Module.double` looks at."""


def copy_in_float64(module: nn.Module) -> nn.Module:
    """A deep copy in float64, with the tensors that its parts hold as plain attributes.

    Those stand in the attributes themselves, or in lists, tuples and dicts of theirs. One tensor
    that is held in several places stays one.

    Raises:
        Exception: whatever the copy of the user's module raises.
    """
    wide = deep_copy(module).double()
    made: dict[int, tuple[Any, Any]] = {}
    for part in wide.modules():
        held = vars(part)
        held.update({key: _widen(held[key], made) for key in held.keys() - set(_OWN)})
    return wide


def run_in_float64(run: Callable[[], Result]) -> Result:
    """What `run` gives; where it fails, with float64 for what it makes in the default format.

    The zeros that a recurrent cell starts from are such.

    Raises:
        Exception: whatever the first run raises, where the second fails too.
    """
    try:
        return run()
    except Exception:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return run()
        except Exception:  # noqa: BLE001  the user's code: the first failure is the reason
            pass
        finally:
            torch.set_default_dtype(before)
        raise


def _widen(value: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with its tensors in float64; `made` has what became of each, and keeps it alive."""
    if id(value) in made:
        return made[id(value)][1]
    wide = value
    if isinstance(value, Tensor) and value.is_floating_point():
        wide = value.double()
    elif type(value) in (list, tuple):
        items = [_widen(item, made) for item in value]
        wide = value if all(map(operator.is_, items, value)) else type(value)(items)
    elif type(value) is dict:
        items = [_widen(item, made) for item in value.values()]
        same = all(map(operator.is_, items, value.values()))
        wide = value if same else dict(zip(value, items, strict=True))
    made[id(value)] = (value, wide)
    return wide

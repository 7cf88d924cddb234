"""A module in float64: what float32 itself loses is told by it."""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from export.capture.copying import deep_copy

Result = TypeVar("Result")

_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_OWN = ("_parameters", "_buffers", "_modules")
"""Of a module: what `nn.Module.double` looks at."""


def copy_in_float64(module: nn.Module) -> nn.Module:
    """A deep copy in float64, with the tensors that its parts hold as plain attributes.

    Those stand in the attributes themselves, or in lists, tuples and dicts of theirs. One tensor
    that is held in several places stays one. Complex ones are pairs of float64.

    Raises:
        Exception: whatever the copy of the user's module raises.
    """
    wide: nn.Module = deep_copy(module)._apply(_widen_tensor)  # type: ignore[no-untyped-call]
    made: dict[int, tuple[Any, Any]] = {}
    for part in wide.modules():
        held = vars(part)
        held.update({key: _widen(held[key], made) for key in held.keys() - set(_OWN)})
    return wide


def run_in_float64(run: Callable[[], Result]) -> Result:
    """What `run` gives; where it fails, with float64 for what it makes in float32.

    The zeros that a recurrent cell starts from are such, and what it casts to float32 by name.
    Attention goes by torch's plain kernel: the other reads a mask in float32, as forward makes it,
    as if it were float64, and answers anything.

    Raises:
        Exception: whatever the first run raises, where the second fails too.
    """
    with sdpa_kernel(SDPBackend.MATH):
        try:
            return run()
        except Exception:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                with _WideNames():
                    return run()
            except Exception:  # noqa: BLE001  the user's code: the first failure is the reason
                pass
            finally:
                torch.set_default_dtype(before)
            raise


class _WideNames(TorchFunctionMode):
    """float32 that is asked for by name is float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call what was called, with other formats."""
        called = Tensor.double if func is Tensor.float else func
        given = tree_map_only(torch.dtype, _widen_format, (args, kwargs or {}))
        return called(*given[0], **given[1])


def _widen_format(form: torch.dtype) -> torch.dtype:
    return _WIDE.get(form, form)


def _widen_tensor(value: Tensor) -> Tensor:
    if value.is_complex():
        return value.to(torch.complex128)
    return value.double() if value.is_floating_point() else value


def _widen(value: Any, made: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with its tensors in float64; `made` has what became of each, and keeps it alive."""
    if id(value) in made:
        return made[id(value)][1]
    wide = value
    if isinstance(value, Tensor):
        wide = _widen_tensor(value)
    elif type(value) in (list, tuple):
        items = [_widen(item, made) for item in value]
        wide = value if all(map(operator.is_, items, value)) else type(value)(items)
    elif type(value) is dict:
        items = [_widen(item, made) for item in value.values()]
        same = all(map(operator.is_, items, value.values()))
        wide = value if same else dict(zip(value, items, strict=True))
    made[id(value)] = (value, wide)
    return wide

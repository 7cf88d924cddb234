"""Numbers that a model counts by ``arange`` and reads back, while it is captured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from export.capture.replaced_calls import Replacement

_READERS = (Tensor.tolist, Tensor.item, Tensor.unbind, Tensor.__iter__)
_NAMES = ("start", "end", "step")


class CountedNumbers(Replacement):
    """Has ``arange(1, x.ndim).tolist()``, and ``.item()`` of one number, come to plain integers.

    torch.export takes them for values of the input, which no axis can be named by.
    """

    functions = (torch.arange, *_READERS)

    def __init__(self) -> None:
        self._counted: Any = WeakIdKeyDictionary()  # tensor -> its version, and what it counts

    def call(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
        """What ``func(*args, **given)`` comes to."""
        numbers = self._read(args[0]) if func in _READERS else None
        if numbers is not None and func is Tensor.tolist:
            return list(numbers)
        if numbers is not None and func is Tensor.item and len(numbers) == 1:
            return numbers[0]
        result = func(*args, **given)
        if func is torch.arange and (counted := _count(args, given)) is not None:
            self._keep(result, counted)
        if numbers is not None and func in (Tensor.unbind, Tensor.__iter__):
            result = list(result)  # by which the tensors of a capture make their list
            for value, number in zip(result, numbers, strict=True):
                self._keep(value, range(number, number + 1))
            return iter(result) if func is Tensor.__iter__ else tuple(result)
        return result

    def _keep(self, tensor: Tensor, numbers: range) -> None:
        self._counted[tensor] = (tensor._version, numbers)

    def _read(self, tensor: Tensor) -> range | None:
        """What `tensor` counts; None where that is not known, or it was written to since."""
        version, numbers = self._counted.get(tensor, (None, range(0)))
        return numbers if version == tensor._version else None


def _count(args: Sequence[object], given: Mapping[str, object]) -> range | None:
    """The integers of a call of ``arange``; None of any that are not written down."""
    if given.get("dtype") not in (None, torch.int64) or given.get("out") is not None:
        return None
    names = ("end",) if len(args) == 1 else _NAMES
    bounds = {**dict(zip(names, args, strict=False)), **given}
    start, end, step = bounds.get("start", 0), bounds.get("end"), bounds.get("step", 1)
    if type(start) is int and type(end) is int and type(step) is int:
        return range(start, end, step)
    return None

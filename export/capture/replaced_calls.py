"""Calls of functions of torch answered in another way, while a model is captured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch.overrides import TorchFunctionMode


class Replacement:
    """Answers the calls of some functions, whoever makes them.

    A subclass says which in `functions`, and either what they call their arguments in `names` and
    what such a call comes to in `answer`, or all of it in `call`. Within both, torch's own
    functions are called.

    Attributes:
        functions: whose calls; a method of tensors besides the function of the same name.
        names: of their arguments, in their order.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    names: ClassVar[tuple[str, ...]] = ()

    def answer(self, given: dict[str, Any]) -> Any:
        """What a call with the arguments `given`, all of them by name, comes to."""
        raise NotImplementedError

    def call(self, func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
        """What ``func(*args, **given)`` comes to."""
        if len(args) > len(self.names):
            return func(*args, **given)
        return self.answer({**dict(zip(self.names, args, strict=False)), **given})


class ReplacedCalls(TorchFunctionMode):
    """Has every call of a function that a replacement names answered by it.

    Args:
        replacements: no two of them name the same function.
    """

    def __init__(self, *replacements: Replacement) -> None:
        super().__init__()
        named = [(func, one.call) for one in replacements for func in one.functions]
        self._calls = dict(named)
        if len(self._calls) != len(named):
            raise ValueError("two replacements of one function")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of every function of its own."""
        call = self._calls.get(func)
        if call is None:
            return func(*args, **(kwargs or {}))
        return call(func, args, dict(kwargs or {}))

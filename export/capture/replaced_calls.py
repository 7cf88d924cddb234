"""Calls of a function of torch answered in another way, while a model is captured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch.overrides import TorchFunctionMode


class ReplacedCalls(TorchFunctionMode):
    """Answers the calls of one function, whoever makes them.

    A subclass says which in `functions` and `names`, and answers in `answer`, within which torch's
    own is called.

    Attributes:
        functions: whose calls; a method of tensors besides the function of the same name.
        names: of its arguments, in their order.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]]
    names: ClassVar[tuple[str, ...]]

    def answer(self, given: dict[str, Any]) -> Any:
        """What a call with the arguments `given`, all of them by name, comes to."""
        raise NotImplementedError

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of every function of its own."""
        given = dict(kwargs or {})
        if func not in self.functions or len(args) > len(self.names):
            return func(*args, **given)
        return self.answer({**dict(zip(self.names, args, strict=False)), **given})

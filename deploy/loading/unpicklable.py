"""Which part of a module cannot be copied or pickled, by the user's own path."""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping

from torch import nn

_OWN = frozenset({"_parameters", "_buffers", "_modules"})
_DEPTH = 6
"""Attributes of attributes; whatever lies deeper is told by what holds it."""

OTHER_WAY = (
    "Take off what cannot, or save the module's state_dict, build that file, and name what makes "
    "the module with --model package.module:factory, which no copy is needed of."
)


def describe_unpicklable(module: nn.Module, write: Callable[[object], object]) -> str:
    """The innermost part of `module` at which `write` fails, such as ``encoder.cache``, in words.

    Args:
        module: which `write` refuses as a whole.
        write: pickles or copies what it is given, or raises.

    Returns:
        What follows the reason of `write`; empty where no part fails by itself.
    """
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _OWN and _fails(write, value):
                path = f"{prefix}.{name}".removeprefix(".")
                return f", which is {_describe(path, value, write)}"
    return ""


def _describe(path: str, value: object, write: Callable[[object], object]) -> str:
    for _ in range(_DEPTH):
        inner = next(((name, held) for name, held in _parts(value) if _fails(write, held)), None)
        if inner is None:
            break
        path, value = path + inner[0], inner[1]
    return f"{path} ({type(value).__name__})"


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What `value` holds, with how it is reached from there."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", held) for key, held in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", held) for index, held in enumerate(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        try:
            read = inspect.getclosurevars(value)
        except ValueError:  # it reads a variable that was not set, or no longer is
            return
        for name, held in {**read.globals, **read.nonlocals}.items():
            yield f", which reads {name}", held
    else:
        yield from ((f".{name}", held) for name, held in getattr(value, "__dict__", {}).items())


def _fails(write: Callable[[object], object], value: object) -> bool:
    try:
        write(value)
    except Exception:  # noqa: BLE001  code of the user's own classes: whatever it raises
        return True
    return False

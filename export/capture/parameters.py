"""The parameters of a module's ``forward``, and how inputs get their names from them."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from export.errors import ConfigError

_WRAP = (
    "; where forward takes a dict or a list of tensors, put the model into a module whose forward "
    "takes each of them by its name and hands them on so."
)


def name_inputs(module: nn.Module, names: Sequence[str | None]) -> tuple[tuple[str, ...], bool]:
    """Final input names, in the order of the call, and whether they are passed by keyword.

    Names that the user gave must be parameters of ``forward``; unnamed inputs take the names of its
    first parameters, or ``input_0``, ``input_1`` ... where those cannot be known, and a lone one
    that of the only one that ``forward`` must be given by name. A program of torch.export takes its
    inputs as it was exported with them: by name, or in order alone.

    Raises:
        ConfigError: a given name is no parameter of ``forward`` or is given twice; none is given
            where ``forward`` takes several by name alone; more inputs than parameters; fewer than
            an exported program takes in order, or one that takes some in order and some by name.
    """
    parameters, takes_any_positional, takes_any_keyword = _forward_parameters(module)
    by_name = parameters + _keyword_only_parameters(module)
    given = [name for name in names if name is not None]
    if twice := [name for name in given if given.count(name) > 1]:
        raise ConfigError(f"Two inputs are called {twice[0]!r}. Give each its own name.")
    if given and len(given) == len(names):
        if not by_name and (takes_any_positional or takes_any_keyword):
            return tuple(given), takes_any_keyword and not takes_any_positional
        unknown = [name for name in given if name not in by_name and not takes_any_keyword]
        if unknown:
            raise ConfigError(
                f"The model's forward has no parameter {unknown[0]!r}. "
                f"It takes: {', '.join(by_name) or 'nothing'}. Rename the input"
                f"{_WRAP if len(by_name) == 1 and len(names) > 1 else '.'}"
            )
        if _takes_in_order(module, by_name):
            if missing := [name for name in parameters if name not in given]:
                raise ConfigError(
                    f"The exported program takes {', '.join(parameters)}, and {missing[0]!r} is "
                    "not among the inputs. Give one of each of these names."
                )
            return parameters, False
        return tuple(given), True
    if given:
        raise ConfigError("Name either every input or none: --input ids:1x128:int64 for each.")
    if by_name and not parameters and not takes_any_positional:
        required = _keyword_only_parameters(module, required=True)
        if len(names) == len(required) == 1:
            return required, True
        raise ConfigError(
            f"The model's forward takes its inputs by name alone: {', '.join(by_name)}. Name every "
            f"input: --input {by_name[0]}:1x128 for each, or the arrays of the data."
        )
    if len(names) > len(parameters) and not takes_any_positional:
        raise ConfigError(
            f"{len(names)} inputs were given and the model's forward takes {len(parameters)}: "
            f"{', '.join(parameters) or 'none'}. Pass one --input for each"
            f"{_WRAP if len(parameters) == 1 else '.'}"
        )
    generic = tuple(f"input_{index}" for index in range(len(names)))
    return (*parameters[: len(names)], *generic[len(parameters) :]), False


def list_needed(module: nn.Module) -> tuple[str, ...]:
    """The parameters of ``forward`` that a call must give; none where they cannot be known."""
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward
        arguments = schema.schema.arguments[1:]
        return tuple(a.name for a in arguments if not a.has_default_value())
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind not in several)


def _forward_parameters(module: nn.Module) -> tuple[tuple[str, ...], bool, bool]:
    """Names of forward's parameters, and whether it takes *args and **kwargs."""
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward
        arguments = [argument.name for argument in schema.schema.arguments]
        return tuple(arguments[1:]), False, False
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return (), True, True
    named = tuple(
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    return (
        named,
        any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _takes_in_order(module: nn.Module, parameters: Sequence[str]) -> bool:
    """Whether an exported program refuses its inputs by name, since it was not exported so.

    Raises:
        ConfigError: it takes some in order and some by name.
    """
    structure = getattr(module, "_in_spec", None) if isinstance(module, fx.GraphModule) else None
    if structure is None or structure.type is not tuple or structure.num_children != 2:
        return False
    in_order, by_name = structure.child(0).num_children, structure.child(1).num_children
    if in_order and by_name:
        raise ConfigError(
            f"The program was exported with {in_order} inputs in order and {by_name} by name "
            f"({', '.join(parameters)}). Export it with all of them in args, or all in kwargs."
        )
    return bool(in_order)


def _keyword_only_parameters(module: nn.Module, *, required: bool = False) -> tuple[str, ...]:
    if isinstance(module, torch.jit.ScriptModule):
        return ()
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    alone = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return tuple(p.name for p in alone if p.default is p.empty or not required)

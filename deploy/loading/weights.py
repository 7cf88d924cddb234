"""What a file of weights becomes: found in its checkpoint, made by a factory, filled key by key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from deploy.loading.references import import_object
from export.errors import ConfigError, LoadError

_STATE_KEYS = (
    *("state_dict", "model_state_dict", "model", "net", "module", "weights"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),
)
"""Where training scripts keep the model in a checkpoint; the first that holds one is taken."""

_PREFIXES = ("module.", "_orig_mod.")


def find_model(content: Any, path: Path) -> tuple[nn.Module | Mapping[str, Any], tuple[str, ...]]:
    """The module or the state_dict in `content`, which may be a training checkpoint, and warnings.

    Raises:
        LoadError: there is neither.
    """
    if isinstance(content, nn.Module) or _is_state(content):
        return content, ()
    if isinstance(content, Mapping):
        held = [key for key in _STATE_KEYS if _is_model(content.get(key))]
        if held:
            return content[held[0]], (_describe_choice(held),)
        keys = ", ".join(repr(key) for key in list(content)[:5])
        raise LoadError(
            f"{path} holds a dict without a model: {keys or 'empty'}. "
            "Save model.state_dict() alone, or under 'state_dict'."
        )
    raise LoadError(
        f"{path} holds an object of type {type(content).__name__}, not a model. "
        "Save the module or its state_dict with torch.save."
    )


def make_module(factory: str) -> nn.Module:
    """The module that ``package.module:callable`` makes, called without arguments.

    Raises:
        ConfigError: there is no such callable.
        LoadError: it raises, or returns something else.
    """
    make = import_object(factory, what="--model")
    if not callable(make):
        raise ConfigError(f"--model {factory}: {type(make).__name__} cannot be called.")
    try:
        module = make()
    except Exception as error:  # the user's own code: whatever it raises is the finding
        raise LoadError(
            f"--model {factory} raised {type(error).__name__}: {error}. It is called without "
            "arguments and must return the module."
        ) from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"--model {factory} returned {type(module).__name__}, not an nn.Module.")
    return module


def fill_weights(
    module: nn.Module, state: Mapping[str, Any], path: Path, factory: str
) -> tuple[str, ...]:
    """Load `state` into `module`, prefixes of wrappers taken off; every key must fit.

    Where a part of `state` is the whole of the module under one prefix, such as ``model.`` of a
    LightningModule that keeps it as ``self.model``, that part is loaded.

    Returns:
        A warning where such a part was taken.

    Raises:
        LoadError: keys are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(
            key.startswith(prefix) for key in own
        ):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    state, notes = _take_part(state, own)
    shapes = [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
        and isinstance(own.get(key), torch.Tensor)
        and not is_lazy(own[key])  # it takes whatever size comes
        and value.shape != own[key].shape
    ]
    faults = _list_faults("of another shape", shapes)
    if not shapes:
        result = module.load_state_dict(dict(state), strict=False)
        faults += _list_faults("missing in the file", result.missing_keys)
        faults += _list_faults("unexpected in the file", result.unexpected_keys)
    if faults:
        raise LoadError(
            f"{path} does not fit the module of --model {factory}: {'; '.join(faults)}. "
            "The factory must make the architecture that was trained."
        )
    return notes


def _take_part(
    state: Mapping[str, Any], own: Mapping[str, Any]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The one part of `state` that has the keys of `own` under a prefix, no other; else all."""
    if not own or own.keys() & state.keys():
        return state, ()
    first = next(iter(own))
    prefixes = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    parts = {
        prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for prefix in prefixes
    }
    fitting = [prefix for prefix, part in parts.items() if part.keys() == own.keys()]
    if len(fitting) != 1:  # of a student and a teacher nobody here knows which is meant
        return state, ()
    prefix = fitting[0]
    rest = [key for key in state if not key.startswith(prefix)]
    found = [f"The weights were found under {prefix!r} in the file"]
    note = f"{'; '.join([*found, *_list_faults('left out', rest)])}."
    return parts[prefix], (note,)


def _is_model(content: Any) -> bool:
    return isinstance(content, nn.Module) or _is_state(content)


def _describe_choice(held: list[str]) -> str:
    """Which entry of a checkpoint was taken, and which others hold a model as well."""
    note = f"The file is a checkpoint; its entry {held[0]!r} was used."
    if len(held) == 1:
        return note
    return f"{note} It also holds {', '.join(map(repr, held[1:]))}: to build that, save it alone."


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, torch.Tensor) for value in content.values())
        and all(isinstance(key, str) for key in content)
        and not any(isinstance(content.get(key), (Mapping, nn.Module)) for key in _STATE_KEYS)
    )


def _list_faults(what: str, items: list[str]) -> list[str]:
    more = ", ..." if len(items) > 5 else ""
    return [f"{len(items)} {what} ({', '.join(items[:5])}{more})"] if items else []

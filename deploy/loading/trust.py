"""Whose code a model file may name: torch's own modules, and the packages that the user trusts.

A name is judged before anything of it is imported, and once more after by where the object is
defined: a trusted package does not lend its trust to what it imports. A refusal lists the names and
says what would trust them.
"""

import importlib
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deploy.loading.references import (
    describe_missing_module,
    is_dotted,
    is_within,
    search_working_directory,
)
from export.errors import LoadError, Remedy, TrustError

TRUST_ALL = "*"
_BLOCKED = frozenset({"os", "posix", "nt", "sys", "builtins"})
"""Modules that no ``--trust`` opens but for `_VALUES`; torch itself refuses the first four."""

_VALUES = {
    f"builtins.{value.__name__}": value
    for value in (
        *(bool, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str),
        tuple,
    )
} | {"builtins.Ellipsis": ...}
"""What attributes of layers are, and run nothing; some take any memory, so that they need trust."""

_ACTIVATIONS = (
    *("celu", "elu", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("logsigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink"),
    *("softsign", "tanh", "tanhshrink"),
)
"""Functions of ``torch.nn.functional`` that layers hold, and that only compute on a tensor."""

_BUILT_IN = "torch._C._nn"
"""Where a pickle finds those of them that are not written in Python, such as gelu."""

_OF_SCRIPTS = (
    " Classes of __main__ were defined in the script that saved the model: move them to a module "
    "that can be imported, and save the model again from there."
)
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def resolve_globals(names: list[str], path: Path, trust: tuple[str, ...]) -> list[Any]:
    """``(object, name)`` of all `names` that a pickle holds, as torch's safe globals take them.

    Args:
        names: in full, with their modules.
        path: the file, for messages.
        trust: packages whose code the file may name.

    Raises:
        TrustError: some are not trusted; nothing of them was imported.
        LoadError: a trusted one cannot be imported, or is neither class nor function.
    """
    allowed: list[Any] = []
    untrusted: list[str] = []
    wanted: list[str] = []
    for name in sorted(names):
        if not is_dotted(name):
            raise LoadError(f"{path} names {name!r}, which is no class. Do not use this file.")
        if (own := _find_torch_module(name) or _find_activation(name)) is not None:
            allowed.append((own, name))
        elif name in _VALUES and trust:
            allowed.append((_VALUES[name], name))
        elif _is_trusted(name, trust):
            wanted.append(name)
        else:
            untrusted.append(name)
    if untrusted:  # before anything is imported
        raise _refuse(untrusted, path, trust)
    for name in wanted:
        found = _import_global(name, path)
        home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
        # mypkg.os.system is not mypkg's own: trust goes by where a thing is defined
        if isinstance(found, types.ModuleType) or not callable(found):
            raise LoadError(f"{path} names {name}, which is neither class nor function.")
        if not _is_trusted(home, trust) and _find_torch_module(home) is not found:
            raise _refuse([home], path, trust)
        allowed.append((found, name))
        if found is np.dtype:  # each has a class of its own, which the pickle does not name
            kinds = (getattr(np.dtypes, kind) for kind in np.dtypes.__all__)
            allowed += [(kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds]
    return allowed


@contextmanager
def isolated_globals() -> Iterator[None]:
    """torch's process-wide list of safe globals, empty inside and put back as it was."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@contextmanager
def forced_weights_only() -> Iterator[None]:
    """Make torch.export read its inner pickles safely; on its own it falls back to running them."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def refuse_code(path: Path, label: str) -> TrustError:
    """The error for a file that is a program as a whole; `label` says of which form."""
    lead = "To let it run any code as you, so only if you made this file:"
    remedy = Remedy(lead, (("--trust-all",),), f'trust=("{TRUST_ALL}",)')
    return TrustError(f"{path} is {label}, which is code.", remedy)


def refuse_legacy(path: Path, reason: str) -> TrustError:
    """The error for a file of torch's old form that needs classes; `reason` is torch's."""
    return TrustError(
        f"{path} has torch's form from before 1.6, whose classes cannot be listed, and "
        f"needs some: {reason}. Load it where it was made and save it again "
        "with torch.save(model, path)."
    )


def explain_missing_globals(names: list[str], path: Path) -> None:
    """Import each of `names` of a trusted pickle whose reading failed.

    Raises:
        LoadError: one of them is not there.
    """
    for name in names:
        _import_global(name, path)


def _find_torch_module(name: str) -> type[nn.Module] | None:
    """The ``nn.Module`` class of that full name if torch.nn defines it; imports nothing."""
    module_name, _, attribute = name.rpartition(".")
    if not is_within(module_name, "torch.nn"):
        return None
    found = getattr(sys.modules.get(module_name), attribute, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return None
    return found if is_within(found.__module__, "torch.nn") else None


def _find_activation(name: str) -> Any:
    """The activation function of that full name; None where it is none."""
    module_name, _, attribute = name.rpartition(".")
    if module_name not in ("torch.nn.functional", _BUILT_IN):
        return None
    found = getattr(sys.modules.get(module_name), attribute, None)
    public = (getattr(nn.functional, known, None) for known in _ACTIVATIONS)
    return found if found is not None and any(found is known for known in public) else None


def _import_global(name: str, path: Path) -> Any:
    """The object with the full name `name`, whose package is trusted."""
    search_working_directory()
    parts = name.split(".")
    module_name = parts[0]
    try:
        found: Any = importlib.import_module(module_name)
        for index, part in enumerate(parts[1:], start=1):
            if not hasattr(found, part):
                module_name = ".".join(parts[: index + 1])
                importlib.import_module(module_name)
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        holder = module_name.rpartition(".")[0]
        if error.name == module_name and holder in sys.modules:
            if holder == "__main__":
                raise LoadError(f"{path} needs {name}, which is not here.{_OF_SCRIPTS}") from error
            raise LoadError(
                f"{path} needs {name}, and {holder} has no {module_name.rpartition('.')[2]!r}. It "
                "was renamed, moved or removed since the model was saved: bring the version of "
                f"{parts[0]!r} that saved it."
            ) from error
        raise LoadError(f"{path} needs {name}; {describe_missing_module(error)}") from error
    except (Exception, SystemExit) as error:  # a trusted module's own code: whatever it raises
        raise LoadError(
            f"{path} needs {name}; importing it raised {type(error).__name__}: {error}. Mend that "
            f"first: python -c 'import {module_name}' must work here."
        ) from error
    return found


def _is_trusted(name: str, trust: tuple[str, ...]) -> bool:
    return not _is_blocked(name) and any(is_within(name, t) for t in trust)


def _is_blocked(name: str) -> bool:
    """Whether no ``--trust`` opens it: it can run anything, or is no layer of torch's.

    Layers hold functions of ``torch.nn`` (an activation) and modules of other parts of torch, such
    as ``torch.ao``; the rest of torch starts processes and compiles code.
    """
    module_name, _, attribute = name.rpartition(".")
    if name in _VALUES:
        return False
    if name.partition(".")[0] in _BLOCKED:
        return True
    if not is_within(name, "torch") or is_within(name, "torch.nn"):
        return False
    found = getattr(sys.modules.get(module_name), attribute, None)
    return not isinstance(found, type) or not issubclass(found, nn.Module)


def _refuse(names: list[str], path: Path, trust: tuple[str, ...]) -> TrustError:
    """The error that lists `names` and says what would trust them."""
    text = f"{path} needs code that is not trusted: {', '.join(names)}. Nothing of it was run."
    if blocked := [name for name in names if _is_blocked(name)]:
        if set(blocked) <= {"builtins.getattr", "torch._C._VariableFunctionsClass"}:
            return TrustError(
                f"{text} A pickle names these two where a module keeps a function such as "
                "torch.tanh as an attribute, and they can reach any other. Keep a layer in its "
                "place, such as nn.Tanh(), or give the state_dict with --model; only --trust-all "
                "runs this file, and whatever else it asks for."
            )
        return TrustError(
            f"{text} {blocked[0]} can run anything and is not opened by --trust: honest models do "
            "not name it. If it is really meant, only --trust-all runs it, and whatever else the "
            "file asks for."
        )
    if any(name.startswith("__main__.") for name in names):
        text += _OF_SCRIPTS
    packages = {
        name.rpartition(".")[0] if name.startswith("torch.") else name.partition(".")[0]
        for name in names
        if not name.startswith("__main__.") and name not in _VALUES
    } or set(_VALUES.keys() & set(names))
    if not packages:
        return TrustError(text)
    wanted = tuple(sorted({*trust, *packages}))
    flags = tuple(("--trust", package) for package in wanted)
    quoted = ", ".join(f'"{package}"' for package in wanted) + "," * (len(wanted) == 1)
    return TrustError(text, Remedy("If you know who made it:", flags, f"trust=({quoted})"))

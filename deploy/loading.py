"""A model file in any of its forms, as an ``nn.Module`` in eval mode, safely.

The form is told by content, before torch reads the file (`deploy.archive`). torch then reads with
``weights_only=True``: of the classes and functions that a pickle names it may only touch torch's
own list, ``nn.Module`` classes defined in ``torch.nn``, and what `trust` covers. That holds for
trusted packages too: what they do not define stays blocked. Only ``trust=("*",)`` runs whatever a
file says, and only it loads TorchScript and exported programs, which are code.
"""

import copy
import difflib
import importlib
import os
import pickle
import shlex
import sys
import types
import warnings as python_warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.export import ExportedProgram

from deploy.archive import detect_kind, read_pickle
from export.errors import ConfigError, DeployError, LoadError, TrustError
from export.optional import require

TRUST_ALL = "*"
_BLOCKED = frozenset({"os", "posix", "nt", "sys", "builtins"})
"""Modules that no ``--trust`` opens; torch itself refuses the first four."""

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
_PREFIXES = ("module.", "_orig_mod.")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_TRAINING = "The model was saved in training mode; it is judged in eval mode, on a copy."
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@dataclass(frozen=True)
class LoadedModel:
    """A model that was read from a file.

    Attributes:
        module: in eval mode, on the CPU.
        form: ``module``, ``state_dict``, ``safetensors``, ``torchscript``, ``exported_program``.
        was_training: any part of the saved module was in training mode. False for weights files,
            which hold no mode.
        path: the file.
        warnings: what the user should know, a sentence each.
        program: only for ``exported_program``; `module` is then ``program.module()``.
    """

    module: nn.Module
    form: str
    was_training: bool
    path: Path
    warnings: tuple[str, ...]
    program: ExportedProgram | None = None


def load_model(
    path: Path, *, trust: tuple[str, ...] = (), factory: str | None = None
) -> LoadedModel:
    """Read the model in `path`.

    Args:
        path: a pickled module, a state_dict, safetensors, TorchScript or ``torch.export`` file.
        trust: packages whose code the file may name; ``("*",)`` is ``--trust-all``.
        factory: ``package.module:callable`` that makes the module of a weights file.

    Raises:
        LoadError: the file cannot be read as a model.
        TrustError: it needs code that is not trusted; nothing of it was run.
        ConfigError: `factory` is unusable, or was given for a file that holds the whole model.
    """
    path = Path(path)
    if path.is_dir():
        raise LoadError(f"{path} is a directory. Give the model file in it.")
    try:
        with path.open("rb") as file:
            kind = detect_kind(file, path)
            file.seek(0)
            if kind in ("torchscript", "exported_program"):
                return _load_code(file, path, kind, trust, factory)
            if kind == "safetensors":
                content = _read_safetensors(path)
            else:
                content = _read_pickle(file, path, trust, factory, legacy=kind == "legacy")
    except FileNotFoundError as error:
        raise LoadError(f"There is no file {path}. Check the path.") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    with _reading(path):
        _check_tensors(content, str(path))
        if kind != "safetensors" and (limit := path.stat().st_size) and not trust:
            _check_total(content, limit, path)
        return _make_model(content, path, factory, "safetensors" if kind == "safetensors" else None)


def prepare_module(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A deep copy of `module` in eval mode on the CPU, and warnings; `module` stays as it is.

    Wrappers of data parallelism and ``torch.compile`` are taken off.

    Raises:
        LoadError: the module has tensors that cannot be copied (meta, sparse, larger than their
            storage), or cannot be deep-copied at all.
    """
    name = type(module).__name__
    _check_tensors(module, name)
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            clone = copy.deepcopy(module)
    except Exception as error:  # __deepcopy__ of the user's own classes: whatever it raises
        raise LoadError(
            f"{name} cannot be copied: {_shorten(error)}. It must work with copy.deepcopy."
        ) from error
    clone, _, notes = _finish_module(clone.to("cpu"))
    return clone, notes


def import_object(reference: str, *, what: str) -> Any:
    """The object that ``package.module:attribute`` names; `what` is the flag, for messages.

    The working directory is searched last, so that it never shadows an installed package.

    Raises:
        ConfigError: malformed, no such module or attribute, or the import itself fails.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not _is_dotted(module_name) or not _is_dotted(attribute):
        raise ConfigError(
            f"{what} {reference!r}: write package.module:attribute, such as mypkg.nets:make_net "
            "(dots, no slashes, no .py)."
        )
    _search_working_directory()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not _is_within(module_name, error.name):
            raise ConfigError(f"{what}: importing {module_name!r} failed: {error}.") from error
        raise ConfigError(
            f"{what}: there is no module {error.name!r}. Run from the directory that holds it, set "
            "PYTHONPATH, or install it."
        ) from error
    except (Exception, SystemExit) as error:  # the user's own module: whatever it raises
        raise ConfigError(
            f"{what}: importing {module_name!r} raised {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            close = difflib.get_close_matches(part, names, cutoff=0.4) or names[:5]
            raise ConfigError(
                f"{what}: {module_name} has no {attribute!r}. Close: {', '.join(close) or 'none'}."
            )
        found = getattr(found, part)
    return found


def _read_pickle(
    file: BinaryIO, path: Path, trust: tuple[str, ...], factory: str | None, *, legacy: bool
) -> Any:
    """The object in the file, read with ``weights_only=True`` unless everything is trusted."""
    invariants: Any = torch.sparse.check_sparse_tensor_invariants
    if TRUST_ALL in trust:
        _search_working_directory()
        with _reading(path), invariants():
            return torch.load(file, map_location="cpu", weights_only=False)
    if not legacy:
        _check_rebuilds(read_pickle(file, path), path)
    file.seek(0)
    with _isolated_globals(), _reading(path):
        names = [] if legacy else torch.serialization.get_unsafe_globals_in_checkpoint(file)
    allowed = _resolve_globals(names, path, trust, factory)
    with _isolated_globals():
        torch.serialization.add_safe_globals(allowed)
        file.seek(0)
        # a constructor in the pickle, Linear(2**20, 2**20), then allocates nothing
        device = nullcontext() if trust else torch.device("meta")
        with _reading(path), invariants(), device:
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if not legacy:
                    raise
                raise TrustError(
                    f"{path} has torch's form from before 1.6, whose classes cannot be listed, and "
                    f"needs some: {_shorten(error)}. Load it where it was made and save it again "
                    "with torch.save(model, path)."
                ) from error


def _check_rebuilds(data: bytes, path: Path) -> None:
    """Refuse tensors of torch's own list that must not be rebuilt at all."""
    if b"_rebuild_sparse_tensor" in data:
        raise LoadError(
            f"{path} holds sparse tensors, which cannot be exported. Save them dense (.to_dense())."
        )
    if b"_rebuild_device_tensor" in data:
        # these copy a tensor before anyone can look at its size
        raise LoadError(f"{path} holds tensors of another device. Save model.cpu() again.")


def _resolve_globals(
    names: list[str], path: Path, trust: tuple[str, ...], factory: str | None
) -> list[Any]:
    """``(object, name)`` of all `names`, or a TrustError that lists those that are not trusted."""
    allowed: list[Any] = []
    untrusted: list[str] = []
    wanted: list[str] = []
    for name in sorted(names):
        if not _is_dotted(name):
            raise LoadError(f"{path} names {name!r}, which is no class. Do not use this file.")
        if (found := _find_torch_module(name)) is not None:
            allowed.append((found, name))
        elif _is_trusted(name, trust):
            wanted.append(name)
        else:
            untrusted.append(name)
    if untrusted:  # before anything is imported
        raise _refuse(untrusted, path, trust, factory)
    for name in wanted:
        found = _import_global(name, path)
        home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
        # mypkg.os.system is not mypkg's own: trust goes by where a thing is defined
        if isinstance(found, types.ModuleType) or not callable(found):
            raise LoadError(f"{path} names {name}, which is neither class nor function.")
        if not _is_trusted(home, trust) and _find_torch_module(home) is not found:
            raise _refuse([home], path, trust, factory)
        allowed.append((found, name))
    return allowed


def _find_torch_module(name: str) -> type[nn.Module] | None:
    """The ``nn.Module`` class of that full name if torch.nn defines it; imports nothing."""
    module_name, _, attribute = name.rpartition(".")
    if not _is_within(module_name, "torch.nn"):
        return None
    found = getattr(sys.modules.get(module_name), attribute, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return None
    return found if _is_within(found.__module__, "torch.nn") else None


def _import_global(name: str, path: Path) -> Any:
    """The object with the full name `name`, whose package is trusted."""
    _search_working_directory()
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
        raise LoadError(
            f"{path} needs {name}, and there is no module {error.name!r}. Run from the directory "
            "that holds it, set PYTHONPATH, or install it."
        ) from error
    except (Exception, SystemExit) as error:  # a trusted module's own code: whatever it raises
        raise LoadError(
            f"{path} needs {name}; importing it raised {type(error).__name__}: {error}."
        ) from error
    return found


def _refuse(
    names: list[str], path: Path, trust: tuple[str, ...], factory: str | None
) -> TrustError:
    """The error that lists `names` and shows the command that would trust them."""
    text = f"{path} needs code that is not trusted: {', '.join(names)}. Nothing of it was run."
    if blocked := [name for name in names if name.partition(".")[0] in _BLOCKED]:
        return TrustError(
            f"{text} {blocked[0]} can run anything and is not opened by --trust. Honest models "
            f"do not need it; {_explain_trust_all(path)}"
        )
    if any(name.startswith("__main__.") for name in names):
        text += (
            " Classes of __main__ were defined in the script that saved the model: move them to a "
            "module that can be imported, and save the model again from there."
        )
    packages = [
        name.rpartition(".")[0] if name.startswith("torch.") else name.partition(".")[0]
        for name in names
        if not name.startswith("__main__.")
    ]
    if not packages:
        return TrustError(text)
    flags = [f"--trust {package}" for package in sorted({*trust, *packages})]
    if factory is not None:
        flags.append(f"--model {shlex.quote(factory)}")
    command = f"deploy build {shlex.quote(str(path))} {' '.join(flags)}"
    return TrustError(f"{text} If you know who made this file: {command}")


def _explain_trust_all(path: Path) -> str:
    return (
        "--trust-all would let the file run any code as you, so only for a file that you made: "
        f"deploy build {shlex.quote(str(path))} --trust-all"
    )


def _load_code(
    file: BinaryIO, path: Path, kind: str, trust: tuple[str, ...], factory: str | None
) -> LoadedModel:
    """A TorchScript or ``torch.export`` file: both are programs, not only weights."""
    label = "a TorchScript file" if kind == "torchscript" else "an exported program"
    if factory is not None:
        raise _refuse_factory(path, label)
    if TRUST_ALL not in trust:
        raise TrustError(f"{path} is {label}, which is code. {_explain_trust_all(path)}")
    if kind == "torchscript":
        with _reading(path):
            load: Any = torch.jit.load
            script = load(file, map_location="cpu")
            _check_tensors(script, str(path))
            module, was_training, notes = _finish_module(script)
        return LoadedModel(module, kind, was_training, path, notes)
    with _reading(path), _forced_weights_only():
        program = torch.export.load(file)
        _check_tensors([program.state_dict, program.constants], str(path))
        exported = program.module()
        for part in exported.modules():
            part.training = False  # its eval() raises; the mode is fixed in the graph
    was_training = any(_runs_in_training(node) for node in program.graph.nodes)
    notes = ("The program was exported in training mode; export model.eval() instead.",)
    return LoadedModel(exported, kind, was_training, path, notes * was_training, program)


def _runs_in_training(node: torch.fx.Node) -> bool:
    """Whether a node of a program is dropout or batch norm in training mode."""
    position = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}.get(str(node.target))
    return position is not None and node.args[position] is True


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    safetensors = require("safetensors.torch", extra="build")
    with _reading(path):
        tensors: dict[str, torch.Tensor] = safetensors.load_file(str(path), device="cpu")
    return tensors


def _make_model(content: Any, path: Path, factory: str | None, form: str | None) -> LoadedModel:
    """The module in `content`, or the factory's module with the weights in `content`."""
    found, notes = _find_model(content, path)
    if isinstance(found, nn.Module):
        if factory is not None:
            raise _refuse_factory(path, "a whole module")
        module, was_training, more = _finish_module(found.to("cpu"))
        return LoadedModel(module, "module", was_training, path, (*notes, *more))
    if factory is None:
        raise LoadError(
            f"{path} holds weights and no module. Say what makes the module: "
            f"deploy build {shlex.quote(str(path))} --model package.module:factory"
        )
    module = _call_factory(factory)
    _fill_weights(module, found, path, factory)
    module, _, more = _finish_module(module)
    more = tuple(note for note in more if note != _TRAINING)
    return LoadedModel(module, form or "state_dict", False, path, (*notes, *more))


def _find_model(content: Any, path: Path) -> tuple[nn.Module | Mapping[str, Any], tuple[str, ...]]:
    """The module or the state_dict in `content`, which may be a training checkpoint."""
    if isinstance(content, nn.Module) or _is_state(content):
        return content, ()
    if isinstance(content, Mapping):
        for key in _STATE_KEYS:
            if isinstance(content.get(key), nn.Module) or _is_state(content.get(key)):
                return content[key], (f"The file is a checkpoint; its entry {key!r} was used.",)
        keys = ", ".join(repr(key) for key in list(content)[:5])
        raise LoadError(
            f"{path} holds a dict without a model: {keys or 'empty'}. "
            "Save model.state_dict() alone, or under 'state_dict'."
        )
    raise LoadError(
        f"{path} holds an object of type {type(content).__name__}, not a model. "
        "Save the module or its state_dict with torch.save."
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, torch.Tensor) for value in content.values())
        and all(isinstance(key, str) for key in content)
        and not any(isinstance(content.get(key), (Mapping, nn.Module)) for key in _STATE_KEYS)
    )


def _call_factory(factory: str) -> nn.Module:
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


def _fill_weights(module: nn.Module, state: Mapping[str, Any], path: Path, factory: str) -> None:
    """Load `state` into `module`; every key must fit."""
    own = module.state_dict()
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state) and not any(
            key.startswith(prefix) for key in own
        ):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    shapes = [
        f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the model"
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
        and isinstance(own.get(key), torch.Tensor)
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


def _list_faults(what: str, items: list[str]) -> list[str]:
    more = ", ..." if len(items) > 5 else ""
    return [f"{len(items)} {what} ({', '.join(items[:5])}{more})"] if items else []


def _finish_module(module: nn.Module) -> tuple[nn.Module, bool, tuple[str, ...]]:
    """`module` itself without wrappers and in eval mode, whether it was training, and warnings."""
    notes: list[str] = []
    while (inner := _unwrap(module)) is not None:
        notes.append(f"The wrapper {type(module).__name__} was taken off.")
        module = inner
    was_training = any(part.training for part in module.modules())
    if was_training:
        notes.append(_TRAINING)
    try:
        module.eval()
    except NotImplementedError:  # the module of an exported program: its mode is in the graph
        for part in module.modules():
            part.training = False
    return module, was_training, tuple(notes)


def _unwrap(module: nn.Module) -> nn.Module | None:
    inner = getattr(module, "module" if isinstance(module, _WRAPPERS) else "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


def _check_tensors(content: Any, where: str) -> None:
    """Refuse tensors that claim more than they store, and those that cannot be exported."""
    for name, tensor in _walk_tensors(content):
        label = f"{where}: tensor {name}"
        if tensor.layout is not torch.strided:
            raise LoadError(
                f"{label} is sparse ({tensor.layout}), which cannot be exported. Save it dense."
            )
        if tensor.device.type == "meta":
            raise LoadError(
                f"{label} is on the meta device: it has a shape and no values. Save the model with "
                "its weights."
            )
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > stored:
            raise LoadError(
                f"{label} claims {tensor.numel():,} elements and stores {stored:,}. "
                "Save it with .contiguous(); if you did not make this file, do not use it."
            )


def _check_total(content: Any, limit: int, path: Path) -> None:
    """Refuse tensors that did not come out of the file: a constructor in the pickle made them."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for _, tensor in _walk_tensors(content)
    }
    if (total := sum(storages.values())) > limit:
        raise LoadError(f"{path} makes tensors of {total:,} bytes out of {limit:,}. Do not use it.")


def _walk_tensors(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested containers and modules, plain attributes included, with its path."""
    pending: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    while pending:
        name, item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        children: list[tuple[Any, Any]] = []
        if isinstance(item, torch.Tensor):
            yield name or "(the whole file)", item
        elif isinstance(item, torch.jit.ScriptModule):
            children = [*item.named_parameters(), *item.named_buffers()]
        elif isinstance(item, nn.Module):
            for key, value in vars(item).items():
                inner = key in ("_parameters", "_buffers", "_modules")
                children += value.items() if inner else [(key, value)]
        elif isinstance(item, Mapping):
            children = list(item.items())
        elif isinstance(item, (list, tuple, set)):
            children = list(enumerate(item))
        pending += [(f"{name}.{key}" if name else str(key), value) for key, value in children]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """The boundary to torch, safetensors and trusted classes: their errors become LoadErrors."""
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            yield
    except DeployError:
        raise
    except ModuleNotFoundError as error:
        raise LoadError(
            f"{path} needs the module {error.name!r}. Run from the directory that holds it, set "
            "PYTHONPATH, or install it."
        ) from error
    except Exception as error:  # hostile bytes and foreign classes raise anything
        raise LoadError(f"{path} cannot be read as a model: {_shorten(error)}.") from error


@contextmanager
def _isolated_globals() -> Iterator[None]:
    """torch's process-wide list of safe globals, empty inside and put back as it was."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


@contextmanager
def _forced_weights_only() -> Iterator[None]:
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


def _refuse_factory(path: Path, label: str) -> ConfigError:
    return ConfigError(f"--model is for weights files; {path} is {label}. Leave --model out.")


def _is_trusted(name: str, trust: tuple[str, ...]) -> bool:
    return name.partition(".")[0] not in _BLOCKED and any(_is_within(name, t) for t in trust)


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _search_working_directory() -> None:
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.append(directory)


def _shorten(error: BaseException) -> str:
    """The line of torch's long messages that says what happened."""
    text = str(error).partition("Check the documentation of torch.load")[0]
    text = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines[0].startswith("Weights only load failed") else lines[0]
    return f"{type(error).__name__}: {line[:300].rstrip('.')}"

"""A model file in any of its forms, as an ``nn.Module`` in eval mode, safely.

The form is told by content, before torch reads the file (`loading.archive`). torch then reads with
``weights_only=True``: of the classes and functions that a pickle names it may only touch torch's
own list, ``nn.Module`` classes defined in ``torch.nn``, and what `trust` covers (`loading.trust`).
Only ``trust=("*",)`` runs whatever a file says, and only it loads TorchScript and exported
programs, which are code. What was read is checked tensor by tensor (`loading.tensors`).
"""

import pickle
import warnings as python_warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.export import ExportedProgram

from deploy.loading.archive import detect_kind, read_pickle
from deploy.loading.containers import explain_container, filled_dicts
from deploy.loading.parametrizations import bake_parametrizations
from deploy.loading.quantized import refuse_quantized
from deploy.loading.references import (
    describe_missing_module,
    is_within,
    name_import,
    search_working_directory,
)
from deploy.loading.tensors import check_rebuilds, check_tensors, check_total
from deploy.loading.trust import (
    TRUST_ALL,
    explain_missing_globals,
    forced_weights_only,
    isolated_globals,
    refuse_code,
    refuse_legacy,
    resolve_globals,
)
from deploy.loading.unpicklable import OTHER_WAY, describe_unpicklable
from deploy.loading.weights import fill_weights, find_model, make_module
from export.capture.copying import deep_copy
from export.errors import ConfigError, DeployError, LoadError, Remedy
from export.optional import require

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_BAKED = (
    "Parametrizations were worked out once, since torch cannot save them with a module: {}. The "
    "baseline is the model with the resulting weights."
)
_TRAINING = "The model was saved in training mode; it is judged in eval mode, on a copy."


@dataclass(frozen=True)
class LoadedModel:
    """A model that was read from a file.

    Attributes:
        module: in eval mode, on the CPU.
        form: ``module``, ``state_dict``, ``safetensors``, ``torchscript``, ``exported_program``.
        was_training: the saved module or a layer of torch in it was in training mode. False for
            weights files, which hold no mode.
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
    source, _, attribute = path.name.partition(":")
    if source.endswith(".py"):
        factory = f"{name_import(path.with_name(source))}:{attribute or 'factory'}"
        raise LoadError(
            f"{path} is source code, which holds no trained weights. Save those, "
            "torch.save(model.state_dict(), 'model.pt'), and give model.pt with what makes the "
            f"module: --model {factory}."
        )
    if path.is_dir():
        raise LoadError(f"{path} is a directory. Give the model file in it.")
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise LoadError(f"{path} is a pipe or a device. Write the model to a file, and give that.")
    try:
        with path.open("rb") as file:
            kind = detect_kind(file, path)
            file.seek(0)
            if kind in ("torchscript", "exported_program"):
                return _load_code(file, path, kind, trust, factory)
            if kind == "safetensors":
                content = _read_safetensors(path)
            else:
                content = _read_pickle(file, path, trust, legacy=kind == "legacy")
    except FileNotFoundError as error:
        raise LoadError(f"There is no file {path}. Check the path.") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}.") from error
    with _reading(path):
        check_tensors(content, str(path))
        if kind != "safetensors" and (limit := path.stat().st_size) and not trust:
            check_total(content, limit, path)
        return _make_model(content, path, factory, "safetensors" if kind == "safetensors" else None)


def prepare_module(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A deep copy of `module` in eval mode on the CPU, and warnings; `module` stays as it is.

    Wrappers of data parallelism and ``torch.compile`` are taken off, and parametrizations such as
    weight_norm worked out: torch cannot write modules that have them to a file.

    Raises:
        LoadError: the module has tensors that cannot be copied (meta, sparse, larger than their
            storage), or cannot be deep-copied at all.
    """
    name = type(module).__name__
    check_tensors(module, name)
    try:
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")
            clone = deep_copy(module)
    except Exception as error:  # __deepcopy__ of the user's own classes: whatever it raises
        what = describe_unpicklable(module, deep_copy)
        raise LoadError(
            f"{name} cannot be copied: {_shorten(error)}{what}. It must work with copy.deepcopy. "
            f"{OTHER_WAY}"
        ) from error
    clone, _, notes = _finish_module(clone.to("cpu"))
    parametrized = bake_parametrizations(clone)
    return clone, (*notes, _BAKED.format(", ".join(parametrized))) if parametrized else notes


def _read_pickle(file: BinaryIO, path: Path, trust: tuple[str, ...], *, legacy: bool) -> Any:
    """The object in the file, read with ``weights_only=True`` unless everything is trusted."""
    invariants: Any = torch.sparse.check_sparse_tensor_invariants
    if TRUST_ALL in trust:
        search_working_directory()
        with _reading(path), invariants():
            try:
                return torch.load(file, map_location="cpu", weights_only=False)
            except AttributeError:  # a class may be gone, or an attribute of the user's own code
                if not legacy:
                    file.seek(0)
                    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
                    explain_missing_globals(names, path)
                raise
    if not legacy:
        check_rebuilds(read_pickle(file, path), path)
    file.seek(0)
    with isolated_globals(), _reading(path):
        names = [] if legacy else torch.serialization.get_unsafe_globals_in_checkpoint(file)
    allowed = resolve_globals(names, path, trust)
    with isolated_globals(), filled_dicts(allowed):
        torch.serialization.add_safe_globals(allowed)
        file.seek(0)
        # a constructor in the pickle, Linear(2**20, 2**20), then allocates nothing
        device = nullcontext() if trust else torch.device("meta")
        with _reading(path), invariants(), device:
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                if not legacy:
                    raise explain_container(error, path) or error from error
                raise refuse_legacy(path, _shorten(error)) from error


def _load_code(
    file: BinaryIO, path: Path, kind: str, trust: tuple[str, ...], factory: str | None
) -> LoadedModel:
    """A TorchScript or ``torch.export`` file: both are programs, not only weights."""
    label = "a TorchScript file" if kind == "torchscript" else "an exported program"
    if factory is not None:
        raise _refuse_factory(path, label)
    if TRUST_ALL not in trust:
        raise refuse_code(path, label)
    if kind == "torchscript":
        with _reading(path):
            load: Any = torch.jit.load
            script = load(file, map_location="cpu")
            check_tensors(script, str(path))
            module, was_training, notes = _finish_module(script)
        return LoadedModel(module, kind, was_training, path, notes)
    with _reading(path), forced_weights_only():
        program = torch.export.load(file)
        check_tensors([program.state_dict, program.constants], str(path))
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
    found, notes = find_model(content, path)
    if isinstance(found, nn.Module):
        if factory is not None:
            raise _refuse_factory(path, "a whole module")
        module, was_training, more = _finish_module(found.to("cpu"))
        return LoadedModel(module, "module", was_training, path, (*notes, *more))
    if factory is None:
        example = "package.module:factory"
        remedy = Remedy("Say what makes it:", (("--model", example),), f'model="{example}"')
        raise LoadError(f"{path} holds weights and no module.", remedy)
    module = make_module(factory)
    filled = fill_weights(module, found, path, factory)
    module, _, more = _finish_module(module)
    more = tuple(note for note in more if note != _TRAINING)
    return LoadedModel(module, form or "state_dict", False, path, (*notes, *filled, *more))


def _finish_module(module: nn.Module) -> tuple[nn.Module, bool, tuple[str, ...]]:
    """`module` itself without wrappers and in eval mode, whether it was training, and warnings.

    Raises:
        LoadError: torch has quantized it.
    """
    notes: list[str] = []
    while (inner := _unwrap(module)) is not None:
        notes.append(f"The wrapper {type(module).__name__} was taken off.")
        module = inner
    refuse_quantized(module)
    was_training = module.training or any(_is_left_training(part) for part in module.modules())
    if was_training:
        notes.append(_TRAINING)
    try:
        module.eval()
    except NotImplementedError:  # the module of an exported program: its mode is in the graph
        for part in module.modules():
            part.training = False
    return module, was_training, tuple(notes)


def _is_left_training(part: nn.Module) -> bool:
    """Whether a layer of torch is in training mode; others may be so by being unpickled.

    einops' Rearrange begins anew then, in the mode of a new module.
    """
    return part.training and is_within(type(part).__module__, "torch")


def _unwrap(module: nn.Module) -> nn.Module | None:
    inner = getattr(module, "module" if isinstance(module, _WRAPPERS) else "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else None


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
        raise LoadError(f"{path} cannot be read: {describe_missing_module(error)}") from error
    except Exception as error:  # hostile bytes and foreign classes raise anything
        raise LoadError(f"{path} cannot be read as a model: {_shorten(error)}.") from error


def _refuse_factory(path: Path, label: str) -> ConfigError:
    return ConfigError(f"--model is for weights files; {path} is {label}. Leave --model out.")


def _shorten(error: BaseException) -> str:
    """The line of torch's long messages that says what happened."""
    text = str(error).partition("Check the documentation of torch.load")[0]
    text = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines[0].startswith("Weights only load failed") else lines[0]
    return f"{type(error).__name__}: {line[:300].rstrip('.')}"

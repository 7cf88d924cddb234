"""How named tensors become a call of the user's module, and its result named tensors again.

The module's own ``forward`` takes positional or keyword arguments and returns a tensor, a tuple, a
dict, a dataclass or any nesting of them. Engines know only named, flat tensors. This file is the
one place that translates between the two.
"""

import dataclasses
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from export.artifacts import BATCH, TensorSpec
from export.capture.failures import explain_failure
from export.errors import ConfigError, ExportError, InputError

_WRAP = (
    "; where forward takes a dict or a list of tensors, put the model into a module whose forward "
    "takes each of them by its name and hands them on so."
)


@dataclass(frozen=True)
class CallSignature:
    """The flat, named view of a module's call.

    Attributes:
        inputs: one spec for every tensor that is passed, in the order of the call.
        outputs: one spec for every tensor of the flattened result.
        keyword: inputs are passed by name; otherwise in order.
        structure: the nesting of the result, as `describe_structure` writes it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    keyword: bool
    structure: str

    @property
    def axis_names(self) -> dict[str, dict[int, str]]:
        """By tensor the axes that are dynamic and not the batch, with their names."""
        ranged = {name for spec in self.inputs for name in spec.ranges}
        if not ranged:
            return {}
        return {
            spec.name: {
                axis: name
                for axis, name in enumerate(spec.shape)
                if isinstance(name, str) and name.isidentifier() and name != BATCH
            }
            for spec in (*self.inputs, *self.outputs)
        }

    def args(self, feeds: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Positional arguments of the call for `feeds`."""
        return () if self.keyword else tuple(feeds[spec.name] for spec in self.inputs)

    def kwargs(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keyword arguments of the call for `feeds`."""
        return {spec.name: feeds[spec.name] for spec in self.inputs} if self.keyword else {}

    def call(self, module: nn.Module, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run `module` on named inputs and return its named, flattened outputs.

        An output of a lone sample that ``squeeze()`` took the axis of the batch from has it again:
        a caller finds samples in one place, whatever their number.
        """
        result = module(*self.args(feeds), **self.kwargs(feeds))
        _, tensors, _ = flatten_outputs(result)
        return {
            spec.name: _restore_batch(value, spec)
            for spec, value in zip(self.outputs, tensors, strict=True)
        }


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


def describe_call(
    module: nn.Module, feeds: Mapping[str, torch.Tensor], *, keyword: bool, dynamic_batch: bool
) -> CallSignature:
    """Run `module` once on `feeds` and record the signature of the call.

    With `dynamic_batch` every input's leading axis, and the leading axis of every output that has
    the same size, is written as ``"batch"``. An output that the model calls as one of its inputs
    gets a name of its own: ``mask_out``.

    Raises:
        InputError: the module fails on these inputs.
        ExportError: it returns something without tensors.
    """
    try:
        with torch.no_grad():
            result = module(*(() if keyword else feeds.values()), **(feeds if keyword else {}))
    except Exception as error:  # the user's own code: whatever it raises is the finding
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
        raise InputError(
            f"The model itself fails on the given inputs ({shapes}): {type(error).__name__}: "
            f"{str(error).rstrip('.')}. {explain_failure(error)}Check shapes and dtypes "
            "(1x128:int64 in --input says both): they come from --input, else from --data."
        ) from error
    names, tensors, structure = flatten_outputs(result)
    names = _tell_apart(names, feeds)
    batch = {int(value.shape[0]) for value in feeds.values() if value.ndim}
    dynamic = dynamic_batch and len(batch) == 1
    return CallSignature(
        inputs=tuple(
            _spec(name, value, batch if dynamic else set()) for name, value in feeds.items()
        ),
        outputs=tuple(
            _spec(name, value, batch if dynamic else set())
            for name, value in zip(names, tensors, strict=True)
        ),
        keyword=keyword,
        structure=structure,
    )


def _tell_apart(names: tuple[str, ...], inputs: Collection[str]) -> tuple[str, ...]:
    """Names of outputs of which none is that of an input: a graph has one tensor for a name."""
    taken = {*names, *inputs}
    apart = []
    for name in names:
        if name in inputs:
            numbers = ("", *range(2, len(taken) + 3))
            name = next(free for n in numbers if (free := f"{name}_out{n}") not in taken)
            taken.add(name)
        apart.append(name)
    return tuple(apart)


def flatten_outputs(result: object) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...], str]:
    """Names, tensors and structure of whatever a module returns.

    A lone tensor is ``output``; others are named by their path: ``logits``, ``boxes.0``,
    ``output_1``. What is not a tensor (None, numbers) is left out.

    Raises:
        ExportError: there is no tensor in the result, a dataclass that torch cannot look into, or
            two outputs that get the same name.
    """
    leaves, _ = pytree.tree_flatten_with_path(result)
    for _, leaf in leaves:
        if dataclasses.is_dataclass(leaf):
            raise ExportError(
                f"The model returns a {type(leaf).__name__}, and torch cannot look into it; call "
                f"torch.export.register_dataclass({type(leaf).__name__}) where it is defined."
            )
    found = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not found:
        raise ExportError(
            f"The model returns no tensor but {type(result).__name__}; return tensors, or a tuple "
            "or dict of them."
        )
    if len(found) == 1 and not found[0][0]:
        return ("output",), (found[0][1],), "tensor"
    names = tuple(_path_name(path) for path, _ in found)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(
            f"Two outputs of the model are called {twice[0]!r}; return them under other keys."
        )
    return names, tuple(leaf for _, leaf in found), describe_structure(result)


def describe_structure(result: object) -> str:
    """How `result` nests: ``dict(states: tensor, pooled: tuple(tensor, tensor))``.

    The tensors stand in the order of the flat outputs. Keys of dicts and fields of dataclasses and
    named tuples stand before a colon: as they are where they are identifiers, otherwise as JSON
    text (``"a.b"``), or as Python writes them where they are no text (``0``). What is no tensor and
    therefore no output stands by its type, ``None`` or ``int``.
    """
    found, structure = pytree.tree_flatten_with_path(result, is_leaf=lambda x: x is not result)
    if structure.is_leaf():
        if isinstance(result, torch.Tensor):
            return "tensor"
        return "None" if result is None else type(result).__name__
    parts = []
    for (key,), child in found:
        text = describe_structure(child)
        named = not isinstance(key, pytree.SequenceKey)
        parts.append(f"{_describe_key(key)}: {text}" if named else text)
    kind = getattr(structure.type, "__name__", str(structure.type))
    return f"{kind}({', '.join(parts)})"


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


def _spec(name: str, value: torch.Tensor, batch: set[int]) -> TensorSpec:
    shape: list[int | str] = list(value.shape)
    if shape and shape[0] in batch:
        shape[0] = BATCH
    return TensorSpec(name, tuple(shape), str(value.dtype).removeprefix("torch."))


def _restore_batch(value: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """`value` with the axes of a batch of one, where it lacks these and no others."""
    rest = [size for size in spec.shape if size != BATCH]
    if value.ndim == len(spec.shape) or value.ndim != len(rest):
        return value
    if any(
        isinstance(size, int) and size != at for size, at in zip(rest, value.shape, strict=True)
    ):
        return value
    for axis, size in enumerate(spec.shape):
        value = value.unsqueeze(axis) if size == BATCH else value
    return value


def _path_name(path: tuple[Any, ...]) -> str:
    parts = []
    for depth, key in enumerate(path):
        text = pytree.keystr((key,)).strip("[].'\"")
        parts.append(f"output_{text}" if depth == 0 and text.isdigit() else text)
    return ".".join(parts) or "output"  # of a key that is empty


def _describe_key(key: Any) -> str:
    value = key.name if isinstance(key, pytree.GetAttrKey) else key.key
    if not isinstance(value, str):
        return repr(value)
    return value if value.isidentifier() else json.dumps(value)

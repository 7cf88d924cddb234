"""How named tensors become a call of the user's module, and its result named tensors again.

The module's own ``forward`` takes positional or keyword arguments and returns a tensor, a tuple, a
dict, a dataclass or any nesting of them. Engines know only named, flat tensors. This file is the
one place that translates between the two.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from export.artifacts import BATCH, TensorSpec
from export.capture.failures import explain_failure
from export.capture.outputs import find_left_out, flatten_outputs
from export.errors import InputError


@dataclass(frozen=True)
class CallSignature:
    """The flat, named view of a module's call.

    Attributes:
        inputs: one spec for every tensor that is passed, in the order of the call.
        outputs: one spec for every tensor of the flattened result.
        keyword: inputs are passed by name; otherwise in order.
        structure: the nesting of the result, as `describe_structure` writes it.
        left_out: what of the result holds values and is no output, as `find_left_out` writes it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    keyword: bool
    structure: str
    left_out: tuple[str, ...] = ()

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
        left_out=find_left_out(result),
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

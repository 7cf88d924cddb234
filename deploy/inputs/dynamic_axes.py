"""Which axes of a model's outputs follow the dynamic axes of its inputs, by running it."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from deploy.inputs.declared import InputSpec
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.capture.signature import CallSignature
from export.errors import ConfigError, InputError
from export.ranges import describe_sizes, probe_sizes

_ROWS = 2
_STEPS = (2, 4, 8, 16, 32, 64)
"""What networks halve their maps to so often that sizes must be multiples of it."""


class Call(Protocol):
    """A model and how it is to be called."""

    def describe_at(
        self, batch: int, *, dynamic: bool, sizes: Mapping[str, int] | None = None
    ) -> CallSignature:
        """Run it, and record what it takes and returns."""

    def describe_inputs(self, batch: int) -> tuple[TensorSpec, ...]:
        """The inputs with their dynamic axes named."""


def check_axis_names(specs: Sequence[InputSpec]) -> None:
    """Axes of one name must have one range.

    Raises:
        ConfigError: two have different ones.
    """
    known: dict[str, SizeRange] = {}
    for spec in specs:
        for name, sizes in spec.describe(1).ranges.items():
            if known.setdefault(name, sizes) != sizes:
                raise ConfigError(
                    f"--input: the axis {name!r} is {_show(known[name])} in one place and "
                    f"{_show(sizes)} in another. Give it one range, or two names."
                )


def settle_axes(call: Call, signature: CallSignature) -> CallSignature:
    """`signature` with the dynamic axes of the inputs, and those of the outputs that follow them.

    The model runs with every axis at either end of its range, the others at their best sizes, and
    with all of them at odd sizes within.

    Raises:
        InputError: it fails at one of these sizes, or returns other tensors there.
    """
    ranges = {
        name: sizes for spec in call.describe_inputs(1) for name, sizes in spec.ranges.items()
    }
    if not ranges:
        return signature
    leading = signature.inputs[0].shape[0]
    batch = leading if isinstance(leading, int) else _ROWS
    best = call.describe_at(batch, dynamic=False)
    outputs = list(signature.outputs)
    for name, sizes in ranges.items():
        for size in dict.fromkeys((sizes.least, sizes.most)):
            other = _run(call, batch, {name: size}, ranges)
            outputs = [
                _follow(spec, here, there)
                for spec, here, there in _pair(outputs, best, other, {name: size})
            ]
    for probe in probe_sizes(call.describe_inputs(1)):
        _pair(outputs, best, _run(call, batch, probe, ranges), probe)
    inputs = tuple(
        replace(spec, shape=(seen.shape[0], *spec.shape[1:]))
        for spec, seen in zip(call.describe_inputs(1), signature.inputs, strict=True)
    )
    return replace(signature, inputs=inputs, outputs=tuple(outputs))


def keep_axes(static: CallSignature, dynamic: CallSignature) -> CallSignature:
    """`static`, of a batch that is fixed, with the other dynamic axes of `dynamic`."""
    ranged = {name for spec in dynamic.inputs for name in spec.ranges}
    if not ranged:
        return static

    def keep(spec: TensorSpec, old: TensorSpec) -> TensorSpec:
        own = {name for name in old.shape if isinstance(name, str) and _is_of(name, old, ranged)}
        shape = tuple(
            name if name in own else size for size, name in zip(spec.shape, old.shape, strict=True)
        )
        return replace(spec, shape=shape, ranges=old.ranges)

    return replace(
        static,
        inputs=tuple(map(keep, static.inputs, dynamic.inputs)),
        outputs=tuple(map(keep, static.outputs, dynamic.outputs)),
    )


def _is_of(name: str, spec: TensorSpec, ranged: set[str]) -> bool:
    """Whether an axis follows one that has a range: the batch calls those after it otherwise."""
    return name in ranged or name.startswith(f"{spec.name}_")


def _run(
    call: Call, batch: int, sizes: Mapping[str, int], ranges: Mapping[str, SizeRange]
) -> CallSignature:
    try:
        return call.describe_at(batch, dynamic=False, sizes=sizes)
    except InputError as error:
        said = error.__cause__ or error
        asked = ", ".join(f"{name}={_show(ranges[name])}" for name in sizes)
        stepped = _find_steps(call, batch, set(sizes))
        fix = (
            "Give a range that the model takes (LEAST:BEST:MOST/32 where it takes multiples of "
            "32), or one size in its place."
            if stepped is None
            else "It does run at "
            + ", ".join(f"{name}={_show(stepped[name])}" for name in sizes)
            + ", which says that sizes are multiples of the last number; give that."
        )
        raise InputError(
            f"--input asks for dynamic axes ({asked}), and the model itself fails at "
            f"{describe_sizes(sizes)}: {type(said).__name__}: {str(said).rstrip('. ')}. {fix} "
            "Axes are called by their input and number."
        ) from error


def _find_steps(call: Call, batch: int, names: set[str]) -> dict[str, SizeRange] | None:
    """The ranges, those of `names` in the smallest steps that the model takes; None: in none."""
    for factor in _STEPS:
        specs = []
        for spec in call.describe_inputs(1):
            ranges = {n: _coarsen(s, factor) if n in names else s for n, s in spec.ranges.items()}
            known = {name: sizes for name, sizes in ranges.items() if sizes is not None}
            if len(known) < len(ranges):
                return None
            specs.append(replace(spec, ranges=known))
        with contextlib.suppress(InputError):
            for probe in probe_sizes(specs):
                call.describe_at(batch, dynamic=False, sizes=probe)
            return {name: sizes for spec in specs for name, sizes in spec.ranges.items()}
    return None


def _coarsen(sizes: SizeRange, factor: int) -> SizeRange | None:
    """The range in steps `factor` times as large, if more than one size is left in it."""
    step = sizes.step * factor
    least, most = -(-sizes.least // step) * step, sizes.most // step * step
    best = min(max(round(sizes.best / step) * step, least), most)
    return SizeRange(least, best, most, step) if least < most else None


def _pair(
    outputs: Sequence[TensorSpec],
    best: CallSignature,
    other: CallSignature,
    sizes: Mapping[str, int],
) -> list[tuple[TensorSpec, TensorSpec, TensorSpec]]:
    """Each output as far as it is known, at the best sizes, and at `sizes`."""
    seen = [[(s.name, len(s.shape), s.dtype) for s in run.outputs] for run in (best, other)]
    if seen[0] != seen[1]:
        few, many = (", ".join(map(str, run.outputs)) for run in (best, other))
        raise InputError(
            f"What the model returns changes with the sizes of its input: {few} at the best ones, "
            f"{many} at {describe_sizes(sizes)}. Give the axis one size in --input."
        )
    return list(zip(outputs, best.outputs, other.outputs, strict=True))


def _follow(spec: TensorSpec, here: TensorSpec, there: TensorSpec) -> TensorSpec:
    """The output with the axes named that differ between two sizes of an input."""
    shape: list[int | str] = list(spec.shape)
    for axis, (size, other) in enumerate(zip(here.shape, there.shape, strict=True)):
        if size == other or shape[axis] == BATCH:
            continue
        shape[axis] = f"{spec.name}_{axis}"
    return replace(spec, shape=tuple(shape))


def _show(sizes: SizeRange) -> str:
    return str(sizes).replace(",", ":")

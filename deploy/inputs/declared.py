"""What ``--input`` says, and seeded synthetic arrays for a signature. No torch here."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from deploy.engines.base import Array
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.errors import ConfigError

DTYPES = (
    *("float32", "float16", "float64", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
"""The dtypes an input may have, by numpy's names."""

PIXELS = 256
"""Values of a pixel."""

MAX_ELEMENTS = 2**31
_EXAMPLE = "Write [name:]SIZExSIZE[:dtype[:high]], such as 1x3x224x224 or ids:1x128:int64:30522"
_RANGE = re.compile(r"(?<![A-WYZa-wyz0-9_])(\d+):(\d+):(\d+)(?!\d)")
_MARK = "\0"
"""Stands between the sizes of a range while the fields are told apart; no command line holds it."""


@dataclass(frozen=True)
class InputAxis:
    """A dynamic axis of an input, other than the batch.

    Attributes:
        sizes: what it may be.
        name: equal names are equal sizes, in other inputs as well; None: it goes by itself.
    """

    sizes: SizeRange
    name: str | None = None


@dataclass(frozen=True)
class InputSpec:
    """One input as the user describes it.

    Attributes:
        name: parameter of the model's ``forward``; None: by position.
        shape: sizes, batch first, all positive; the best one of a dynamic axis.
        dtype: one of `DTYPES`.
        high: integers are drawn from 0 to ``high - 1``; None: no bound was given.
        axes: the dynamic axes by their numbers.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int | None = None
    axes: Mapping[int, InputAxis] = field(default_factory=dict, hash=False)

    def describe(self, batch: int) -> TensorSpec:
        """As a signature has it, with that batch; `name` must be known.

        Axes without a name are called ``INPUT_AXIS``.
        """
        shape: list[int | str] = [batch, *self.shape[1:]]
        ranges = {}
        for axis, given in self.axes.items():
            name = given.name or f"{self.name}_{axis}"
            shape[axis] = name
            ranges[name] = given.sizes
        return TensorSpec(str(self.name), tuple(shape), self.dtype, ranges)


def parse_input(text: str) -> InputSpec:
    """Read ``[name:]SIZExSIZE...[:dtype[:high]]``, batch first.

    A size that is not the first may be a range, ``LEAST:BEST:MOST``, with a step behind it where
    the model takes multiples alone, ``128:224:512/32``, and a name before it where several axes are
    always alike: ``ids:1xlength=8:64:256:int64``.

    Raises:
        ConfigError: anything else; the message holds the text, the part at fault and an example.
    """
    marked = _RANGE.sub(rf"\1{_MARK}\2{_MARK}\3", text)
    fields = [part.strip() for part in marked.split(":")]
    name = None
    if re.fullmatch(r"[A-Za-z_][\w.]*", fields[0]):
        name = fields.pop(0)
    if not fields or not fields[0]:
        raise _refuse(text, "it has no sizes")
    if len(fields) > 3:
        raise _refuse(text, f"{':'.join(fields[3:])!r} is one field too many")
    shape, axes = _parse_shape(text, fields[0])
    dtype = fields[1] if len(fields) > 1 else "float32"
    if dtype not in DTYPES:
        raise _refuse(text, f"{dtype!r} is no known dtype ({', '.join(DTYPES)})")
    high = _parse_high(text, fields[2], dtype) if len(fields) > 2 else None
    return InputSpec(name, shape, dtype, high, axes)


def synthetic_feeds(
    specs: Sequence[TensorSpec], batch: int, *, seed: int, high: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One array for every spec, the same bits for the same `seed`.

    Floats are standard normal, integers uniform in ``[0, high)`` (2 where `high` does not name the
    input, and all pixels for images, which are uint8 with four axes), booleans fair. The batch axis
    gets `batch`, other symbolic axes their best size, or 1. Rows of two values begin with 1 and 0:
    they may be masks, and nothing is agreed on what a model answers where all of a sample is
    hidden.

    Raises:
        ConfigError: `high` names no input or does not fit its dtype; a dtype is not in `DTYPES`.
    """
    bounds = dict(high or {})
    unknown = sorted(set(bounds) - {spec.name for spec in specs})
    if unknown:
        raise ConfigError(
            f"An upper bound is given for {unknown[0]!r}, which is no input. "
            f"Inputs: {', '.join(spec.name for spec in specs)}."
        )
    generator = np.random.default_rng(seed)
    usual = {spec.name: PIXELS if _takes_images(spec) else 2 for spec in specs} | bounds
    return {spec.name: _draw(generator, spec, batch, usual[spec.name]) for spec in specs}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name in `DTYPES`; ``bfloat16`` is that of ml_dtypes.

    Raises:
        ConfigError: the name is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} cannot be used. Known: {', '.join(DTYPES)}.")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _takes_images(spec: TensorSpec) -> bool:
    return spec.dtype == "uint8" and len(spec.shape) == 4


def _draw(generator: np.random.Generator, spec: TensorSpec, batch: int, high: int) -> Array:
    shape, dtype = spec.with_batch(batch), numpy_dtype(spec.dtype)
    if spec.dtype == "bool":
        return _begin_with_both(generator.integers(0, 2, shape).astype(dtype))
    if dtype.kind in "iu":
        limit = int(np.iinfo(dtype).max) + 1
        if not 1 <= high <= limit:
            raise ConfigError(
                f"Upper bound {high} of input {spec.name!r} does not fit {spec.dtype}: "
                f"give 1 to {limit}."
            )
        drawn = generator.integers(0, high, shape, dtype=dtype)
        return _begin_with_both(drawn) if high == 2 else drawn
    if spec.dtype == "float64":
        return generator.standard_normal(shape)
    return generator.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


def _begin_with_both(array: Array) -> Array:
    """Every row of `array`, but for the batch itself, with a 1 and a 0 at its start."""
    if array.ndim > 1 and array.shape[-1] > 1:
        array[..., 0], array[..., 1] = 1, 0
    return array


def _parse_shape(text: str, sizes: str) -> tuple[tuple[int, ...], dict[int, InputAxis]]:
    """The sizes, best ones where there is a range, and the axes that have one."""
    shape: list[int] = []
    axes: dict[int, InputAxis] = {}
    largest = 1
    for axis, size in enumerate(_split_sizes(sizes)):
        if _MARK in size or "=" in size:
            found = _parse_axis(text, axis, size)
            if found.sizes.least < found.sizes.most:
                axes[axis] = found
            shape.append(found.sizes.best)
            largest *= found.sizes.most
        elif not re.fullmatch(r"[0-9]{1,12}", size) or int(size) == 0:
            raise _refuse(text, f"size {size!r} is not a positive whole number")
        else:
            shape.append(int(size))
            largest *= int(size)
    if largest > MAX_ELEMENTS:
        raise _refuse(text, f"{_show(sizes)!r} has more than 2**31 elements")
    return tuple(shape), axes


def _split_sizes(sizes: str) -> list[str]:
    """Between every ``x`` that is not part of the name of an axis."""
    parts: list[str] = []
    rest = sizes
    while True:
        name = re.match(r"[A-Za-z_]\w*=", rest)
        end = rest.find("x", name.end() if name else 0)
        if end < 0:
            return [*parts, rest]
        parts.append(rest[:end])
        rest = rest[end + 1 :]


def _parse_axis(text: str, axis: int, size: str) -> InputAxis:
    """``LEAST:BEST:MOST`` with ``NAME=`` before it, or without."""
    match = re.fullmatch(rf"(?:([A-Za-z_]\w*)=)?(\d+){_MARK}(\d+){_MARK}(\d+)(?:/(\d+))?", size)
    if match is None or match[1] == BATCH:
        raise _refuse(
            text, f"{_show(size)!r} is no range; write LEAST:BEST:MOST or NAME=LEAST:BEST:MOST"
        )
    least, best, most = (int(number) for number in match.groups()[1:4])
    step = int(match[5] or 1)
    if axis == 0:
        raise _refuse(
            text, f"the batch comes first and has its range in --batch {least},{best},{most}"
        )
    if not 1 <= least <= best <= most:
        raise _refuse(
            text, f"{_show(size)!r} does not go up from the least to the best to the most"
        )
    if step < 1 or any(number % step for number in (least, best, most)):
        raise _refuse(text, f"{_show(size)!r} has sizes that are no multiples of its step")
    if best == step < most:
        raise _refuse(
            text,
            f"{_show(size)!r} has {best} as its best size, which exporters fix; take {2 * step} "
            "or more",
        )
    return InputAxis(SizeRange(least, best, most, step), match[1])


def _show(part: str) -> str:
    return part.replace(_MARK, ":")


def _parse_high(text: str, field: str, dtype: str) -> int:
    kind = numpy_dtype(dtype)
    if kind.kind not in "iu":
        raise _refuse(text, f"the upper bound {field!r} is for integers, not {dtype}")
    if not re.fullmatch(r"[0-9]{1,19}", field) or not 1 <= int(field) <= np.iinfo(kind).max + 1:
        raise _refuse(text, f"the upper bound {field!r} is no positive number that fits {dtype}")
    return int(field)


def _refuse(text: str, fault: str) -> ConfigError:
    return ConfigError(f"--input {text!r}: {fault}. {_EXAMPLE}.")

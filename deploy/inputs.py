"""What ``--input`` says, and seeded synthetic arrays for a signature. No torch here."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from deploy.engines.base import Array
from export.artifacts import TensorSpec
from export.errors import ConfigError

DTYPES = (
    *("float32", "float16", "float64", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
"""The dtypes an input may have, by numpy's names."""

MAX_ELEMENTS = 2**31
_EXAMPLE = "Write [name:]SIZExSIZE[:dtype[:high]], such as 1x3x224x224 or ids:1x128:int64:30522"


@dataclass(frozen=True)
class InputSpec:
    """One input as the user describes it.

    Attributes:
        name: parameter of the model's ``forward``; None: by position.
        shape: sizes, batch first, all positive.
        dtype: one of `DTYPES`.
        high: integers are drawn from 0 to ``high - 1``; None: no bound was given.
    """

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int | None = None


def parse_input(text: str) -> InputSpec:
    """Read ``[name:]SIZExSIZE...[:dtype[:high]]``, batch first.

    Raises:
        ConfigError: anything else; the message holds the text, the part at fault and an example.
    """
    fields = [field.strip() for field in text.split(":")]
    name = None
    if re.fullmatch(r"[A-Za-z_][\w.]*", fields[0]):
        name = fields.pop(0)
    if not fields or not fields[0]:
        raise _refuse(text, "it has no sizes")
    if len(fields) > 3:
        raise _refuse(text, f"{':'.join(fields[3:])!r} is one field too many")
    shape = _parse_shape(text, fields[0])
    dtype = fields[1] if len(fields) > 1 else "float32"
    if dtype not in DTYPES:
        raise _refuse(text, f"{dtype!r} is no known dtype ({', '.join(DTYPES)})")
    high = _parse_high(text, fields[2], dtype) if len(fields) > 2 else None
    return InputSpec(name, shape, dtype, high)


def synthetic_feeds(
    specs: Sequence[TensorSpec], batch: int, *, seed: int, high: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One array for every spec, the same bits for the same `seed`.

    Floats are standard normal, integers uniform in ``[0, high)`` (2 where `high` does not name the
    input), booleans fair. The batch axis gets `batch`, other symbolic axes 1.

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
    return {spec.name: _draw(generator, spec, batch, bounds.get(spec.name, 2)) for spec in specs}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a name in `DTYPES`; ``bfloat16`` is that of ml_dtypes.

    Raises:
        ConfigError: the name is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} cannot be used. Known: {', '.join(DTYPES)}.")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _draw(generator: np.random.Generator, spec: TensorSpec, batch: int, high: int) -> Array:
    shape, dtype = spec.with_batch(batch), numpy_dtype(spec.dtype)
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limit = int(np.iinfo(dtype).max) + 1
        if not 1 <= high <= limit:
            raise ConfigError(
                f"Upper bound {high} of input {spec.name!r} does not fit {spec.dtype}: "
                f"give 1 to {limit}."
            )
        return generator.integers(0, high, shape, dtype=dtype)
    if spec.dtype == "float64":
        return generator.standard_normal(shape)
    return generator.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


def _parse_shape(text: str, field: str) -> tuple[int, ...]:
    sizes = []
    for size in field.split("x"):
        if not re.fullmatch(r"[0-9]{1,12}", size) or int(size) == 0:
            raise _refuse(text, f"size {size!r} is not a positive whole number")
        sizes.append(int(size))
    if math.prod(sizes) > MAX_ELEMENTS:
        raise _refuse(text, f"{field!r} has more than 2**31 elements")
    return tuple(sizes)


def _parse_high(text: str, field: str, dtype: str) -> int:
    kind = numpy_dtype(dtype)
    if kind.kind not in "iu":
        raise _refuse(text, f"the upper bound {field!r} is for integers, not {dtype}")
    if not re.fullmatch(r"[0-9]{1,19}", field) or not 1 <= int(field) <= np.iinfo(kind).max + 1:
        raise _refuse(text, f"the upper bound {field!r} is no positive number that fits {dtype}")
    return int(field)


def _refuse(text: str, fault: str) -> ConfigError:
    return ConfigError(f"--input {text!r}: {fault}. {_EXAMPLE}.")

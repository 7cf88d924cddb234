"""What a request and its answer are, whatever carries them, and what a model takes and gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from deploy.datatypes import DATATYPES, read_datatype
from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from export.artifacts import SizeRange, TensorSpec
from export.errors import BundleError

MAX_ID = 256
"""Characters of a request's id, which is echoed and logged."""


@dataclass(frozen=True)
class TensorType:
    """One tensor of a model's signature as the protocol shows it.

    Attributes:
        shape: sizes; None where any size of 1 or more will do.
        batch_axis: which axis is the batch; None where none is.
        limits: smallest and largest finite value of the type.
        ranges: by axis the sizes that it may have, where they are known.
        names: of these axes; those of one name are of one size.
    """

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    batch_axis: int | None
    limits: tuple[float, float]
    ranges: Mapping[int, SizeRange] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """As model metadata: -1 for a size that is not fixed."""
        shape = [-1 if size is None else size for size in self.shape]
        return {"name": self.name, "datatype": self.datatype, "shape": shape}


class OutputRequest(NamedTuple):
    """An output that is asked for, raw or as JSON."""

    name: str
    binary: bool = False


@dataclass(frozen=True)
class ModelSignature:
    """What a model takes and gives, by name and in order.

    Attributes:
        batched: samples of several requests may share one run: the batch leads every input and
            every output has it on some axis.
    """

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    batched: bool

    @cached_property
    def all_outputs(self) -> dict[bool, tuple[OutputRequest, ...]]:
        """What a request asks for that names no output, by whether it wants them raw."""
        return {
            binary: tuple(OutputRequest(name, binary) for name in self.outputs)
            for binary in (False, True)
        }


class InferRequest(NamedTuple):
    """A request that fits the model's signature.

    Attributes:
        feeds: all inputs by name, each of the model's dtype.
        rows: samples in it; 1 where the model has no batch axis.
        outputs: what to answer with, in order.
        priority: 1 is the most urgent; 0 stands for the default.
        timeout_s: seconds it may take by its sender's wish; None: as the server says.
    """

    id: str
    feeds: dict[str, Array]
    rows: int
    outputs: tuple[OutputRequest, ...]
    priority: int = 0
    timeout_s: float | None = None


class InferResponse(NamedTuple):
    """The answer to a request; `outputs` has what it asked for."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]


def make_signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ModelSignature:
    """The signature of an engine in the protocol's terms.

    Raises:
        BundleError: a dtype that the protocol does not know.
    """
    takes = {spec.name: _make_type(spec) for spec in inputs}
    gives = {spec.name: _make_type(spec) for spec in outputs}
    batched = all(spec.batch_axis == 0 for spec in takes.values()) and all(
        spec.batch_axis is not None for spec in gives.values()
    )
    return ModelSignature(takes, gives, batched)


def check_shape(tensor: TensorType, shape: object) -> tuple[int, ...]:
    """The shape that a request gives an input, once it is known to fit.

    Raises:
        MalformedRequestError: it is no list of whole numbers of 1 or more, or not of this input.
    """
    if type(shape) is list and len(shape) == len(tensor.shape):
        for size, expected in zip(shape, tensor.shape, strict=True):
            if type(size) is not int or size < 1 or (expected is not None and size != expected):
                break
        else:
            if tensor.ranges:
                _check_ranges(tensor, shape)
            return tuple(shape)
    if not isinstance(shape, list) or not all(type(size) is int and size >= 1 for size in shape):
        raise MalformedRequestError(
            f"input {tensor.name!r}: shape must be a list of whole numbers of 1 or more"
        )
    raise MalformedRequestError(
        f"input {tensor.name!r} has shape {_show(shape)}; "
        f"the model takes {tensor.describe()['shape']}, -1 standing for any size"
    )


def _check_ranges(tensor: TensorType, shape: list[int]) -> None:
    for axis, sizes in tensor.ranges.items():
        if shape[axis] not in sizes:
            raise MalformedRequestError(
                f"input {tensor.name!r} has {shape[axis]} on axis {axis}; "
                f"the model takes {sizes.describe()}"
            )


def count_bytes(tensor: TensorType, shape: tuple[int, ...]) -> int:
    """Bytes of an input of this shape; Python's numbers do not overflow."""
    return math.prod(shape) * tensor.dtype.itemsize


def view_raw(tensor: TensorType, shape: tuple[int, ...], raw: Any) -> Array:
    """An input over the memory of `raw`, copied only where it does not lie on its own alignment.

    Args:
        tensor: which input.
        shape: as `check_shape` returned it.
        raw: bytes or a view of bytes; their number was compared with the shape.

    Raises:
        MalformedRequestError: a BOOL that is neither 0 nor 1.
    """
    array = np.frombuffer(raw, dtype=tensor.dtype).reshape(shape)
    if tensor.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise MalformedRequestError(f"input {tensor.name!r}: BOOL must be 0 or 1 in every byte")
    return array if array.flags.aligned else array.copy()


def count_rows(signature: ModelSignature, feeds: Mapping[str, Array]) -> int:
    """How many samples `feeds` hold; 1 where the model has no batch axis.

    Raises:
        MalformedRequestError: an input is missing, or two have different sizes where they must not.
    """
    rows: int | None = None
    named: dict[str, int] = {}
    for name, tensor in signature.inputs.items():
        if name not in feeds:
            raise MalformedRequestError(
                f"input {name!r} is missing; the model takes: {', '.join(signature.inputs)}"
            )
        for axis, known in tensor.names.items():
            size = feeds[name].shape[axis]
            if named.setdefault(known, size) != size:
                raise MalformedRequestError(
                    f"the inputs have different sizes on their axis {known!r}: "
                    f"{size} in {name!r}, {named[known]} before"
                )
        if tensor.batch_axis != 0:
            continue
        size = feeds[name].shape[0]
        if rows is not None and size != rows:
            raise MalformedRequestError(
                f"the inputs have different batch sizes: {size} in {name!r}, {rows} before"
            )
        rows = size
    return 1 if rows is None else rows


def check_count(signature: ModelSignature, asked: int) -> None:
    """Hold the number of outputs that are asked for to those that there are, before any is read.

    Raises:
        MalformedRequestError: it is more.
    """
    if asked > len(signature.outputs):
        raise MalformedRequestError(
            f"an output is asked for twice, or is none: {asked} are asked for; "
            f"the model gives: {', '.join(signature.outputs)}"
        )


def choose_outputs(
    signature: ModelSignature, requested: Sequence[OutputRequest], *, binary: bool = False
) -> tuple[OutputRequest, ...]:
    """The outputs that are asked for, or all of them.

    Raises:
        MalformedRequestError: one is not known, is there twice, or JSON cannot hold it.
    """
    if not requested:
        return signature.all_outputs[binary]
    chosen = tuple(requested)
    if len({output.name for output in chosen}) != len(chosen):
        raise MalformedRequestError("an output is asked for twice")
    for output in chosen:
        if output.name not in signature.outputs:
            raise MalformedRequestError(
                f"there is no output {_show(output.name)}; "
                f"the model gives: {', '.join(signature.outputs)}"
            )
    return chosen


def find_input(signature: ModelSignature, name: str, datatype: str) -> TensorType:
    """The input called `name`, which must be of `datatype`.

    Raises:
        MalformedRequestError: there is none, or it is of another type.
    """
    tensor = signature.inputs.get(name)
    if tensor is None:
        raise MalformedRequestError(
            f"there is no input {_show(name)}; the model takes: {', '.join(signature.inputs)}"
        )
    if datatype != tensor.datatype:
        raise MalformedRequestError(
            f"input {name!r} has datatype {_show(datatype)}; the model takes {tensor.datatype}"
        )
    return tensor


def read_parameters(given: Mapping[str, Any]) -> tuple[int, float | None]:
    """Priority and time in seconds of a request's parameters; others are not looked at.

    Raises:
        MalformedRequestError: one is no whole number of 0 or more, or asks for a sequence.
    """
    if not given:
        return 0, None
    if any(given.get(key) for key in ("sequence_id", "sequence_start", "sequence_end")):
        raise MalformedRequestError("sequences are not offered: models here keep no state")
    priority, timeout = given.get("priority", 0), given.get("timeout", 0)
    if type(priority) is not int or not 0 <= priority < 2**32:
        raise MalformedRequestError("parameter priority must be a whole number of 0 or more")
    if type(timeout) is not int or not 0 <= timeout < 2**63:
        raise MalformedRequestError("parameter timeout must be microseconds, 0 or more")
    return priority, timeout / 1e6 if timeout else None


def _make_type(spec: TensorSpec) -> TensorType:
    if spec.dtype not in DATATYPES:
        raise BundleError(
            f"The model has a tensor of dtype {spec.dtype}, which the protocol does not know; it "
            f"knows {', '.join(DATATYPES)}."
        )
    datatype = DATATYPES[spec.dtype]
    shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
    dtype = read_datatype(datatype)
    names = {
        axis: name
        for axis, name in enumerate(spec.shape)
        if isinstance(name, str) and name in spec.ranges
    }
    return TensorType(
        name=spec.name,
        datatype=datatype,
        dtype=dtype,
        shape=shape,
        batch_axis=spec.batch_axis,
        limits=_find_limits(dtype),
        ranges={axis: spec.ranges[name] for axis, name in names.items()},
        names=names,
    )


def _find_limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "iu":
        whole = np.iinfo(dtype)
        return int(whole.min), int(whole.max)
    real = ml_dtypes.finfo(dtype)
    return float(real.min), float(real.max)


def _show(value: object) -> str:
    """What a stranger sent, short, however long it is."""
    text = repr(value[:101] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 100 else f"{text[:100]}..."

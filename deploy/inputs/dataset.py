"""Samples as rows of named inputs, read when they are asked for, and bound to a model's inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from deploy.engines.base import Array
from deploy.inputs.data_images import ImageRows
from deploy.inputs.declared import InputSpec, numpy_dtype
from export.artifacts import TensorSpec
from export.errors import DataError

LABELS = "y"
"""What the array of the labels is called."""
OWN_LABELS = f"{LABELS}_"
"""Before the name of the output whose labels an array holds."""

VALUE_BYTES = 256 * 2**20
"""Of the largest value that a run makes of a batch, unless one sample makes more. A network holds a
few such at a time, and convolutions in float64 nine times one beside them."""


class Rows(Protocol):
    """One input of every sample, [N, ...]; rows are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, the number of samples first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `read` returns."""

    def read(self, indices: Array) -> Array:
        """The rows at `indices`, in their order, as a new array."""


@dataclass(frozen=True, eq=False)
class ArrayRows:
    """An array in memory or on disk, read as `dtype`."""

    values: Array
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, the number of samples first."""
        return tuple(self.values.shape)

    def read(self, indices: Array) -> Array:
        """The rows at `indices`; what is too large for a narrower float becomes Inf."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(self.values[indices], dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class CastRows:
    """Other rows, read as `dtype`."""

    rows: Rows
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, the number of samples first."""
        return self.rows.shape

    def read(self, indices: Array) -> Array:
        """The rows at `indices`; what is too large for a narrower float becomes Inf."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.rows.read(indices).astype(self.dtype)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, or a selection of them; nothing is read before `batch`.

    Attributes:
        inputs: rows of every input, of all samples of the source.
        labels: [len(self)], a class for each sample of the selection, or [len(self), ...] for each
            place of its map, of the output that they fit; None: there are none.
        labels_of: the same of outputs that the data names, by output.
        labels_name: what the array of `labels` is called.
        source: what the user passed, for messages.
        named: the keys of `inputs` are the user's; False: a lone array that goes by position.
        rows: the selected row numbers in the source; None: all.
        calibration: samples set apart for calibration, if the source has them.
    """

    inputs: Mapping[str, Rows]
    labels: Array | None
    source: str
    named: bool = True
    rows: Array | None = None
    calibration: "Dataset | None" = None
    labels_of: Mapping[str, Array] = field(default_factory=dict)
    labels_name: str = LABELS

    def __len__(self) -> int:
        if self.rows is not None:
            return len(self.rows)
        return next(iter(self.inputs.values())).shape[0]

    def specs(self) -> tuple[InputSpec, ...]:
        """Each input of one sample, with a leading 1; the name is None where it has none."""
        return tuple(
            InputSpec(name if self.named else None, (1, *rows.shape[1:]), rows.dtype.name)
            for name, rows in self.inputs.items()
        )

    def row_numbers(self, indices: Sequence[int] | Array) -> Array:
        """The numbers in the source of the samples at `indices`."""
        positions = np.asarray(indices, dtype=np.int64)
        return positions if self.rows is None else self.rows[positions]

    def batch(self, indices: Sequence[int] | Array) -> dict[str, Array]:
        """The samples at `indices`: for every input [len(indices), ...].

        Raises:
            DataError: a file behind a sample cannot be read.
        """
        numbers = self.row_numbers(indices)
        return {name: rows.read(numbers) for name, rows in self.inputs.items()}

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """All samples in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))

    def select(self, indices: Sequence[int] | Array) -> "Dataset":
        """A view of the samples at `indices`, with their labels."""
        positions = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[positions]
        labels_of = {name: values[positions] for name, values in self.labels_of.items()}
        rows = self.row_numbers(positions)
        return replace(self, rows=rows, labels=labels, labels_of=labels_of, calibration=None)

    @property
    def is_labelled(self) -> bool:
        """Whether there are labels of any output."""
        return self.labels is not None or bool(self.labels_of)

    def find_labels(self, output: str) -> Array | None:
        """The labels of an output by name: its own, else those that name none."""
        return self.labels_of.get(output, self.labels)

    def view_labels(self) -> "dict[str | None, Dataset]":
        """The same samples with one set of labels each: by the output that it names, or None."""
        views: dict[str | None, Dataset] = {}
        if self.labels is not None:
            views[None] = replace(self, labels_of={})
        for name, values in self.labels_of.items():
            array = f"{OWN_LABELS}{name}"
            views[name] = replace(
                self,
                labels=values,
                labels_of={},
                labels_name=array,
                source=f"{self.source}, {array}",
            )
        return views

    def bind(self, specs: Sequence[TensorSpec]) -> "Dataset":
        """The same samples under the model's names and in its dtypes, so that they can be fed.

        A lone unnamed array takes the name of the model's only input. Floats become the model's
        float type, integers its wider integer type. Nothing is read.

        Raises:
            DataError: names, shapes or dtypes do not fit.
        """
        keys = _match_inputs(self, specs)
        inputs = {
            spec.name: _read_as(self.inputs[key], numpy_dtype(spec.dtype))
            for spec, key in zip(specs, keys, strict=True)
        }
        calibration = None if self.calibration is None else self.calibration.bind(specs)
        return replace(self, inputs=inputs, named=True, calibration=calibration)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is a float type, bfloat16 included."""
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def _match_inputs(dataset: Dataset, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The key in the data of every spec, in the order of the specs."""
    keys = tuple(dataset.inputs) if not dataset.named else tuple(spec.name for spec in specs)
    if len(keys) != len(specs) or set(keys) != set(dataset.inputs):
        raise DataError(
            f"{dataset.source} holds {describe_inputs(dataset)} and the model takes "
            f"{', '.join(str(spec) for spec in specs)}. Save one array under each of these names."
        )
    for spec, key in zip(specs, keys, strict=True):
        rows = dataset.inputs[key]
        _match_shape(dataset.source, spec, rows)
        _match_dtype(dataset.source, spec, rows.dtype)
    return keys


def _match_shape(source: str, spec: TensorSpec, rows: Rows) -> None:
    shape = rows.shape
    sample, expected = shape[1:], spec.shape[1:]
    if len(sample) == len(expected) and all(
        isinstance(wanted, str) or size == wanted
        for size, wanted in zip(sample, expected, strict=True)
    ):
        misfit = spec.explain_misfit(shape)
        if misfit is None:
            return
        raise DataError(f"{source}: a sample of input {spec.name!r} {misfit}.")
    hint = "Save it in the shape that the model takes."
    if len(sample) == 3 and (sample[2], *sample[:2]) == expected:
        hint = "The channels are last: transpose to [N, C, H, W]."
    elif len(sample) == 3 and (*sample[1:], sample[0]) == expected:
        hint = "The channels are first: transpose to [N, H, W, C]."
    elif (sample[:1] == (3,) and expected == (1, *sample[1:])) or (
        sample[-1:] == (3,) and expected == (*sample[:-1], 1)
    ):
        hint = "Images are read as RGB; pass --image-mode gray."
    elif isinstance(rows, ImageRows) and len(expected) == 3:
        hint = _advise_on_size(expected[:2] if rows.images.uint8 else expected[1:])
    elif tuple(shape) == tuple(expected):
        hint = "The axis of the samples is missing: save it as [N, ...]."
    raise DataError(
        f"{source}: a sample of input {spec.name!r} is {_join_shape(sample)} and the model takes "
        f"{_join_shape(expected)}. {hint}"
    )


def _advise_on_size(expected: tuple[int | str, ...]) -> str:
    """How images of another size come to the height and width that the model takes."""
    side = expected[0]
    if isinstance(side, int) and set(expected) == {side}:
        return f"Pass --image-resize {side} or more, and --image-crop {side}."
    return "Bring the images to that size before: --image-crop cuts squares."


def _match_dtype(source: str, spec: TensorSpec, dtype: np.dtype[Any]) -> None:
    wanted = numpy_dtype(spec.dtype)
    if is_float(wanted) and is_float(dtype):
        return
    if not is_float(wanted) and np.can_cast(dtype, wanted, "safe"):
        return
    hint = f"Convert it with .astype({spec.dtype!r}) and save it again."
    if dtype == np.uint8 and is_float(wanted):
        hint = (
            "Images must be scaled as in training: (x / 255 - mean) / std as float32, "
            "or pass the folder of images with --image-mean and --image-std."
        )
    elif is_float(dtype) and wanted == np.uint8:
        hint = "Save the images as uint8, before they are scaled and normalized: engines do that."
    raise DataError(
        f"{source}: input {spec.name!r} is {dtype} and the model takes {spec.dtype}. {hint}"
    )


def _read_as(rows: Rows, dtype: np.dtype[Any]) -> Rows:
    if rows.dtype == dtype:
        return rows
    if isinstance(rows, ArrayRows):  # from the source itself: float64 stays exact for float64
        return replace(rows, dtype=dtype)
    return CastRows(rows, dtype)


def describe_inputs(dataset: Dataset) -> str:
    """``name:Nx3x32x32:float32`` for every input, for messages."""
    return ", ".join(
        f"{name}:{_join_shape(('N', *rows.shape[1:]))}:{rows.dtype}"
        for name, rows in dataset.inputs.items()
    )


def _join_shape(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) for size in shape) or "a number"


def fit_rows(most: int, row_bytes: int) -> int:
    """Samples of a batch whose largest value stays below `VALUE_BYTES`: 1 to `most`.

    Args:
        most: more are not wanted.
        row_bytes: of the largest value that one sample makes; 0: not known.
    """
    return max(1, min(most, VALUE_BYTES // max(row_bytes, 1)))

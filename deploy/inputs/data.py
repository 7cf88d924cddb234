"""Calibration and evaluation data: what ``--data`` takes, how it is split and checked.

- ``.npz`` or ``.pt``: arrays ``x`` and optionally ``y``, a class for each row, or for each place of
  a map or a text, or 0 and 1 for several questions, or targets; or arrays named as the model's
  inputs. Labels of several outputs are ``y_NAME`` for each. A ``.pt`` may also hold one tensor or
  ``(x, y)``, and its ``y`` may be a dict by output.
- ``.npy``: one array, read from disk as it is needed.
- A folder of images: one subfolder a class, in the order of their names; or images alone.
- ``package.module:callable``: yields batches, each what a ``.pt`` may hold.

Calibration and evaluation never share a row. Arrays ``calibration_x`` (``calibration_NAME`` for
every input of a model with several) in an ``.npz`` or ``.pt`` say which rows to calibrate on: then
all calibration rows come from them and all of ``x`` is for evaluation. Use this to calibrate on
training samples and to judge on held-out ones. Without it, ``x`` is split by the seed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import BuildConfig, ImageConfig
from deploy.engines.base import Array
from deploy.inputs.data_files import check_arrays, read_arrays
from deploy.inputs.data_images import open_images
from deploy.inputs.dataset import (
    LABELS,
    OWN_LABELS,
    ArrayRows,
    Dataset,
    describe_inputs,
    is_float,
)
from deploy.inputs.label_values import check_label_values, settle_labels
from export.artifacts import TensorSpec
from export.errors import DataError
from quantize.audit.inputs import FEW_SAMPLES

__all__ = [
    "CALIBRATION",
    "CALLABLE_SAMPLES",
    "ArrayRows",
    "Dataset",
    "Split",
    "check_data",
    "open_data",
    "split_checked",
    "split_data",
]

CALIBRATION = "calibration_"
CALLABLE_SAMPLES = 4096
"""Samples that a callable is asked for; the rest stays unread."""

_UNNAMED = ("x", "arr_0")
_CHUNK_ELEMENTS = 2**22
_MEND = {
    "NaN": "Where it stands for what is missing, and the model is made for that, write a number in "
    "its place and give a mask of what is missing as an input of its own (int8 has no NaN); else "
    "mend the row or take it out.",
    "Inf": "Mend the row or take it out.",
    "-Inf": "Where it hides positions, as an additive mask does, write a large negative number in "
    "its place, such as -1e9; else mend the row or take it out.",
}


@dataclass(frozen=True)
class Split:
    """Two views that share no sample."""

    calibration: Dataset
    evaluation: Dataset


def open_data(
    source: str,
    *,
    images: ImageConfig,
    input_names: Sequence[str] | None,
    limit: int = CALLABLE_SAMPLES,
    taken: Collection[str] = (),
) -> Dataset:
    """Open what ``--data`` names; see the top of this file. Float64 is read as float32.

    Args:
        source: a path or ``package.module:callable``.
        images: how images of a folder become arrays.
        input_names: the model's inputs, where they are known already.
        limit: samples that are taken from a callable; other sources are opened whole.
        taken: arrays that are inputs of the model, though they are called as labels are.

    Raises:
        DataError: the source is missing, of no known kind, damaged, empty, larger than the free
            memory, holds Python objects, or its arrays do not belong together.
    """
    path = Path(source)
    if path.is_dir():
        rows, labels = open_images(path, images)
        return _name_lone(Dataset({"x": rows}, labels, source, named=False), input_names)
    arrays = read_arrays(source, limit=limit)
    names = tuple(input_names or ())
    apart = {key: arrays.pop(key) for key in list(arrays) if _is_apart(key, names)}
    dataset = _group_arrays(arrays, source, names, taken)
    if not apart:
        return dataset
    calibration = _group_arrays(
        {key.removeprefix(CALIBRATION): value for key, value in apart.items()},
        f"{source} (calibration)",
        names,
        taken,
    )
    if calibration.specs() != dataset.specs():
        raise DataError(
            f"{source}: the {CALIBRATION}* arrays are {describe_inputs(calibration)} and the "
            f"others {describe_inputs(dataset)}. Save both with the same names, shapes and dtypes."
        )
    return replace(dataset, calibration=calibration)


def split_data(
    dataset: Dataset, *, calibration_samples: int, evaluation_samples: int, seed: int
) -> Split:
    """Two disjoint views, drawn by `seed`.

    Where the data has samples set apart for calibration they alone are used for it. Where it holds
    fewer samples than asked for, both views shrink in proportion, to one sample at least; but
    calibration keeps the fewest that it can do with, up to half of them, since an evaluation that
    is larger mends no range.

    Raises:
        DataError: one sample in all, so that nothing can be kept apart.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(dataset))
    if dataset.calibration is not None:
        apart = generator.permutation(len(dataset.calibration))[:calibration_samples]
        return Split(
            calibration=dataset.calibration.select(np.sort(apart)),
            evaluation=dataset.select(np.sort(order[:evaluation_samples])),
        )
    if len(order) < 2:
        raise DataError(
            f"{dataset.source} holds one sample; calibration and evaluation need one each. "
            "Pass more data."
        )
    asked = calibration_samples + evaluation_samples
    if len(order) < asked:
        share = round(len(order) * calibration_samples / asked)
        fewest = min(calibration_samples, FEW_SAMPLES, len(order) // 2)
        calibration_samples = max(fewest, min(len(order) - 1, share))
    end = min(len(order), asked)
    return Split(
        calibration=dataset.select(np.sort(order[:calibration_samples])),
        evaluation=dataset.select(np.sort(order[calibration_samples:end])),
    )


def split_checked(dataset: Dataset, config: BuildConfig, specs: Sequence[TensorSpec]) -> Split:
    """The views that a build of `config` uses, each held against the model's inputs `specs`.

    Raises:
        DataError: as of `split_data` and `check_data`.
    """
    split = split_data(
        dataset,
        calibration_samples=config.calibration_samples,
        evaluation_samples=config.evaluation_samples,
        seed=config.seed,
    )
    for view in (split.calibration, split.evaluation):
        check_data(view, specs)
    return split


def check_data(dataset: Dataset, specs: Sequence[TensorSpec]) -> None:
    """Read every sample of `dataset` once and hold it against the model's inputs.

    For a folder of images that decodes all of them: pass the views of a `Split`, not the whole.

    Raises:
        DataError: names, shapes or dtypes do not fit; a row holds NaN or Inf; a label is none,
            see `check_label_values`.
    """
    bound = dataset.bind(specs)
    largest = max(math.prod(rows.shape[1:]) for rows in bound.inputs.values())
    size = max(1, _CHUNK_ELEMENTS // max(1, largest))
    for number, batch in enumerate(bound.batches(size)):
        for name, values in batch.items():
            if not is_float(values.dtype):
                continue
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                first = int(np.argmin(finite))
                row = int(bound.row_numbers([number * size + first])[0])
                raise DataError(
                    f"{bound.source}: input {name!r}, read as {values.dtype}, holds "
                    f"{_name_infinite(values[first])} in row {row}. {_mend(values[first])}"
                )
    check_label_values(bound)
    if bound.calibration is not None:
        check_data(bound.calibration, specs)


def _name_infinite(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "NaN"
    return "Inf" if np.isposinf(values).any() else "-Inf"


def _mend(values: np.ndarray) -> str:
    """What to do about a row that is not finite."""
    return _MEND[_name_infinite(values)]


def _is_apart(key: str, names: Sequence[str]) -> bool:
    return key.startswith(CALIBRATION) and key not in names


def _group_arrays(
    arrays: Mapping[str, Array], source: str, names: Sequence[str], taken: Collection[str]
) -> Dataset:
    """A dataset of named arrays, after checks that need no values."""
    lone = len(names) == 1 and set(arrays) != {LABELS}  # that is x in the data, whatever its name
    taken = {*taken, *(name for name in names if name != LABELS or not lone)}
    inputs = {
        key: value
        for key, value in arrays.items()
        if key in taken or (key != LABELS and not key.startswith(OWN_LABELS))
    }
    if not inputs:
        raise DataError(f"{source}: there is no array of inputs. Save one as x.")
    check_arrays(arrays, source)
    settled = {key: settle_labels(arrays[key]) for key in arrays if key not in inputs}
    labels = settled.pop(LABELS, None)
    labels_of = {key.removeprefix(OWN_LABELS): values for key, values in settled.items()}
    rows = {key: ArrayRows(value, _read_dtype(value.dtype)) for key, value in inputs.items()}
    named = not (len(rows) == 1 and next(iter(rows)) in _UNNAMED)
    dataset = Dataset(rows, labels, source, named=named, labels_of=labels_of)
    dataset = _name_lone(dataset, names)
    if names and set(dataset.inputs) != set(names):
        raise DataError(
            f"{source} holds {', '.join(dataset.inputs)} and the model takes {', '.join(names)}. "
            f"Save one array under each of these names ({LABELS} for the labels)."
        )
    return dataset


def _name_lone(dataset: Dataset, names: Sequence[str] | None) -> Dataset:
    if dataset.named or not names or len(names) != 1:
        return dataset
    rows = next(iter(dataset.inputs.values()))
    return replace(dataset, inputs={names[0]: rows}, named=True)


def _read_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Float64 and wider as float32; the machine's byte order."""
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize >= 8 else _native(dtype)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=") if dtype.kind in "fiu" else dtype

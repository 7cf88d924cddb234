"""Calibration and evaluation data: what ``--data`` takes, how it is split and checked.

- ``.npz`` or ``.pt``: arrays ``x`` and optionally ``y``, a class for each row; or arrays named as
  the model's inputs. A ``.pt`` may also hold one tensor or ``(x, y)``.
- ``.npy``: one array, read from disk as it is needed.
- A folder of images: one subfolder a class, in the order of their names; or images alone.
- ``package.module:callable``: yields batches, each an array, ``(x, y)`` or a dict of arrays.

Calibration and evaluation never share a row. Arrays ``calibration_x`` (``calibration_NAME`` for
every input of a model with several) in an ``.npz`` or ``.pt`` say which rows to calibrate on: then
all calibration rows come from them and all of ``x`` is for evaluation. Use this to calibrate on
training samples and to judge on held-out ones. Without it, ``x`` is split by the seed.
"""

import contextlib
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from deploy.config import ImageConfig
from deploy.data_images import open_images
from deploy.engines.base import Array
from deploy.inputs import InputSpec, numpy_dtype
from export.artifacts import TensorSpec
from export.errors import DataError
from export.optional import require

LABELS = "y"
CALIBRATION = "calibration_"
CALLABLE_SAMPLES = 4096
"""Samples that a callable is asked for; the rest stays unread."""

TAKEN = (
    ".npz, .npy, .pt, a folder of images, or package.module:callable (see --help for what is in it)"
)
_UNNAMED = ("x", "arr_0")
_CHUNK_ELEMENTS = 2**22


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
        labels: [len(self)], a class for each sample of the selection; None: unlabelled.
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
        return replace(self, rows=self.row_numbers(positions), labels=labels, calibration=None)

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
) -> Dataset:
    """Open what ``--data`` names; see the top of this file. Float64 is read as float32.

    Args:
        source: a path or ``package.module:callable``.
        images: how images of a folder become arrays.
        input_names: the model's inputs, where they are known already.
        limit: samples that are taken from a callable; other sources are opened whole.

    Raises:
        DataError: the source is missing, of no known kind, damaged, empty, larger than the free
            memory, holds Python objects, or its arrays do not belong together.
    """
    path = Path(source)
    if path.is_dir():
        rows, labels = open_images(path, images)
        return _name_lone(Dataset({"x": rows}, labels, source, named=False), input_names)
    if not path.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", source):
        arrays = _read_callable(source, limit)
    elif path.suffix.lower() not in _READERS:
        raise DataError(
            f"--data {source}: {'' if path.exists() else 'no such file; '}takes {TAKEN}."
        )
    elif not path.is_file():
        raise DataError(f"--data {source}: no such file. Check the path.")
    else:
        arrays = _READERS[path.suffix.lower()](path)
    names = tuple(input_names or ())
    apart = {key: arrays.pop(key) for key in list(arrays) if _is_apart(key, names)}
    dataset = _group_arrays(arrays, source, names)
    if not apart:
        return dataset
    calibration = _group_arrays(
        {key.removeprefix(CALIBRATION): value for key, value in apart.items()},
        f"{source} (calibration)",
        names,
    )
    if calibration.specs() != dataset.specs():
        raise DataError(
            f"{source}: the {CALIBRATION}* arrays are {_describe(calibration)} and the others "
            f"{_describe(dataset)}. Save both with the same names, shapes and dtypes."
        )
    return replace(dataset, calibration=calibration)


def split_data(
    dataset: Dataset, *, calibration_samples: int, evaluation_samples: int, seed: int
) -> Split:
    """Two disjoint views, drawn by `seed`.

    Where the data has samples set apart for calibration they alone are used for it. Where it holds
    fewer samples than asked for, both views shrink in proportion, to one sample at least.

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
        calibration_samples = max(1, min(len(order) - 1, share))
    end = min(len(order), asked)
    return Split(
        calibration=dataset.select(np.sort(order[:calibration_samples])),
        evaluation=dataset.select(np.sort(order[calibration_samples:end])),
    )


def check_data(dataset: Dataset, specs: Sequence[TensorSpec]) -> None:
    """Read every sample of `dataset` once and hold it against the model's inputs.

    For a folder of images that decodes all of them: pass the views of a `Split`, not the whole.

    Raises:
        DataError: names, shapes or dtypes do not fit; a row holds NaN or Inf; a label is no integer
            or negative.
    """
    bound = dataset.bind(specs)
    largest = max(math.prod(rows.shape[1:]) for rows in bound.inputs.values())
    size = max(1, _CHUNK_ELEMENTS // max(1, largest))
    for number, batch in enumerate(bound.batches(size)):
        for name, values in batch.items():
            if not _is_float(values.dtype):
                continue
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                first = int(np.argmin(finite))
                row = int(bound.row_numbers([number * size + first])[0])
                what = "NaN" if np.isnan(values[first]).any() else "Inf"
                raise DataError(
                    f"{bound.source}: input {name!r}, read as {values.dtype}, holds {what} in row "
                    f"{row}. Mend the row or take it out."
                )
    if bound.labels is not None:
        _check_label_values(bound, bound.labels)
    if bound.calibration is not None:
        check_data(bound.calibration, specs)


def check_labels(labels: Array, classes: int) -> None:
    """Hold the labels against the number of classes that the model tells apart.

    Pass the labels of the whole dataset, so that a row in the message is a row of the source.

    Raises:
        DataError: a label is not in ``0 .. classes - 1``; the message names its row and value.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"Label {labels[wrong[0]]} in row {wrong[0]} is not in 0..{classes - 1}: the model has "
            f"{classes} classes ({wrong.size} of {len(labels)} labels are out of range). "
            "Number the classes as in training."
        )


def _check_label_values(dataset: Dataset, labels: Array) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{dataset.source}: {LABELS} is {labels.dtype} of shape {list(labels.shape)}; it must "
            f"hold one integer class for each sample. Convert it, or leave {LABELS} out."
        )
    if (labels < 0).any():
        first = int(np.argmax(labels < 0))
        row = int(dataset.row_numbers([first])[0])
        raise DataError(
            f"{dataset.source}: label {labels[first]} in row {row} is negative. "
            "Classes count from 0; take unlabelled rows out."
        )


def _match_inputs(dataset: Dataset, specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The key in the data of every spec, in the order of the specs."""
    keys = tuple(dataset.inputs) if not dataset.named else tuple(spec.name for spec in specs)
    if len(keys) != len(specs) or set(keys) != set(dataset.inputs):
        raise DataError(
            f"{dataset.source} holds {_describe(dataset)} and the model takes "
            f"{', '.join(str(spec) for spec in specs)}. Save one array under each of these names."
        )
    for spec, key in zip(specs, keys, strict=True):
        rows = dataset.inputs[key]
        _match_shape(dataset.source, spec, rows.shape)
        _match_dtype(dataset.source, spec, rows.dtype)
    return keys


def _match_shape(source: str, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    sample, expected = shape[1:], spec.shape[1:]
    if len(sample) == len(expected) and all(
        isinstance(wanted, str) or size == wanted
        for size, wanted in zip(sample, expected, strict=True)
    ):
        return
    hint = "Save it in the shape that the model takes."
    if len(sample) == 3 and (sample[2], *sample[:2]) == expected:
        hint = "The channels are last: transpose to [N, C, H, W]."
    elif tuple(shape) == tuple(expected):
        hint = "The axis of the samples is missing: save it as [N, ...]."
    raise DataError(
        f"{source}: a sample of input {spec.name!r} is {_join(sample)} and the model takes "
        f"{_join(expected)}. {hint}"
    )


def _match_dtype(source: str, spec: TensorSpec, dtype: np.dtype[Any]) -> None:
    wanted = numpy_dtype(spec.dtype)
    if _is_float(wanted) and _is_float(dtype):
        return
    if not _is_float(wanted) and np.can_cast(dtype, wanted, "safe"):
        return
    hint = f"Convert it with .astype({spec.dtype!r}) and save it again."
    if dtype == np.uint8 and _is_float(wanted):
        hint = (
            "Images must be scaled as in training: (x / 255 - mean) / std as float32, "
            "or pass the folder of images with --image-mean and --image-std."
        )
    raise DataError(
        f"{source}: input {spec.name!r} is {dtype} and the model takes {spec.dtype}. {hint}"
    )


def _read_as(rows: Rows, dtype: np.dtype[Any]) -> Rows:
    if rows.dtype == dtype:
        return rows
    if isinstance(rows, ArrayRows):  # from the source itself: float64 stays exact for float64
        return replace(rows, dtype=dtype)
    return CastRows(rows, dtype)


def _is_apart(key: str, names: Sequence[str]) -> bool:
    return key.startswith(CALIBRATION) and key not in names


def _group_arrays(arrays: Mapping[str, Array], source: str, names: Sequence[str]) -> Dataset:
    """A dataset of named arrays, after checks that need no values."""
    inputs = {key: value for key, value in arrays.items() if key != LABELS or key in names}
    labels = None if LABELS in inputs else arrays.get(LABELS)
    if not inputs:
        raise DataError(f"{source}: there is no array of inputs. Save one as x.")
    for key, value in arrays.items():
        _check_numbers(value.dtype, f"{source}: {key}")
        if value.ndim == 0 or len(value) == 0:
            raise DataError(f"{source}: {key} holds no samples. Save arrays as [N, ...], N >= 1.")
    lengths = {key: len(value) for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(
            f"{source}: the arrays differ in length ({listed}). Save one row a sample in each."
        )
    rows = {key: ArrayRows(value, _read_dtype(value.dtype)) for key, value in inputs.items()}
    named = not (len(rows) == 1 and next(iter(rows)) in _UNNAMED)
    dataset = _name_lone(Dataset(rows, labels, source, named=named), names)
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


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_npz_members(path, archive)
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (
        *(OSError, ValueError, EOFError, RuntimeError, NotImplementedError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise _damaged(path, "an .npz archive", error) from error


def _check_npz_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse by sizes and headers, before an array is read into memory."""
    free = _free_memory()
    members = archive.infolist()
    _check_fits(path, sum(member.file_size for member in members), free)
    declared = 0
    for member in members:
        if not member.filename.endswith(".npy"):
            raise DataError(
                f"{path}: {member.filename!r} is no array. Write the file with numpy.savez."
            )
        with archive.open(member) as stream:
            shape, dtype = _read_npy_header(stream)
        _check_numbers(dtype, f"{path}: {member.filename.removesuffix('.npy')}")
        declared += math.prod(shape) * dtype.itemsize
    _check_fits(path, declared, free)


def _read_npy(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as stream:
            _, dtype = _read_npy_header(stream)
        _check_numbers(dtype, str(path))
        return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, "an .npy file", error) from error


def _read_npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"format {version[0]}.{version[1]} is not for plain numbers")
    shape, _, dtype = read(stream)
    return shape, dtype


def _read_pt(path: Path) -> dict[str, Array]:
    torch = require("torch", extra="build")
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors, so it was not loaded. Save a tensor, (x, y) or a "
            "dict of tensors with torch.save."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, "a file of tensors", error) from error
    return _name_arrays(content, str(path))


def _read_callable(source: str, limit: int) -> dict[str, Array]:
    """At most `limit` samples of what the user's callable yields, in its order."""
    from deploy.loading import import_object

    chunks: dict[str, list[Array]] = {}
    count, used, free = 0, 0, _free_memory()
    with contextlib.closing(_call_user(import_object(source, what="--data"), source)) as produced:
        for number, batch in enumerate(produced):
            where = f"{source}: batch {number}"
            # Copies: a generator may fill the same buffer again.
            arrays = {key: np.array(value) for key, value in _name_arrays(batch, where).items()}
            if chunks and set(arrays) != set(chunks):
                raise DataError(f"{where} holds {sorted(arrays)}, those before {sorted(chunks)}.")
            for key, value in arrays.items():
                earlier = chunks.setdefault(key, [])
                if value.ndim == 0 or (earlier and value.shape[1:] != earlier[0].shape[1:]):
                    raise DataError(
                        f"{where}: {key} is {list(value.shape)}, not [N, ...] with the sizes of "
                        "the batches before. Yield samples of one size."
                    )
                earlier.append(value)
            used += sum(value.nbytes for value in arrays.values())
            _check_fits(source, 2 * used, free)  # twice: they are concatenated in the end
            count += len(next(iter(arrays.values()))) if arrays else 0
            if count >= limit:
                break
    if not chunks:
        raise DataError(f"{source} yields no batches. It must yield arrays, (x, y) or dicts.")
    return {key: np.concatenate(values)[:limit] for key, values in chunks.items()}


def _call_user(produce: Callable[[], Any], source: str) -> Generator[Any, None, None]:
    try:
        yield from produce()
    except Exception as error:  # the user's own code: whatever it raises is the finding
        raise DataError(
            f"{source} failed: {type(error).__name__}: {error}. It is called without arguments and "
            "must yield batches."
        ) from error


def _name_arrays(content: object, where: str) -> dict[str, Array]:
    """An array, ``(x,)``, ``(x, y)`` or a dict, as named arrays."""
    if isinstance(content, Mapping):
        named = {str(key): value for key, value in content.items()}
    elif isinstance(content, (list, tuple)) and 1 <= len(content) <= 2:
        named = dict(zip(("x", LABELS), content, strict=False))
    else:
        named = {"x": content}
    return {key: _to_array(value, f"{where}: {key}") for key, value in named.items()}


def _to_array(value: Any, where: str) -> Array:
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "detach"):
        array = _tensor_to_array(value, where)
    elif isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(f"{where} is a ragged list. Pass one array.") from error
    else:
        raise DataError(f"{where} is {type(value).__name__}, not an array or a tensor.")
    _check_numbers(array.dtype, where)
    return array


def _tensor_to_array(value: Any, where: str) -> Array:
    torch = require("torch", extra="build")
    try:
        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            array: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        else:
            array = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise DataError(
            f"{where} ({value.dtype}, {value.layout}) cannot be read as an array. "
            "Save a dense tensor of plain numbers."
        ) from error
    return array


def _check_numbers(dtype: np.dtype[Any], where: str) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which are not loaded: they can run code. "
            "Save plain arrays of numbers, all samples of one shape."
        )
    if dtype.kind not in "fiub" and not _is_float(dtype):
        raise DataError(f"{where} is {dtype}; it must hold real numbers or booleans.")


def _read_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Float64 and wider as float32; the machine's byte order."""
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize >= 8 else _native(dtype)


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("=") if dtype.kind in "fiu" else dtype


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == ml_dtypes.bfloat16


def _check_fits(where: Path | str, size: int, free: int) -> None:
    if size > free:
        raise DataError(
            f"{where} needs {size / 2**30:.1f} GiB and {free / 2**30:.1f} GiB of memory are free. "
            "Pass fewer samples, or an .npy file, which is read from disk as it is needed."
        )


def _free_memory() -> int:
    """Bytes that can be taken now: of the machine, within the limit of the container."""
    limits = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(int(found.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    if not limits:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits)


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as {kind}: {error}. Write it again, or pass {TAKEN}.")


def _describe(dataset: Dataset) -> str:
    return ", ".join(
        f"{name}:{_join(('N', *rows.shape[1:]))}:{rows.dtype}"
        for name, rows in dataset.inputs.items()
    )


def _join(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) for size in shape) or "a number"


_READERS: Mapping[str, Callable[[Path], dict[str, Array]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pt": _read_pt,
}

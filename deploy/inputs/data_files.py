"""Named arrays out of a file or a callable of the user, read without running what a file says.

Sizes are held against the free memory before an array is read; anything but real numbers and
booleans is refused, Python objects above all.
"""

import contextlib
import math
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deploy.engines.base import Array
from deploy.inputs.dataset import LABELS, OWN_LABELS, is_float
from deploy.loading.references import import_object
from export.errors import DataError
from export.optional import require

TAKEN = (
    "an .npz with x and, for labels, y; .npy, .pt, a folder of images, or package.module:callable"
)


def read_arrays(source: str, *, limit: int) -> dict[str, Array]:
    """The arrays that a file or a callable holds, by name: ``x``, ``y`` or the user's own.

    Args:
        source: a path or ``package.module:callable``.
        limit: samples that are taken from a callable; files are read whole.

    Raises:
        DataError: the source is missing, of no known kind, damaged, larger than the free memory, or
            holds other than numbers.
        ConfigError: the callable cannot be imported.
    """
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", source):
        return _read_callable(source, limit)
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"--data {source}: {'' if path.exists() else 'no such file; '}takes {TAKEN}."
        )
    if not path.is_file():
        raise DataError(f"--data {source}: no such file. Check the path.")
    return _READERS[path.suffix.lower()](path)


def check_arrays(arrays: Mapping[str, Array], source: str) -> None:
    """Hold the arrays of one dataset against each other; no value is read.

    Raises:
        DataError: one holds no numbers or no samples, or they differ in length.
    """
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
    """An array, ``(x,)``, ``(x, y)`` or a dict, as named arrays; `y` may be a dict by output.

    Raises:
        DataError: labels of an output are there twice, or one is no array of numbers.
    """
    if isinstance(content, Mapping):
        named = {str(key): value for key, value in content.items()}
    elif isinstance(content, (list, tuple)) and 1 <= len(content) <= 2:
        named = dict(zip(("x", LABELS), content, strict=False))
    else:
        named = {"x": content}
    if isinstance(named.get(LABELS), Mapping):
        own = {str(name): value for name, value in named.pop(LABELS).items()}
        for name, value in own.items():
            if f"{OWN_LABELS}{name}" in named:
                raise DataError(
                    f"{where}: {OWN_LABELS}{name} and {LABELS}[{name!r}] are labels of the same "
                    "output. Leave one of them out."
                )
            named[f"{OWN_LABELS}{name}"] = value
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
    if dtype.kind in "US":
        raise DataError(
            f"{where} holds text. Save numbers: of labels the class numbers of training, such as "
            "numpy.unique(names, return_inverse=True)[1] where classes count in the order of their "
            "names; of inputs what the model's forward takes."
        )
    if dtype.kind not in "fiub" and not is_float(dtype):
        raise DataError(f"{where} is {dtype}; it must hold real numbers or booleans.")


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


_READERS: Mapping[str, Callable[[Path], dict[str, Array]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".pt": _read_pt,
}

"""Golden samples: inputs with the answers that a bundle's engines must repeat, anywhere.

The inputs are seeded synthetic samples, so that a bundle carries nobody's data unless asked: four
of them, or as many as keep inputs and recorded answers within 32 MiB, one at least.
"""

import io
import math
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.judging.output_parity import are_pixels, same_nonfinite
from export.errors import BundleError
from export.masks import open_masks

GOLDEN_SAMPLES = 4
MAX_BYTES = 32 * 2**20
"""Of the samples with the answers of all engines; a single sample may need more."""

_KINDS = "biufV"
"""Of dtypes: bool, whole numbers, floats, and bfloat16, which numpy keeps as bytes."""

_ENCRYPTED = 1
"""The bit of a member's flags that says so."""
_UNREADABLE = (
    *(OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile),
    *(SyntaxError, tokenize.TokenError, RecursionError, NotImplementedError),
)
"""What zipfile, and numpy with a header that is no literal of Python's, make of damaged files."""
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

TOLERANCE: Mapping[str, float] = {
    "fp32": 1e-4,
    "tf32": 1e-2,
    "fp16": 2e-2,
    "bf16": 5e-2,
    "mixed": 5e-2,
    "int8": 5e-2,
    "int4": 5e-2,
}
"""How far an engine may be from its own recorded answers: max difference over largest value, and of
integers the share that differs.

Kernels differ from one CPU to the next, and a quantized value on the edge may fall either way.
Wrong weights, a wrong file or a wrong engine are off by far more. Pixels of colour images may
differ by 1, which rounding makes of any difference.
"""


@dataclass(frozen=True)
class Golden:
    """Inputs and, for ``reference`` and for every engine by name, the recorded outputs."""

    inputs: dict[str, Array]
    outputs: dict[str, dict[str, Array]]

    def save(self, path: Path) -> None:
        """Write as ``.npz`` with keys ``input/NAME`` and ``output/ENGINE/NAME``."""
        arrays = {f"input/{name}": array for name, array in self.inputs.items()}
        for engine, outputs in self.outputs.items():
            arrays |= {f"output/{engine}/{name}": array for name, array in outputs.items()}
        with zipfile.ZipFile(path, "w") as archive:  # np.savez of numpy 1 would pickle objects
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def choose_samples(inputs: Feeds, answers: Feeds, *, engines: int) -> int:
    """How many golden samples to record: `GOLDEN_SAMPLES`, or fewer of a size beyond `MAX_BYTES`.

    Args:
        inputs: one sample.
        answers: the outputs for it.
        engines: how many answer, the reference among them.
    """
    size = sum(array.nbytes for array in inputs.values())
    size += engines * sum(array.nbytes for array in answers.values())
    return max(1, min(GOLDEN_SAMPLES, MAX_BYTES // max(size, 1)))


def read_golden(path: Path) -> Golden:
    """Read what `Golden.save` wrote.

    Raises:
        BundleError: the file cannot be read as such.
    """
    inputs: dict[str, Array] = {}
    outputs: dict[str, dict[str, Array]] = {}
    try:
        for key, array in _read_arrays(path):
            kind, _, rest = key.partition("/")
            if kind == "input":
                inputs[rest] = array
            elif kind != "output":
                raise ValueError(f"{key!r} is neither an input nor an output")
            else:
                engine, _, name = rest.partition("/")
                outputs.setdefault(engine, {})[name] = array
    except _UNREADABLE as error:
        raise BundleError(f"{path} cannot be read: {error}. Build the bundle again.") from error
    return Golden(inputs, outputs)


def _read_arrays(path: Path) -> Iterator[tuple[str, Array]]:
    """The members in their order; none takes more memory than it has bytes in the file."""
    total = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                raise ValueError(f"{member.filename!r} is not stored as it is")
            total -= member.file_size
            if total < 0:
                raise ValueError("its members claim more bytes than it has")
            with archive.open(member) as file:
                data = file.read()
            yield member.filename.removesuffix(".npy"), _read_array(data, member.filename)


def _read_array(data: bytes, name: str) -> Array:
    """An array in the form of numpy; one whose header claims more than follows is refused."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"{name!r} has version {version} of numpy's form")
    shape, _, dtype = _READERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects")
    if dtype.kind not in _KINDS or dtype.names or (dtype.kind == "V" and dtype.itemsize != 2):
        raise ValueError(f"{name!r} holds {dtype}, which no engine takes or gives")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"{name!r} has not the size that its header claims")
    file.seek(0)
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if dtype.kind == "V" else array


def find_mismatch(
    recorded: Mapping[str, Array], answered: Feeds, *, tolerance: float
) -> str | None:
    """In words, the first output that is not what was recorded; None when all are."""
    for name, expected in recorded.items():
        if name not in answered:
            return f"output {name!r} is missing"
        got = answered[name]
        if got.shape != expected.shape:
            return f"output {name!r} has shape {list(got.shape)}, not {list(expected.shape)}"
        if not same_nonfinite(expected, got):
            return f"output {name!r} has NaN or Inf where none was recorded, or the reverse"
        floats = expected.dtype.kind == "f" or expected.dtype == ml_dtypes.bfloat16
        if not floats and not (are_pixels(expected) and got.dtype == np.uint8):
            share = float((got != expected).sum()) / max(expected.size, 1)
            if not share <= tolerance:
                return (
                    f"output {name!r} differs from what was recorded in {share:.2g} of its values; "
                    f"its tolerance is {tolerance:g}"
                )
            continue
        exact, found = open_masks(expected.astype(np.float64), got.astype(np.float64))
        finite = np.isfinite(exact)
        if not np.isfinite(found[finite]).all() or np.isfinite(found[~finite]).any():
            return f"output {name!r} holds other numbers where values are masked"
        largest = float(np.abs(exact[finite]).max(initial=0.0)) or 1.0
        error = float(np.abs(found[finite] - exact[finite]).max(initial=0.0)) / largest
        allowed = tolerance if floats else max(tolerance, 1 / largest)
        if not error <= allowed:
            return (
                f"output {name!r} is off by {error:.2g} of its largest value; "
                f"its tolerance is {allowed:.2g}"
            )
    return None

"""The protocol's names of data types, and numpy's."""

from typing import Any

import ml_dtypes
import numpy as np

from export.errors import BundleError

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
"""numpy's name → the protocol's. BYTES is not among them: no engine takes text."""

RAW_ONLY = frozenset({"FP16", "BF16"})
"""What JSON has no numbers for; such tensors travel in the binary extension alone."""

_NUMPY = {
    datatype: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name, datatype in DATATYPES.items()
}
_DATATYPES = {dtype: datatype for datatype, dtype in _NUMPY.items()}


def to_datatype(dtype: str) -> str:
    """The protocol's name for numpy's `dtype`.

    Raises:
        BundleError: the protocol has none.
    """
    if dtype not in DATATYPES:
        raise BundleError(
            f"The model has a tensor of dtype {dtype}, which the protocol does not know; it knows "
            f"{', '.join(DATATYPES)}."
        )
    return DATATYPES[dtype]


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name for an array's dtype, which is one of `DATATYPES`."""
    return _DATATYPES[dtype]


def to_dtype(datatype: str) -> np.dtype[Any]:
    """numpy's dtype, little-endian as the protocol sends it, for one of `DATATYPES`' values."""
    return _NUMPY[datatype]

"""What the Open Inference Protocol calls numpy's dtypes, and the bytes of a tensor on the wire."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

DATATYPES: Mapping[str, str] = {
    **{
        name: name.upper()
        for name in (
            "bool",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "int8",
            "int16",
            "int32",
            "int64",
        )
    },
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
}
"""numpy's name → the protocol's. BYTES is not among them: no engine takes text."""

RAW_ONLY = frozenset({"FP16", "BF16"})
"""What JSON has no numbers for; such tensors travel in the binary extension alone."""

_DTYPES = {
    datatype: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name, datatype in DATATYPES.items()
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}


def name_datatype(dtype: str) -> str:
    """The protocol's name of a dtype by numpy's, such as ``FP32``.

    Raises:
        KeyError: the protocol has no such dtype.
    """
    return DATATYPES[dtype]


def read_datatype(name: str) -> np.dtype[Any]:
    """The numpy dtype of one of the protocol's names, little-endian as the protocol sends it.

    Raises:
        KeyError: no engine takes or gives it, such as ``BYTES``.
    """
    return _DTYPES[name]


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name for an array's dtype, which is one of `DATATYPES`."""
    return _DATATYPES[dtype]


def to_wire(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes of an array as the protocol has them: row-major, little-endian, no padding."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()

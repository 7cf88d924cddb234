"""What the Open Inference Protocol calls numpy's dtypes, and the bytes of a tensor on the wire."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.inputs import DTYPES, numpy_dtype

_NAMES: Mapping[str, str] = {
    **{name: name.upper() for name in ("bool", "uint8", "int8", "int16", "int32", "int64")},
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {_NAMES[name]: name for name in DTYPES}


def name_datatype(dtype: str) -> str:
    """The protocol's name of one of `deploy.inputs.DTYPES`, such as ``FP32``.

    Raises:
        KeyError: the protocol has no such dtype.
    """
    return _NAMES[dtype]


def read_datatype(name: str) -> np.dtype[Any]:
    """The numpy dtype of one of the protocol's names; ``BF16`` is that of ml_dtypes.

    Raises:
        KeyError: no engine takes or gives it, such as ``BYTES``.
    """
    return numpy_dtype(_DTYPES[name])


def to_wire(array: np.ndarray[Any, Any]) -> bytes:
    """The bytes of an array as the protocol has them: row-major, little-endian, no padding."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return array.tobytes()

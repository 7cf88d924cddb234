"""In which format a node computes that ONNX Runtime has no kernel for, which it does not say."""

import re
from pathlib import Path

from onnx import TensorProto

from export.onnx.files import read_model
from export.onnx.tensor_types import element_types

_REFUSAL = re.compile(r"Could not find an implementation for \w+\(\d+\) node with name '([^']+)'")
_COMMON = frozenset({TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL})
"""Formats that operators have kernels for."""


def name_refused_formats(path: Path, message: str) -> str:
    """The formats of the node that `message` names, such as ``"bfloat16"``; empty if unknown.

    Args:
        path: of the model that ONNX Runtime did not load.
        message: what it said.

    Raises:
        LoadError: the file is not ONNX.
    """
    if (found := _REFUSAL.search(message)) is None:
        return ""
    model = read_model(path, weights=False)
    types = element_types(model)
    held = [
        types[name]
        for node in model.graph.node
        if node.name == found[1]
        for name in (*node.input, *node.output)
        if name in types
    ]
    rare = dict.fromkeys(kind for kind in held if kind not in _COMMON)
    return " and ".join(TensorProto.DataType.Name(kind).lower() for kind in rare)

"""What TensorRT's parser says, as one message: node, module path, source line, what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from export.onnx.cost import read_path
from export.onnx.files import read_model
from export.onnx.graph import name_node, read_source

_UNSUPPORTED = "UNSUPPORTED_NODE"


def explain_parser(product: str, parser: Any, path: Path) -> str:
    """Every node that the parser refused, at once.

    Args:
        product: as people call it.
        parser: of TensorRT or TensorRT for RTX, after it has refused the file.
        path: the ONNX file.
    """
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = {name_node(node): node for node in read_model(path, weights=False).graph.node}
    lacking = [error for error in errors if error.code().name == _UNSUPPORTED]
    others = [error for error in errors if error.code().name != _UNSUPPORTED]
    parts = []
    if lacking:
        listed = [f"{e.node_operator()} {_where(e.node_name(), nodes)}" for e in lacking]
        parts.append(
            f"{product} has no form of {_count(lacking)} of {path.name}: {_join(listed)}. "
            "Write them with other operators, or keep to ONNX Runtime or OpenVINO."
        )
    if others:
        listed = [
            f"{e.node_operator()} {_where(e.node_name(), nodes)}: {_shorten(e.desc())}"
            for e in others
        ]
        parts.append(f"{product} cannot parse {path.name}: {_join(listed)}.")
    return " ".join(parts) or f"{product} cannot parse {path.name} and gives no reason."


def _count(errors: Sequence[Any]) -> str:
    return "1 node" if len(errors) == 1 else f"{len(errors)} nodes"


def _where(name: str, nodes: dict[str, onnx.NodeProto]) -> str:
    """Module path and source line of a node, as far as the exporter recorded them."""
    node = nodes.get(name)
    if node is None:
        return f"(node {name!r})"
    path, line = read_path(node), read_source(node)
    at = f"(node {name!r})" if path in (name, f"{name} ({line})") else f"at {path}"
    return f"{at} ({line})" if line else at


def _join(items: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(items))


def _shorten(text: str) -> str:
    return " ".join(text.split())

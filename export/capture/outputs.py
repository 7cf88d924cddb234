"""What a module returns, of whatever nesting, as flat tensors with names."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from export.errors import ExportError

_DEPTH = 5
"""Attributes of attributes in which tensors are looked for: of a cache, its layers' keys."""


def flatten_outputs(result: object) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...], str]:
    """Names, tensors and structure of whatever a module returns.

    A lone tensor is ``output``; others are named by their path: ``logits``, ``boxes.0``,
    ``output_1``. What is not a tensor (None, numbers) is left out; see `find_left_out`.

    Raises:
        ExportError: there is no tensor in the result, a dataclass that torch cannot look into, or
            two outputs that get the same name.
    """
    try:
        leaves, _ = pytree.tree_flatten_with_path(result)
    except ValueError:  # at the first call alone: eager's answers are timed with what is done here
        _name_parts(result)
        leaves, _ = pytree.tree_flatten_with_path(result)
    for _, leaf in leaves:
        if dataclasses.is_dataclass(leaf):
            raise ExportError(
                f"The model returns a {type(leaf).__name__}, and torch cannot look into it; call "
                f"torch.export.register_dataclass({type(leaf).__name__}) where it is defined."
            )
    found = [(path, leaf) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not found:
        raise ExportError(
            f"The model returns no tensor but {type(result).__name__}; return tensors, or a tuple "
            "or dict of them."
        )
    if len(found) == 1 and not found[0][0]:
        return ("output",), (found[0][1],), "tensor"
    names = tuple(_path_name(path) for path, _ in found)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ExportError(
            f"Two outputs of the model are called {twice[0]!r}; return them under other keys."
        )
    return names, tuple(leaf for _, leaf in found), describe_structure(result)


def find_left_out(result: object) -> tuple[str, ...]:
    """What of a module's result holds values and is no output: ``states (DynamicCache)``."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    return tuple(
        f"{_path_name(path)} ({type(leaf).__name__})"
        for path, leaf in leaves
        if not isinstance(leaf, torch.Tensor) and _holds_values(leaf, _DEPTH)
    )


def _holds_values(value: object, depth: int) -> bool:
    if isinstance(value, torch.Tensor | np.ndarray):
        return True
    if not depth or isinstance(value, type):
        return False
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return any(_holds_values(part, depth - 1) for part in parts)


def describe_structure(result: object) -> str:
    """How `result` nests: ``dict(states: tensor, pooled: tuple(tensor, tensor))``.

    The tensors stand in the order of the flat outputs. Keys of dicts and fields of dataclasses and
    named tuples stand before a colon: as they are where they are identifiers, otherwise as JSON
    text (``"a.b"``), or as Python writes them where they are no text (``0``). What is no tensor and
    therefore no output stands by its type, ``None`` or ``int``.
    """
    found, structure = pytree.tree_flatten_with_path(result, is_leaf=lambda x: x is not result)
    if structure.is_leaf():
        if isinstance(result, torch.Tensor):
            return "tensor"
        return "None" if result is None else type(result).__name__
    parts = []
    for (key,), child in found:
        text = describe_structure(child)
        named = not isinstance(key, pytree.SequenceKey)
        parts.append(f"{_describe_key(key)}: {text}" if named else text)
    kind = getattr(structure.type, "__name__", str(structure.type))
    return f"{kind}({', '.join(parts)})"


def _name_parts(result: object) -> None:
    """Let torch name the parts of every container in `result` that it was not told the names of.

    So are the outputs of diffusers registered, and torch refuses to look into them.
    """
    kind = pytree._get_node_type(result)
    node = pytree.SUPPORTED_NODES.get(kind)
    if node is None:
        return
    if node.flatten_with_keys_fn is None:
        named = functools.partial(_flatten_with_keys, node.flatten_fn)
        pytree.SUPPORTED_NODES[kind] = node._replace(flatten_with_keys_fn=named)
    for part in node.flatten_fn(result)[0]:
        _name_parts(part)


def _flatten_with_keys(
    flatten: Callable[[Any], tuple[list[Any], Any]], container: Any
) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
    """Parts under their keys, where what puts them together again is the list of these."""
    parts, context = flatten(container)
    keys: list[pytree.KeyEntry] = [pytree.SequenceKey(index) for index in range(len(parts))]
    listed = isinstance(context, list | tuple) and len(context) == len(parts)
    if listed and all(isinstance(key, str) for key in context):
        keys = [pytree.MappingKey(key) for key in context]
    return list(zip(keys, parts, strict=True)), context


def _path_name(path: tuple[Any, ...]) -> str:
    parts = []
    for depth, key in enumerate(path):
        text = pytree.keystr((key,)).strip("[].'\"")
        parts.append(f"output_{text}" if depth == 0 and text.isdigit() else text)
    return ".".join(parts) or "output"  # of a key that is empty


def _describe_key(key: Any) -> str:
    value = key.name if isinstance(key, pytree.GetAttrKey) else key.key
    if not isinstance(value, str):
        return repr(value)
    return value if value.isidentifier() else json.dumps(value)

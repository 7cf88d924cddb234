"""What torch's exporter knows of operators, read once a process in place of once an export.

At every call `torch.onnx.export` reads the source of 500 functions of onnxscript and infers their
signatures, and looks up by name, several times, all operators that torch composes of others: more
than half of the time that a small network takes.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from export.onnx.kept_overrides import keep_overrides

_TABLES: dict[tuple[Any, ...], Any] = {}
"""The exporter's functions by operator, by what was asked for, the opset, and `_list_operators`."""

_LATER = ("torchvision::", "quantized_decomposed::")
"""Operators that the exporter knows, and that come where their library is imported."""

_looked_up: list[str] = []
"""Names of the composed operators that torch has looked up already."""


@contextlib.contextmanager
def keep_operators() -> Iterator[None]:
    """Have each export of the block use what the first one of the process has read.

    What an export registers (``custom_translation_table``) is its own, and operators that came
    since are looked up. Where another release of torch has no such parts, nothing changes.
    """
    with _keep_table(), _keep_composed(), keep_overrides():
        yield


@contextlib.contextmanager
def _keep_table() -> Iterator[None]:
    from torch.onnx._internal.exporter import _registration

    owner: Any = getattr(_registration, "ONNXRegistry", None)
    original = vars(owner).get("from_torchlib") if owner is not None else None
    if not isinstance(original, classmethod):
        yield
        return
    read = original.__func__

    def from_torchlib(cls: Any, *args: Any, **options: Any) -> Any:
        asked = (cls, args, tuple(options.items()), _list_operators())
        if asked not in _TABLES:
            _TABLES[asked] = read(cls, *args, **options)
        registry = copy.copy(_TABLES[asked])
        registry.functions = {name: list(found) for name, found in registry.functions.items()}
        return registry

    owner.from_torchlib = classmethod(from_torchlib)
    try:
        yield
    finally:
        owner.from_torchlib = original


def _list_operators() -> frozenset[str]:
    """Names in `_LATER` that are there by now; the exporter passes over all others."""
    list_names = getattr(torch._C, "_dispatch_get_all_op_names", list[str])
    return frozenset(name for name in list_names() if name.startswith(_LATER))


@contextlib.contextmanager
def _keep_composed() -> Iterator[None]:
    from torch._export import utils

    owner: Any = utils
    look_up = getattr(owner, "_materialize_cpp_cia_ops", None)
    list_names = getattr(torch._C, "_dispatch_get_registrations_for_dispatch_key", None)
    if look_up is None or list_names is None:
        yield
        return

    def look_up_new() -> None:
        found = list_names("CompositeImplicitAutograd")
        if found != _looked_up:
            look_up()
            _looked_up[:] = found

    owner._materialize_cpp_cia_ops = look_up_new
    try:
        yield
    finally:
        owner._materialize_cpp_cia_ops = look_up

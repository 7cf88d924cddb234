"""Whether the tensors of a model are what they claim: as large as stored, dense, with values.

A file of a few bytes can name a tensor of terabytes by a stride of zero, or have a constructor make
one; both are told by sizes alone, before anything is copied.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from export.errors import LoadError


def check_rebuilds(data: bytes, path: Path) -> None:
    """Refuse tensors of torch's own list that must not be rebuilt at all.

    Args:
        data: the pickle of the file, unread.
        path: the file, for messages.

    Raises:
        LoadError: it names the rebuilding of a sparse tensor or of one of another device.
    """
    if b"_rebuild_sparse_tensor" in data:
        raise LoadError(
            f"{path} holds sparse tensors, which cannot be exported. Save them dense (.to_dense())."
        )
    if b"_rebuild_device_tensor" in data:
        # these copy a tensor before anyone can look at its size
        raise LoadError(f"{path} holds tensors of another device. Save model.cpu() again.")


def check_tensors(content: Any, where: str) -> None:
    """Refuse tensors that claim more than they store, and those that cannot be exported.

    Args:
        content: a module, a tensor, or containers of them at any depth.
        where: the file or the module's class, for messages.

    Raises:
        LoadError: a tensor is sparse, has no values, or is larger than its storage.
    """
    for name, tensor in _walk_tensors(content):
        label = f"{where}: tensor {name}"
        if is_lazy(tensor):
            raise LoadError(
                f"{label} has no size yet, as layers like nn.LazyLinear leave it. Call the model "
                "on a sample once, and save it then."
            )
        if tensor.layout is not torch.strided:
            raise LoadError(
                f"{label} is sparse ({tensor.layout}), which cannot be exported. Save it dense."
            )
        if tensor.device.type == "meta":
            raise LoadError(
                f"{label} is on the meta device: it has a shape and no values. Save the model with "
                "its weights."
            )
        stored = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > stored:
            raise LoadError(
                f"{label} claims {tensor.numel():,} elements and stores {stored:,}. "
                "Save it with .contiguous(); if you did not make this file, do not use it."
            )


def check_total(content: Any, limit: int, path: Path) -> None:
    """Refuse tensors that did not come out of the file: a constructor in the pickle made them.

    Args:
        content: as in `check_tensors`.
        limit: the size of the file in bytes.
        path: the file, for messages.

    Raises:
        LoadError: the storages together are larger than `limit`.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for _, tensor in _walk_tensors(content)
    }
    if (total := sum(storages.values())) > limit:
        raise LoadError(f"{path} makes tensors of {total:,} bytes out of {limit:,}. Do not use it.")


def _walk_tensors(content: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested containers and modules, plain attributes included, with its path."""
    pending: list[tuple[str, Any]] = [("", content)]
    seen: set[int] = set()
    while pending:
        name, item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        children: list[tuple[Any, Any]] = []
        if isinstance(item, torch.Tensor):
            yield name or "(the whole file)", item
        elif isinstance(item, torch.jit.ScriptModule):
            children = [*item.named_parameters(), *item.named_buffers()]
        elif isinstance(item, nn.Module):
            for key, value in vars(item).items():
                inner = key in ("_parameters", "_buffers", "_modules")
                children += value.items() if inner else [(key, value)]
        elif isinstance(item, Mapping):
            children = list(item.items())
        elif isinstance(item, (list, tuple, set)):
            children = list(enumerate(item))
        pending += [(f"{name}.{key}" if name else str(key), value) for key, value in children]

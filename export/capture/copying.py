"""Copies of what torch holds, without what torch says about itself while it copies."""

import copy
import warnings
from collections.abc import Iterable
from typing import TypeVar

import torch

Copied = TypeVar("Copied")


def deep_copy(value: Copied, *, shared: Iterable[object] = ()) -> Copied:
    """A deep copy of a module, a graph or a record of them; what is in `shared` is not copied.

    Parameters of a ScriptModule stay leaves, and torch's deprecation warning about its own pytree
    specifications, which graph modules hold, is not passed on.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        return copy.deepcopy(value, {id(item): item for item in shared})

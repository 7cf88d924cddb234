"""What is otherwise about torch and a module while it is captured, so that more is captured.

Each part says what torch.export would do without it.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from export.capture.counted_numbers import CountedNumbers
from export.capture.embedding_bags import EqualBags
from export.capture.idle_autocast import skip_idle_autocast
from export.capture.open_signals import OpenSignals
from export.capture.padded_encoders import drop_padding
from export.capture.places_along import PlacesAlong
from export.capture.quick_shapes import shape_quickly
from export.capture.replaced_calls import ReplacedCalls, Replacement
from export.capture.tensor_fills import TensorFills, TensorFillsLike
from export.capture.whole_scales import WholeScales

_REPLACED: tuple[type[Replacement], ...] = (
    *(CountedNumbers, EqualBags, OpenSignals, PlacesAlong, TensorFills, TensorFillsLike),
)
_REPLACED_OF_SIZES = (*_REPLACED, WholeScales)
_KNOWN = (Tensor, int, float, complex, bool, str, type(None), torch.SymInt, torch.SymFloat)


@contextlib.contextmanager
def surround(
    module: nn.Module, names: Sequence[str], *, strict: bool, sizes: bool
) -> Iterator[None]:
    """All of it, for the length of the block.

    Args:
        names: of the inputs that are given by name.
        strict: bytecode is traced, and torch calls what is written there.
        sizes: axes beside the batch take sizes from a range.
    """
    masks = replaced(torch.nn.modules.transformer, "_detect_is_causal_mask", _say_of_mask)
    with contextlib.ExitStack() as stack:
        for context in (shape_quickly(), _plain_attention(), masks, _naming(module, names)):
            stack.enter_context(context)
        if not strict:
            for context in (_leave_out_unknown(module), skip_idle_autocast(), drop_padding()):
                stack.enter_context(context)
            kinds = _REPLACED_OF_SIZES if sizes else _REPLACED
            stack.enter_context(ReplacedCalls(*(kind() for kind in kinds)))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Another attribute `name` of `owner`, for the length of the block; none where it has none."""
    if not hasattr(owner, name):
        yield
        return
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextlib.contextmanager
def _leave_out_unknown(module: nn.Module) -> Iterator[None]:
    """Have `module` return None in place of objects that torch knows nothing of.

    A cache of keys and values beside the logits of a language model is one. torch.export refuses
    the whole result for it, though only tensors become outputs. Tracing bytecode leaves it in.
    """

    def hook(_module: nn.Module, _args: object, result: object) -> object:
        if all(isinstance(leaf, _KNOWN) for leaf in pytree.tree_leaves(result)):
            return result
        return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, _KNOWN) else None, result)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _say_of_mask(_mask: object, is_causal: bool | None = None, _size: object = None) -> bool:
    """What ``nn.Transformer`` takes for causal: what the caller says is.

    It looks at the values of a mask of which nothing is said. A capture has none, and the answer
    only chooses between kernels that compute the same.
    """
    return is_causal is True


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's attention and encoder layers from their kernels of one piece.

    Tracing bytecode takes them otherwise. torch 2.11 cannot trace that of the encoder layer, and
    ONNX has no form of either.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _naming(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Have ``forward`` of `module` take `names` as parameters, for the length of the block.

    What goes into ``**kwargs`` torch.export counts twice, once by its own name and once within
    the dict, and then refuses the dynamic axes of either.
    """
    own = inspect.signature(module.forward)
    if not names or all(p.kind is not p.VAR_KEYWORD for p in own.parameters.values()):
        yield
        return
    forward, kept = module.forward, vars(module).get("forward")

    @functools.wraps(forward)
    def call(*args: object, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    kinds = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    call.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    vars(module)["forward"] = call
    try:
        yield
    finally:
        if kept is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = kept

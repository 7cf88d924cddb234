"""A model that draws random numbers when it runs: whether it does, and where.

No engine repeats the answers of such a model. ``F.dropout(x)`` is the usual way to one: unlike
``nn.Dropout``, it drops in eval mode too.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.capture.agreement import Expectation, expect, find_disagreement
from export.capture.arrays import to_tensor
from export.capture.locating import describe_place, list_running_lines
from export.capture.signature import CallSignature
from export.errors import InputError

_REMEDY = (
    "No engine can repeat such answers. Write F.dropout(x, training=self.training) or use "
    "nn.Dropout, which drops nothing in eval mode; pass numbers that are to be random as an input."
)


def refuse_random(module: nn.Module, signature: CallSignature, first: Expectation) -> None:
    """Run `module` once more on the batch of `first`.

    Raises:
        InputError: it does not repeat its own answers, so that no file could.
        ExportError: it fails.
    """
    feeds = {name: to_tensor(array.copy()) for name, array in first.feeds.items()}
    again = expect(module, feeds, signature, extent=first.extent, tolerances=first.tolerances)
    difference = find_disagreement(first, again.outputs)
    if difference is None:
        return
    draw = find_draw(module, feeds, signature)
    if draw is None:
        raise InputError(
            "The model itself gives other answers on another run of the same inputs: "
            f"{difference}. It draws no random numbers from torch, so look for random, "
            "numpy.random, or a buffer that forward changes. No engine can repeat such answers."
        )
    raise InputError(describe_random(difference, draw))


def describe_random(difference: str, draw: str) -> str:
    """What to say of a model that does not repeat its answers.

    Args:
        difference: between two runs.
        draw: as `find_draw` says it.
    """
    return (
        f"The model itself is random, also in eval mode: {difference}. It draws {draw}. {_REMEDY}"
    )


def find_draw(
    module: nn.Module, feeds: Mapping[str, Tensor], signature: CallSignature
) -> str | None:
    """Where a call of `module` draws its first random numbers; None: it draws none from torch.

    Says the user's module path, and the line of source where there is one.
    """
    watch = _Watch(module)
    with watch, torch.no_grad():
        signature.call(module, feeds)
    return watch.found


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator of a call, and keeps where the first one took from the generator.

    The tag alone says little: attention without dropout has it too.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: str | None = None
        self._module = module

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if self.found is not None or torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        before = torch.get_rng_state()
        result = func(*args, **named)
        own = named.get("generator") is not None
        if own or not torch.equal(before, torch.get_rng_state()):
            lines = list_running_lines(sys._getframe(1), CallSignature.call)
            self.found = f"random numbers with {func}{describe_place(self._module, lines)}"
        return result

"""A module that can be neither copied nor pickled says which part of it, and what to do."""

import contextvars
import pickle
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from deploy.config import BuildConfig
from deploy.loading.unpicklable import describe_unpicklable
from deploy.source import open_problem
from export.capture.copying import deep_copy
from export.errors import LoadError


class Recorder:
    """A hook that keeps what it saw for the caller's context, as output recorders do."""

    def __init__(self) -> None:
        self.seen: contextvars.ContextVar[Tensor] = contextvars.ContextVar("seen")

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> None:
        self.seen.set(output)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2))).eval()


def _hook(net: nn.Sequential) -> None:
    net[1][1].register_forward_hook(Recorder())  # type: ignore[index]


def _closure(net: nn.Sequential) -> None:
    seen: contextvars.ContextVar[Tensor] = contextvars.ContextVar("seen")
    net[1][1].register_forward_hook(  # type: ignore[index]
        lambda module, args, output: seen.set(output) and None
    )


def _lock(net: nn.Sequential) -> None:
    net[1].state = {"workers": [1, threading.Lock()]}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_hook, ("cannot be copied", "1.1._forward_hooks[", ".seen (ContextVar)")),
        (_closure, ("cannot be pickled", "1.1._forward_hooks[", "which reads seen (ContextVar)")),
        (_lock, ("cannot be copied", "1.state['workers'][1] (lock)")),
    ],
)
def test_the_part_is_named_and_the_way_out(
    spoil: Callable[[nn.Sequential], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    net = _net()
    spoil(net)
    with pytest.raises(LoadError) as caught:
        open_problem(net, BuildConfig(inputs=("1x2",)), tmp_path)
    for word in (*words, "state_dict", "--model package.module:factory"):
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_where_every_part_can_be_copied_nothing_is_named() -> None:
    assert describe_unpicklable(_net(), deep_copy) == ""


def test_a_hook_whose_variable_is_not_set_is_named() -> None:
    seen = None
    hook = lambda module, args, output: seen  # noqa: E731
    net = _net()
    empty = types.FunctionType(hook.__code__, globals(), closure=(types.CellType(),))
    net[1].register_forward_hook(empty)
    said = describe_unpicklable(net, pickle.dumps)
    assert "1._forward_hooks[" in said
    assert "(function)" in said

"""Sessions of ONNX Runtime on a GPU that have one set of input shapes each.

cuDNN's plan of a convolution is made for the shapes it was called with last, and made anew at every
other: sizes of a batch by turns cost ResNet-50 180 ms a call where one size takes 2 (an H200). So a
model with convolutions and dynamic axes gets a session for each set of shapes that comes. Each has
its copy of the weights, so their number is bounded; what comes later shares one.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from deploy.engines.graph_plans import count_bytes
from export.artifacts import TensorSpec
from export.errors import EngineError

MAX_SESSIONS = 16
"""Sets of shapes with a session of their own, each with its own copy of the weights."""

_MAX_WEIGHTS = 2**32
"""Bytes of all copies of the weights; one is made in any case."""
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})

Shapes = tuple[tuple[int, ...], ...]
"""Those of the inputs, in the order of the signature."""


def count_room(graph: onnx.GraphProto) -> int:
    """How many sessions of this model an engine may have."""
    return max(1, min(MAX_SESSIONS, _MAX_WEIGHTS // max(1, count_bytes(graph))))


def needs_sessions(graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> bool:
    """Whether calls of other shapes would plan anew: there are convolutions and dynamic axes."""
    dynamic = any(not isinstance(size, int) for spec in inputs for size in spec.shape)
    return dynamic and any(node.op_type in _CONVOLUTIONS for node in graph.node)


class ShapeSessions:
    """What `take` returns for shapes is theirs, once `give_back` said that they were answered.

    Safe to use from several threads. A session that a refused call opened waits for other shapes,
    so that what a model refuses opens no session each time.
    """

    def __init__(self, first: Any, open_session: Callable[[], Any], room: int) -> None:
        """Of `first`, which is open, and up to `room` in all; one more is shared by the rest."""
        self._open = open_session
        self._room = room
        self._count = 1
        self._idle = [first]
        self._kept: dict[Shapes, Any] = {}
        self._shared: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def take(self, shapes: Shapes) -> Any:
        """A session to run `shapes` in.

        Raises:
            EngineError: there is none, and none can be opened; or all were let go.
        """
        with self._lock:
            if self._closed:
                raise EngineError("The engine is closed; call it inside its with block.")
            if shapes in self._kept:
                return self._kept[shapes]
            if self._idle:
                return self._idle.pop()
            if self._count >= self._room:
                return self._share()
            self._count += 1
        try:
            return self._open()
        except EngineError:  # want of memory, as a rule, since the first was opened
            with self._lock:
                self._count -= 1
                self._room = max(1, self._count)
                return self._share()

    def give_back(self, shapes: Shapes, session: Any, *, answered: bool) -> None:
        """After a call: keep `session` for `shapes` that it answered, if none was kept yet."""
        with self._lock:
            if self._closed or session is self._shared or self._kept.get(shapes) is session:
                return
            if answered and shapes not in self._kept:
                self._kept[shapes] = session
            else:
                self._idle.append(session)

    def clear(self) -> None:
        """Let all sessions go, those of calls under way at their end; none is opened any more."""
        with self._lock:
            self._closed = True
            self._idle.clear()
            self._kept.clear()
            self._shared = None

    def _share(self) -> Any:
        """The session of shapes without one of their own: one more, or where that cannot be, any.

        Raises:
            EngineError: nothing is open.
        """
        if self._shared is None:
            try:
                self._shared = self._open()
            except EngineError:
                if not self._kept:
                    raise
                self._shared = next(iter(self._kept.values()))  # nor is it tried at every call
        return self._shared

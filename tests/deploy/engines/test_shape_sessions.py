"""Every set of shapes keeps its session; what is refused or does not fit costs none."""

import threading
from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from deploy.engines.shape_sessions import MAX_SESSIONS, ShapeSessions, count_room, needs_sessions
from export.artifacts import TensorSpec
from export.errors import EngineError


class Opener:
    """Opens numbered sessions, up to `room` of them."""

    def __init__(self, room: int = 99) -> None:
        self.opened, self.tried, self.room = 0, 0, room

    def __call__(self) -> str:
        self.tried += 1
        if self.opened >= self.room:
            raise EngineError("out of memory")
        self.opened += 1
        return f"session {self.opened}"


def shapes(batch: int) -> tuple[tuple[int, ...], ...]:
    return ((batch, 3), (batch,))


def call(sessions: ShapeSessions, batch: int, *, answered: bool = True) -> str:
    session = sessions.take(shapes(batch))
    sessions.give_back(shapes(batch), session, answered=answered)
    return str(session)


def test_shapes_that_come_again_find_their_session() -> None:
    opener = Opener()
    sessions = ShapeSessions("first", opener, room=4)
    used = [call(sessions, batch) for batch in (8, 1, 3, 8, 1, 3, 1, 8)]
    assert used == ["first", "session 1", "session 2"] * 2 + ["session 1", "first"]
    assert opener.opened == 2


def test_more_shapes_than_room_share_one_and_leave_the_others_alone() -> None:
    opener = Opener()
    sessions = ShapeSessions("first", opener, room=2)
    used = [call(sessions, batch) for batch in (1, 2, 3, 4, 3, 1, 2)]
    shared = ["session 2"] * 3
    assert used == ["first", "session 1", *shared, "first", "session 1"]
    assert opener.opened == 2


@pytest.mark.parametrize("room", [0, 1])
def test_without_memory_for_another_the_shapes_share_what_there_is(room: int) -> None:
    opener = Opener(room)
    sessions = ShapeSessions("first", opener, room=8)
    used = [call(sessions, batch) for batch in (1, 2, 3, 2, 1)]
    assert set(used) <= {"first", "session 1"}
    assert used[0] == used[-1] == "first"
    tried = opener.tried
    for batch in range(4, 20):
        call(sessions, batch)
    assert opener.tried == tried  # each attempt takes as long as one that succeeds


def test_with_no_memory_and_nothing_kept_the_error_is_raised() -> None:
    sessions = ShapeSessions("first", Opener(0), room=8)
    sessions.take(shapes(1))  # and is not back yet
    with pytest.raises(EngineError, match="out of memory"):
        sessions.take(shapes(2))


def test_refused_shapes_open_one_session_at_most_and_the_next_uses_it() -> None:
    opener = Opener()
    sessions = ShapeSessions("first", opener, room=8)
    call(sessions, 1)
    assert {call(sessions, 2, answered=False) for _ in range(20)} == {"session 1"}
    assert call(sessions, 3) == "session 1"
    assert call(sessions, 1, answered=False) == "first"
    assert call(sessions, 1) == "first"
    assert opener.opened == 1


def test_of_calls_at_once_with_new_shapes_one_keeps_its_session_and_none_is_lost() -> None:
    opener = Opener()
    sessions = ShapeSessions("first", opener, room=4)
    together = [sessions.take(shapes(5)) for _ in range(3)]
    assert len(set(together)) == 3
    for session in together:
        sessions.give_back(shapes(5), session, answered=True)
    assert call(sessions, 5) == together[0]
    assert {call(sessions, 6), call(sessions, 7)} == set(together[1:])
    assert opener.opened == 2


def test_after_the_end_nothing_is_kept_or_opened() -> None:
    opener = Opener()
    sessions = ShapeSessions("first", opener, room=4)
    under_way = sessions.take(shapes(1))
    sessions.clear()
    sessions.give_back(shapes(1), under_way, answered=True)
    for batch in (1, 2):
        with pytest.raises(EngineError, match="closed"):
            sessions.take(shapes(batch))
    assert opener.opened == 0


def test_threads_never_share_shapes_of_two_sessions() -> None:
    sessions = ShapeSessions("first", Opener(), room=MAX_SESSIONS)
    for batch in range(1, 9):
        call(sessions, batch)
    owners = {batch: call(sessions, batch) for batch in range(1, 9)}
    wrong: list[int] = []

    def work(batch: int) -> None:
        for _ in range(200):
            if call(sessions, batch) != owners[batch]:
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(owners.values())) == 8


def make_graph(kind: str, weight: Callable[[], onnx.TensorProto]) -> onnx.GraphProto:
    node = helper.make_node(kind, ["x", "w"], ["y"])
    return helper.make_graph([node], "g", [], [], [weight()])


def test_convolutions_with_dynamic_axes_need_sessions() -> None:
    small = helper.make_tensor("w", TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    dynamic = [TensorSpec("x", ("batch", 1, 8, 8), "float32")]
    static = [TensorSpec("x", (4, 1, 8, 8), "float32")]
    for kind in ("Conv", "ConvTranspose"):
        assert needs_sessions(make_graph(kind, lambda: small), dynamic)
        assert not needs_sessions(make_graph(kind, lambda: small), static)
    assert not needs_sessions(make_graph("MatMul", lambda: small), dynamic)


def test_copies_of_the_weights_are_bounded() -> None:
    def of(size: int) -> Callable[[], onnx.TensorProto]:
        return lambda: onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size])

    assert count_room(make_graph("MatMul", of(10))) == MAX_SESSIONS
    assert count_room(make_graph("MatMul", of(2**28))) == 4  # a gibibyte each
    assert count_room(make_graph("MatMul", of(2**33))) == 1

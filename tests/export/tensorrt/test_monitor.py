"""Nested phases as one share of the whole."""

import signal
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.tensorrt.monitor import BuildMonitor, PhaseStack


def test_the_share_is_that_of_the_outermost_phase_with_what_is_inside() -> None:
    phases = PhaseStack()
    phases.start("build", 4)
    assert phases.share() == 0
    phases.complete("build", 0)
    assert phases.share() == 1 / 4
    phases.start("optimize", 2)
    phases.complete("optimize", 0)
    assert phases.share() == (1 + 1 / 2) / 4
    assert phases.innermost == "optimize"
    phases.finish("optimize")
    assert phases.share() == (1 + 1 / 2) / 4  # never falls
    phases.complete("build", 1)
    assert phases.share() == 2 / 4
    phases.complete("build", 3)
    assert phases.share() == 1


def test_phases_that_end_early_or_are_not_known_do_no_harm() -> None:
    phases = PhaseStack()
    phases.complete("unknown", 3)
    phases.finish("unknown")
    phases.start("build", 0)
    phases.start("inner", 10)
    phases.finish("build")
    assert phases.innermost == ""
    assert phases.share() == 0


@given(st.lists(st.tuples(st.sampled_from("scf"), st.sampled_from("abc"), st.integers(0, 9))))
def test_whatever_is_told_the_share_stays_between_0_and_1_and_never_falls(told) -> None:
    phases, last = PhaseStack(), 0.0
    for kind, name, number in told:
        if kind == "s":
            phases.start(name, number)
        elif kind == "c":
            phases.complete(name, number)
        else:
            phases.finish(name)
        share = phases.share()
        assert last <= share <= 1
        last = share


def test_each_signal_is_heard_behind_the_build_where_handlers_only_note_it() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are heard in the main thread alone")
    numbers, noted = (signal.SIGTERM, signal.SIGINT), []
    old = [signal.signal(number, lambda heard, _: noted.append(heard)) for number in numbers]
    try:
        monitor = BuildMonitor(SimpleNamespace(IProgressMonitor=object), "build", lambda _: None)
        with monitor.hold_signals():
            for number in (*numbers, signal.SIGTERM):
                signal.raise_signal(number)
            assert noted == []
    finally:
        for number, handler in zip(numbers, old, strict=True):
            signal.signal(number, handler)
    assert noted == list(numbers)

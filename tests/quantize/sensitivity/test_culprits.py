"""Exactly the planted culprits are found, in few questions, whatever they are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.sensitivity.culprits import find_culprits

NODES = tuple(f"n{number}" for number in range(50))


@given(st.sets(st.sampled_from(NODES), max_size=6))
def test_the_planted_ones_are_found_in_graph_order(planted: set[str]) -> None:
    asked: list[frozenset[str]] = []

    def passes(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return kept >= planted

    found = find_culprits(NODES, passes, builds=1000)
    assert found.names == tuple(name for name in NODES if name in planted)
    assert found.complete
    assert found.builds == len(asked)
    assert len(asked) <= 1 + len(planted) * (math.ceil(math.log2(len(NODES))) + 1)


@pytest.mark.parametrize("planted", NODES)
def test_one_of_fifty_takes_under_twelve_questions(planted: str) -> None:
    found = find_culprits(NODES, lambda kept: planted in kept, builds=12)
    assert found.names == (planted,)
    assert found.complete
    assert found.builds < 12


@given(st.sets(st.sampled_from(NODES), min_size=2, max_size=20), st.integers(1, 20))
def test_no_member_of_what_is_found_can_leave(clues: set[str], needed: int) -> None:
    """The gate counts: some of the clues do, no matter which."""
    needed = min(needed, len(clues))

    def passes(kept: frozenset[str]) -> bool:
        return len(kept & clues) >= needed

    found = find_culprits(NODES, passes, builds=1000)
    assert found.complete
    kept = frozenset(found.names)
    assert passes(kept)
    assert all(not passes(kept - {name}) for name in kept)


@pytest.mark.parametrize("builds", [1, 2, 7, 8, 20])
def test_questions_run_out_in_plain_sight(builds: int) -> None:
    asked: list[frozenset[str]] = []

    def passes(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return kept >= set(NODES[10:40])

    found = find_culprits(NODES, passes, builds=builds)
    assert not found.complete
    assert found.builds == len(asked) <= builds
    assert set(found.names) <= set(NODES[10:40])


def test_what_nothing_mends_is_not_complete() -> None:
    found = find_culprits(NODES[:3], lambda kept: False, builds=100)
    assert not found.complete
    assert find_culprits((), lambda kept: False, builds=9).builds == 1

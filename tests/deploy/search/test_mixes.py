"""Blocks change sides one after the other, and one mix that cannot be made ends nothing."""

from deploy.search.mixes import choose_mix, propose_mixes
from export.errors import DeployError, EngineError, NothingToQuantizeError
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.fallback import BlockTrade

A, B, C = (Block(name, (f"{name}1", f"{name}2")) for name in "abc")
ALL = frozenset(node for block in (A, B, C) for node in block.nodes)


def test_a_block_changes_sides_in_the_best_mix_so_far() -> None:
    asked: list[frozenset[str]] = []

    def wins(nodes: frozenset[str]) -> bool:
        asked.append(nodes)
        return nodes in ({*A.nodes, *B.nodes}, {*B.nodes})

    found = choose_mix([(A, B), (C,), (A,)], wins, lambda error: None)
    assert found == {*B.nodes}
    assert asked == [{*A.nodes, *B.nodes}, ALL, {*B.nodes}]


def test_a_mix_that_cannot_be_made_or_run_leaves_the_one_before() -> None:
    told: list[DeployError] = []

    def wins(nodes: frozenset[str]) -> bool:
        if nodes == ALL:
            raise NothingToQuantizeError("nothing is left in int8")
        if nodes == {*A.nodes, *C.nodes}:
            raise EngineError("it cannot be opened")
        return True

    found = choose_mix([(A,), (B, C), (C,), (B,)], wins, told.append)
    assert found == {*A.nodes, *B.nodes}
    assert [type(error) for error in told] == [NothingToQuantizeError, EngineError]


def test_no_mix_is_better_than_all_in_int8() -> None:
    assert choose_mix([(A,), (B,)], lambda nodes: False, lambda error: None) == frozenset()


def test_all_that_int8_slows_down_leaves_it_first_and_then_the_nearest_to_nothing_changes() -> None:
    trades = [
        BlockTrade(block, noise=1e-3, saving=saving)
        for block, saving in ((A, -3e-3), (B, 2e-3), (C, -1e-3))
    ]
    assert propose_mixes(trades) == [(A, C), (C,), (B,), (A,)]

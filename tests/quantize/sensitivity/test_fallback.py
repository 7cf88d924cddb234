"""The order in which blocks leave int8, and how few of them must."""

from itertools import pairwise

import pytest

from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import BlockSensitivity
from quantize.sensitivity.fallback import BlockTrade, find_fewest, orders_of_leaving, weigh_blocks


def block(name: str, *nodes: str) -> Block:
    return Block(name, nodes or (name,))


def test_a_saving_is_float_less_int8_over_the_nodes_that_have_both() -> None:
    sensitivities = [
        BlockSensitivity(block("a", "a1", "a2"), 0.1),
        BlockSensitivity(block("b"), 0.2),
    ]
    trades = weigh_blocks(sensitivities, {"a1": 1.0, "a2": 2.0}, {"a1": 3.0, "b": 9.0})
    assert [(t.noise, t.saving) for t in trades] == [(0.1, 2.0), (0.2, 0.0)]


def test_what_int8_slows_down_leaves_first_then_noise_for_time() -> None:
    trades = [
        BlockTrade(block("cheap"), noise=0.01, saving=1.0),
        BlockTrade(block("noisy"), noise=0.5, saving=1.0),
        BlockTrade(block("slow"), noise=0.001, saving=-0.1),
        BlockTrade(block("worthless"), noise=0.4, saving=0.1),
    ]
    by_worth, by_noise = orders_of_leaving(trades)
    assert [b.name for b in by_worth] == ["slow", "worthless", "noisy", "cheap"]
    assert [b.name for b in by_noise] == ["noisy", "worthless", "cheap", "slow"]


@pytest.mark.parametrize("needed", range(1, 8))
def test_the_fewest_that_pass_are_found(needed: int) -> None:
    order = [block(str(index)) for index in range(8)]
    asked: list[int] = []

    def passes(nodes: frozenset[str]) -> bool:
        asked.append(len(nodes))
        return len(nodes) >= needed

    found = find_fewest(order, passes, tries=10)
    assert found == {str(index) for index in range(needed)}
    assert len(asked) <= 3
    assert all(a != b for a, b in pairwise(sorted(asked)))


def test_where_nothing_passes_there_is_no_mix() -> None:
    order = [block(str(index)) for index in range(8)]
    assert find_fewest(order, lambda nodes: False, tries=10) is None


def test_one_block_alone_cannot_be_mixed() -> None:
    assert find_fewest([block("all")], lambda nodes: True, tries=10) is None


def test_questions_are_bounded() -> None:
    asked = []
    find_fewest([block(str(i)) for i in range(1000)], lambda n: bool(asked.append(n)), tries=3)
    assert len(asked) == 3

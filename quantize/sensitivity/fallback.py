"""Which blocks leave int8, in which order, when accuracy or speed asks for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import BlockSensitivity


@dataclass(frozen=True)
class BlockTrade:
    """What a block gives for being in int8, and what it takes.

    Attributes:
        noise: see `BlockSensitivity`.
        saving: seconds that int8 saves in it; negative where int8 is slower there.
    """

    block: Block
    noise: float
    saving: float


def weigh_blocks(
    sensitivities: Sequence[BlockSensitivity],
    int8_seconds: Mapping[str, float],
    float_seconds: Mapping[str, float],
) -> tuple[BlockTrade, ...]:
    """Join noise and time; seconds are by node name, and nodes without a time count nothing."""
    return tuple(
        BlockTrade(
            item.block,
            item.noise,
            sum(
                float_seconds[node] - int8_seconds[node]
                for node in item.block.nodes
                if node in float_seconds and node in int8_seconds
            ),
        )
        for item in sensitivities
    )


def orders_of_leaving(trades: Sequence[BlockTrade]) -> tuple[tuple[Block, ...], ...]:
    """Two orders to try: the cheapest way to less noise, and the shortest.

    In the first, those that int8 makes slower come first, then the others by noise for the second
    that they save; it leaves a block for last that saves much, however noisy. The second is by
    noise alone.
    """

    def worth(trade: BlockTrade) -> tuple[bool, float]:
        slower = trade.saving <= 0
        return slower, trade.noise if slower else trade.noise / trade.saving

    by_worth = sorted(trades, key=worth, reverse=True)
    by_noise = sorted(trades, key=lambda trade: -trade.noise)
    return tuple(tuple(trade.block for trade in order) for order in (by_worth, by_noise))


def find_fewest(
    order: Sequence[Block], passes: Callable[[frozenset[str]], bool], *, tries: int
) -> frozenset[str] | None:
    """The nodes of the shortest run of `order` that must leave int8 for `passes` to hold.

    Bisects, on the belief that what passes with few passes with more; at most `tries` questions.
    None where nothing that leaves anything in int8 passes.
    """
    low, high = 0, len(order)  # low fails, as is known; high is all of them, hence no int8 left
    best: frozenset[str] | None = None
    while high - low > 1 and tries > 0:
        middle = (low + high) // 2
        nodes = frozenset(node for block in order[:middle] for node in block.nodes)
        tries -= 1
        if passes(nodes):
            high, best = middle, nodes
        else:
            low = middle
    return best

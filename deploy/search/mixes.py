"""Which mixes of int8 and float are tried for their speed, and which of them is kept."""

from collections.abc import Callable, Sequence

from export.errors import DeployError
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.fallback import BlockTrade


def choose_mix(
    proposals: Sequence[tuple[Block, ...]],
    wins: Callable[[frozenset[str]], bool],
    skip: Callable[[DeployError], None],
) -> frozenset[str]:
    """The nodes that are float in the best mix; none where no mix is better than all in int8.

    Args:
        proposals: blocks that change sides, one after the other, in the best mix so far.
        wins: whether a mix with these nodes in float is better than that one.
        skip: told why a mix could not be made or run; those after it are tried all the same.
    """
    kept: frozenset[str] = frozenset()
    for blocks in proposals:
        nodes = kept ^ frozenset(node for block in blocks for node in block.nodes)
        try:
            kept = nodes if wins(nodes) else kept
        except DeployError as error:
            skip(error)
    return kept


def propose_mixes(trades: Sequence[BlockTrade]) -> list[tuple[Block, ...]]:
    """First all blocks that int8 slows down leave it; then one block at a time changes sides.

    Those whose saving is nearest to nothing come first: borders between precisions cost time, which
    the times of single layers do not show.
    """
    slower = tuple(trade.block for trade in trades if trade.saving < 0)
    nearest = sorted(trades, key=lambda trade: abs(trade.saving))
    return [slower, *((trade.block,) for trade in nearest)]

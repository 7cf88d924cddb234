"""Layers grouped into blocks, by the user's own module paths.

A search over blocks takes a fraction of the time of one over layers, and a border between two
precisions costs time, so blocks are what precision is chosen for.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Layers that share their precision.

    Attributes:
        name: the module path that they share, or those of the first and last of them.
        nodes: names of their nodes, in graph order.
    """

    name: str
    nodes: tuple[str, ...]


def group_blocks(layers: Iterable[tuple[str, str]], limit: int) -> tuple[Block, ...]:
    """At most `limit` blocks of the layers, in graph order.

    Args:
        layers: (node name, module path) in graph order.
        limit: at least 1.

    Starts from all layers as one and splits the block with the most layers by the next part of
    its paths, as long as the limit holds. Blocks that share no path further down (a flat list of
    layers) are split into stretches of equal length.
    """
    blocks = [_Stretch(tuple(layers), 0)] if (layers := tuple(layers)) else []
    while True:
        for block in sorted(blocks, key=lambda block: -len(block.layers)):
            parts = block.split(limit - len(blocks) + 1)
            if len(parts) > 1:
                break
        else:
            return tuple(Block(_name(block, layers), block.nodes()) for block in blocks)
        where = blocks.index(block)
        blocks[where : where + 1] = parts


@dataclass(frozen=True)
class _Stretch:
    """Neighbouring layers whose paths agree in their first `depth` parts."""

    layers: tuple[tuple[str, str], ...]
    depth: int

    def nodes(self) -> tuple[str, ...]:
        return tuple(node for node, _ in self.layers)

    def split(self, room: int) -> list["_Stretch"]:
        """The parts one level down, at most `room` of them; itself where there is no way."""
        if len(self.layers) < 2 or room < 2:
            return [self]
        depth = max(self.depth, len(_shared_parts([path for _, path in self.layers])))
        parts = _split_by_part(self.layers, depth)
        if 1 < len(parts) <= room:
            return [_Stretch(part, depth + 1) for part in parts]
        size = -(-len(self.layers) // room)
        starts = range(0, len(self.layers), size)
        return [_Stretch(self.layers[start : start + size], depth) for start in starts]


def _name(block: _Stretch, layers: tuple[tuple[str, str], ...]) -> str:
    """The path that is the block's alone, or those of its first and last layer."""
    shared = _shared_parts([path for _, path in block.layers])
    under = sum(tuple(path.split("."))[: len(shared)] == shared for _, path in layers)
    if shared and under == len(block.layers):
        return ".".join(shared)
    first, last = block.layers[0][1], block.layers[-1][1]
    return first if first == last else f"{first} to {last}"


def _shared_parts(paths: list[str]) -> tuple[str, ...]:
    """The leading parts in which all paths agree."""
    shared: list[str] = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return tuple(shared)


def _split_by_part(
    layers: tuple[tuple[str, str], ...], depth: int
) -> list[tuple[tuple[str, str], ...]]:
    """Neighbours whose paths agree in the part at `depth`, together."""
    parts: list[list[tuple[str, str]]] = []
    last: str | None = None
    for layer in layers:
        pieces = layer[1].split(".")
        key = pieces[depth] if depth < len(pieces) else ""
        if not parts or key != last:
            parts.append([])
        parts[-1].append(layer)
        last = key
    return [tuple(part) for part in parts]

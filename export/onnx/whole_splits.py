"""Splits into one part, which are what they split.

The exporter fails at such a split of an open axis, as of a batch into virtual batches; of a known
one it writes a ``Split`` that copies.
"""

import torch

from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_SPLITS = frozenset(
    {
        aten.chunk.default,
        aten.split.Tensor,
        aten.split.sizes,
        aten.split_with_sizes.default,
        aten.unsafe_chunk.default,
        aten.unsafe_split.Tensor,
        aten.unsafe_split_with_sizes.default,
    }
)


def drop_whole_splits(draft: Draft) -> bool:
    """Whether there was a split into one part."""
    whole = [n for n in draft.graph.nodes if n.target in _SPLITS and len(n.meta["val"]) == 1]
    for node in whole:
        for part in list(node.users):
            draft.erase(part, read_argument(node, "self"))
        draft.graph.erase_node(node)
    return bool(whole)

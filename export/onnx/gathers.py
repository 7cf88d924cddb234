"""Values that are gathered by fewer places than there are, along the axes that are not gathered.

torch takes the first of those, as ONNX Runtime does; OpenVINO refuses such a ``GatherElements``.
"""

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten


def narrow_gathered(draft: Draft) -> bool:
    """Whether there were some: what is gathered has as many places now."""
    done = False
    for node in [n for n in draft.graph.nodes if n.target is aten.gather.default]:
        done |= _narrow(draft, node)
    return done


def _narrow(draft: Draft, node: fx.Node) -> bool:
    value, index = read_argument(node, "self"), read_argument(node, "index")
    sizes, places = (read.meta["val"].shape for read in (value, index))
    along = read_argument(node, "dim") % max(len(sizes), 1)
    narrowed = value
    with draft.graph.inserting_before(node):
        for axis, (size, count) in enumerate(zip(sizes, places, strict=True)):
            known = isinstance(size, int) and isinstance(count, int)
            if axis != along and known and count < size:
                narrowed = add_call(node, aten.slice.Tensor, narrowed, axis, 0, count)
    node.replace_input_with(value, narrowed)
    return narrowed is not value

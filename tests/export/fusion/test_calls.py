"""Calls that are put into a captured graph."""

import pytest
import torch
from torch import nn

from export.capture.program import capture
from export.fusion.calls import add_call
from export.fusion.draft import Draft

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "arguments", "sizes"),
    [
        (aten.constant_pad_nd.default, ([0, 3],), (5, 10)),
        (aten.pad.default, ([1, 1],), (5, 9)),
        (aten.slice.Tensor, (-1, 0, 4), (5, 4)),
        (aten.unflatten.int, (-1, [-1, 7]), (5, 1, 7)),
    ],
    ids=["pad with zeros", "pad", "slice", "unflatten"],
)
def test_an_open_batch_stays_open_and_free(target, arguments, sizes):
    program = capture(nn.ReLU(), {"x": torch.randn(5, 7)}, keyword=False, dynamic_batch=True)
    draft = Draft(program)
    (place,) = (node for node in draft.graph.nodes if node.target is aten.relu.default)
    with draft.graph.inserting_after(place):
        made = add_call(place, target, place, *arguments)
    batch, *others = made.meta["val"].shape
    assert not isinstance(batch, int)
    assert batch.node.hint == sizes[0]
    assert tuple(others) == sizes[1:]
    assert place.meta["val"].shape[0].node.expr == batch.node.expr

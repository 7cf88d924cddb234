"""Where OpenVINO drops a slice and refuses what it is left with.

OpenVINO 2026.4 takes away a Slice of the first places, along other axes than the gathered one, in
front of a GatherElements, since that reads no others; then it refuses that for its places, which
are fewer than what is gathered has: the boxes of the best scores of a detector. The first part of
a split stays.
"""

from typing import Any

import numpy as np

from export.optional import require


def gather_from_splits(model: Any) -> None:
    """Have `model` (of `openvino.Core.read_model`) gather so."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GatherElements":
            source = node.input_value(0).get_node()
            if source.get_type_name() == "Slice" and _takes_first_places(source):
                node.input(0).replace_source_output(_split(source))


def _takes_first_places(source: Any) -> bool:
    """Whether a slice is along one axis, whose first places it takes, as many as is known."""
    numbers = [source.input_value(place).get_node() for place in range(1, source.get_input_size())]
    if any(n.get_type_name() != "Constant" or n.get_data().size != 1 for n in numbers):
        return False
    start, _, step, *_ = (int(number.get_data().item()) for number in numbers)
    axis = _read_axis(source)
    whole, kept = (p.get_partial_shape()[axis] for p in (source.input_value(0), source.output(0)))
    return start == 0 and step == 1 and kept.is_static and kept != whole


def _split(source: Any) -> Any:
    """The first of two parts, which is what the slice `source` takes."""
    ops = require("openvino", extra="openvino").opset13
    axis = _read_axis(source)
    kept = source.output(0).get_partial_shape()[axis].get_length()
    parts = np.array([kept, -1], np.int64)
    return ops.variadic_split(source.input_value(0), np.int64(axis), parts).output(0)


def _read_axis(source: Any) -> int:
    if source.get_input_size() < 5:
        return 0
    rank = int(source.output(0).get_partial_shape().rank.get_length())
    return int(source.input_value(4).get_node().get_data().item()) % rank

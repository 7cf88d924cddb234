"""Where OpenVINO loses an axis that one token, or one part, was picked from.

In an int8 model OpenVINO 2026.4 moves the scales of a product's channels behind a Gather by one
number, which takes an axis away, and leaves the scales with as many axes as before. What comes out
has one axis too many: ``[1, batch, channels]`` of the last token behind a layer. What is picked as
a row of one, whose axis is then taken away, is right.
"""

from typing import Any

import numpy as np

from deploy.engines.openvino_nodes import put_in_place
from export.optional import require


def pick_rows_of_one(model: Any) -> None:
    """Have `model` (of `openvino.Core.read_model`) pick so; only quantized ones are changed."""
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        if node.get_type_name() == "Gather" and _picks_one_of_floats(node):
            _keep_axis(node)


def _picks_one_of_floats(node: Any) -> bool:
    computed = node.input_value(0).get_node().get_type_name() != "Constant"
    floats = node.output(0).get_element_type().is_real()
    return bool(computed and floats and node.input(1).get_partial_shape().rank == 0)


def _keep_axis(node: Any) -> None:
    ops = require("openvino", extra="openvino").opset13
    data, index, axis = node.input_values()
    row = ops.gather(data, ops.unsqueeze(index, np.int64(0)), axis)
    result = ops.squeeze(row, axis)
    put_in_place(node, result)

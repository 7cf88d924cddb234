"""Where OpenVINO joins a maximum or a minimum with the rounding to 8 bits behind it.

OpenVINO 2026.4 has the reduction write uint8 then, and keeps what it has found so far in those
bytes as well: the answers are wrong on CPUs with AVX2 and no AVX-512, of a global maximum pool
before a quantized layer for one. What nothing is joined with answers in float, which is right.
"""

from typing import Any

from export.optional import require

_EXTREMES = frozenset({"ReduceMax", "ReduceMin"})


def keep_extremes_apart(model: Any) -> None:
    """Have nothing joined with maxima and minima of `model` (of `openvino.Core.read_model`).

    Their readers get the larger of the value and itself, so that it has two. Models that are not
    quantized stay as they are.
    """
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        if node.get_type_name() in _EXTREMES and node.output(0).get_element_type().is_real():
            read_it_twice(node.output(0))


def read_it_twice(port: Any) -> None:
    """Have the readers of `port`, outputs aside, read the larger of it and itself."""
    ops = require("openvino", extra="openvino").opset13
    readers = port.get_target_inputs()
    apart = ops.maximum(port, port)
    for reader in readers:
        if reader.get_node().get_type_name() != "Result":  # outputs are known by its names
            reader.replace_source_output(apart.output(0))

"""Where OpenVINO orders equal values in another way than ONNX says.

Of equal values ONNX has the first come first, as ``argsort(stable=True)`` asks for. OpenVINO reads
TopK as one that may take them in any order, though it has one that keeps to theirs. Of n values and
the largest k that one takes n k steps: 300 of 8,400 scores of boxes 10 ms, in place of 0.2. So it
is taken where that is little, and of integers, among which equals are common.
"""

from typing import Any

from deploy.engines.openvino_nodes import put_in_place
from export.optional import require

_FEW_STEPS = 2**15


def keep_order_of_equals(model: Any) -> None:
    """Have sorted TopK of `model` (of `openvino.Core.read_model`) keep to it; see above which."""
    ops = require("openvino", extra="openvino").opset13
    for node in model.get_ordered_ops():
        if node.get_type_name() != "TopK":
            continue
        how = node.get_attributes()
        values, count = node.input_values()
        if how["sort"] != "value" or how.get("stable") or not _is_affordable(node, how["axis"]):
            continue
        kind = how["index_element_type"]
        made = ops.topk(values, count, how["axis"], how["mode"], "value", kind, stable=True)
        put_in_place(node, made)


def _is_affordable(node: Any, axis: int) -> bool:
    if node.input(0).get_element_type().is_integral():
        return True
    sizes = (node.input(0).get_partial_shape()[axis], node.output(0).get_partial_shape()[axis])
    known = all(size.is_static for size in sizes)
    return known and sizes[0].get_length() * sizes[1].get_length() <= _FEW_STEPS

"""Where OpenVINO divides integers as floats, so that remainders of large ones are wrong.

OpenVINO 2026.4 computes a remainder of integers, such as a hashed id modulo the rows of a table, in
float32: above 2^24 it is any number. Division is so as well, but the product and the difference
are of int32, and exact. So a quotient that is a little too small brings the number near to 0,
where the remainder is exact:

    q = x / n,    x mod n = (x - (q - q / 2^20) n) mod n
"""

from typing import Any

import numpy as np

from deploy.engines.openvino_nodes import put_in_place
from export.optional import require

_REMAINDERS = frozenset({"FloorMod", "Mod"})
_BYTES = 4
_LARGEST = 2**22
"""What divides by more stays as it is: what is left is too large for float32."""
_PART = 2**20
"""Of the quotient this part is more than float32 may have added to it."""


def compute_exact_remainders(model: Any) -> bool:
    """Rewrite those of `model` (of `openvino.Core.read_model`); whether there is any."""
    found = [node for node in model.get_ordered_ops() if _is_of_integers(node)]
    for node in found:
        _bring_near(node)
    return bool(found)


def _is_of_integers(node: Any) -> bool:
    kind = node.output(0).get_element_type()
    large = kind.is_integral() and kind.size >= _BYTES  # float32 has all of smaller ones
    if node.get_type_name() not in _REMAINDERS or not large:
        return False
    divisor = node.input_value(1).get_node()
    if divisor.get_type_name() != "Constant":
        return False
    values = np.asarray(divisor.get_data())
    return bool(values.size and (values > 0).all() and (values <= _LARGEST).all())


def _bring_near(node: Any) -> None:
    ops = require("openvino", extra="openvino").opset13
    number, divisor = node.input_values()
    kind = number.get_element_type().to_dtype()
    quotient = ops.divide(number, divisor)
    less = ops.subtract(quotient, ops.divide(quotient, ops.constant(np.array(_PART, kind))))
    near = ops.subtract(number, ops.multiply(less, divisor))
    if node.get_type_name() == "FloorMod":
        node.input(0).replace_source_output(near.output(0))
        return
    # A small quotient may be rounded up, and what is left has the other sign then.
    rest = ops.floor_mod(near, divisor)
    zero = ops.constant(np.array(0, kind))
    below = ops.logical_and(ops.less(number, zero), ops.greater(rest, zero))
    result = ops.select(below, ops.subtract(rest, divisor), rest)
    put_in_place(node, result)

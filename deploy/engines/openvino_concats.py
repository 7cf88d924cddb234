"""Where OpenVINO refuses tokens of several scales that are put one behind another.

In an int8 model OpenVINO 2026.4 moves the scales of what is concatenated behind the concatenation,
where each token has that of its part, and then behind the product that reads it, where they do not
fit: a class token before others, or a stack of steps, ends in an error when it is compiled.
"""

from typing import Any

from deploy.engines.openvino_extremes import read_it_twice

_TOKENS = 1
"""Their axis, of three."""
_QUANTIZE = frozenset({"FakeQuantize", "Convert", "Subtract", "Multiply"})
"""What a pair of QuantizeLinear and DequantizeLinear is read as."""


def keep_tokens_apart(model: Any) -> None:
    """Have no scale go past such concatenations of `model` (of `openvino.Core.read_model`).

    Models that are not quantized stay as they are.
    """
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        if node.get_type_name() == "Concat" and _joins_tokens(node) and _meets_product(node):
            read_it_twice(node.output(0))


def _joins_tokens(node: Any) -> bool:
    port = node.output(0)
    three = port.get_partial_shape().rank == _TOKENS + 2
    axis = node.get_attributes()["axis"] % (_TOKENS + 2)
    return bool(three and port.get_element_type().is_real() and axis == _TOKENS)


def _meets_product(node: Any) -> bool:
    """Whether a product reads it, as it is or as it is quantized."""
    readers = [port.get_node() for port in node.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() == "MatMul"
        or (reader.get_type_name() in _QUANTIZE and _meets_product(reader))
        for reader in readers
    )

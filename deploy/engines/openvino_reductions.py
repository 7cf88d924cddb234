"""Where OpenVINO joins a reduction with constants of channels, and takes the wrong ones.

OpenVINO 2026.4 computes a scale or a shift of several values, such as a norm's, within the
reduction before it, activations in between as well. Behind one over the last axis of three, as the
global pool of a signal has it, the answers of all samples but the first are wrong. Over the last
two axes of four they are right. In an int8 model the scales of channels come to lie there by
themselves, when it is compiled. There a reduction over axes before the channels, as the mean of
tokens is, takes them for other channels where it drops its axes: ``(x * scale).mean(1)`` came out
36 dB below its answer. With its axes, which are dropped behind it, it is right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.engines.openvino_nodes import put_in_place
from export.optional import require

_REDUCTIONS = {
    "ReduceMean": "reduce_mean",
    "ReduceSum": "reduce_sum",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
    "ReduceL1": "reduce_l1",
    "ReduceL2": "reduce_l2",
}
"""As OpenVINO's graphs and its Python functions call them."""
_ONLY_RESHAPE = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_JOINED = frozenset(
    {"Abs", "Add", "Ceiling", "Clamp", "Convert", "Divide", "Elu", "Erf", "Exp", "Floor", "Gelu"}
    | {"HSigmoid", "HSwish", "Identity", "Maximum", "Minimum", "Mish", "Multiply", "Negative"}
    | {"PRelu", "Power", "Relu", "Round", "Sigmoid", "SoftPlus", "Sqrt", "Subtract", "Swish"}
    | {"Tanh"}
)
"""What may stand between the reduction and the constants."""
_LAST = 2


def reduce_in_four_axes(model: Any) -> None:
    """Have `model` (of `openvino.Core.read_model`) reduce two axes of four where that is so."""
    nodes = model.get_ordered_ops()
    quantized = _holds_codes(nodes)
    for node in nodes:
        if _reduces_last_of_three(node) and (
            _meets_constant(node) or (quantized and not _is_of_a_norm(node))
        ):
            _add_axis(node)


def keep_axes_beside_codes(model: Any) -> None:
    """Have the reductions of an int8 `model` keep their axes, and drop them behind."""
    nodes = model.get_ordered_ops()
    for node in nodes if _holds_codes(nodes) else ():
        if _drops_axes(node):
            _squeeze_behind(node)


def _holds_codes(nodes: Sequence[Any]) -> bool:
    return any(node.get_type_name() == "FakeQuantize" for node in nodes)


def _drops_axes(node: Any) -> bool:
    """Whether it is a reduction of floats that drops axes, known ones."""
    return (
        node.get_type_name() in _REDUCTIONS
        and not node.get_attributes()["keep_dims"]
        and node.output(0).get_element_type().is_real()
        and node.input_value(1).get_node().get_type_name() == "Constant"
    )


def _squeeze_behind(node: Any) -> None:
    ops = require("openvino", extra="openvino").opset13
    source, axes = node.input_values()
    kept = getattr(ops, _REDUCTIONS[node.get_type_name()])(source, axes, keep_dims=True)
    put_in_place(node, ops.squeeze(kept, axes))


def _reduces_last_of_three(node: Any) -> bool:
    shape = node.input(0).get_partial_shape() if node.get_type_name() in _REDUCTIONS else None
    if shape is None or shape.rank != _LAST + 1:
        return False
    axes = node.input_value(1).get_node()
    if axes.get_type_name() == "Constant":
        return [int(axis) % (_LAST + 1) for axis in axes.get_data().reshape(-1)] == [_LAST]
    reduced = node.output(0).get_partial_shape()  # of a global pool, whose axes are computed
    return bool(reduced.rank == _LAST + 1 and reduced[1] == shape[1] and reduced[_LAST] == 1)


def _meets_constant(node: Any) -> bool:
    """Whether what comes out meets a constant of several values, shapes and activations aside."""
    waiting, seen = [node], set()
    while waiting:
        for port in waiting.pop().output(0).get_target_inputs():
            reader = port.get_node()
            if reader.get_type_name() not in _ONLY_RESHAPE:
                if any(_holds_several(value.get_node()) for value in reader.input_values()):
                    return True
                if not _is_joined(reader, port):
                    continue
            if reader.get_name() not in seen:
                seen.add(reader.get_name())
                waiting.append(reader)
    return False


def _is_of_a_norm(node: Any) -> bool:
    """Whether it is the mean, or that of the squares, of a norm, which OpenVINO joins otherwise."""
    source = node.input_value(0)
    sources = [value.get_node() for value in source.get_node().input_values()]
    kind = source.get_node().get_type_name()
    if kind == "Power" or (kind == "Multiply" and sources[0] == sources[1]):
        return True
    readers = [port.get_node() for port in node.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() == "Subtract" and source in reader.input_values()
        for reader in readers
    )


def _is_joined(reader: Any, port: Any) -> bool:
    """Whether a reader works on each value, and so goes into the reduction as well.

    What stretches the reduced axis again, as the norm of each token does, is not.
    """
    kept = reader.output(0).get_partial_shape() == port.get_partial_shape()
    return bool(reader.get_type_name() in _JOINED and kept)


def _holds_several(node: Any) -> bool:
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant" and node.get_data().size > 1)


def _add_axis(node: Any) -> None:
    ops = require("openvino", extra="openvino").opset13
    kept = bool(node.get_attributes()["keep_dims"])
    both = np.array([_LAST, _LAST + 1], np.int64)
    raised = ops.unsqueeze(node.input_value(0), np.int64(_LAST))
    result = getattr(ops, _REDUCTIONS[node.get_type_name()])(raised, both, keep_dims=True)
    result = ops.squeeze(result, both[1:] if kept else both)
    put_in_place(node, result)

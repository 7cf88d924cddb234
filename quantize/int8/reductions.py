"""Reductions that keep their axes, and a Squeeze behind them that drops these."""

import numpy as np
import onnx
from onnx import NodeProto, helper

from export.onnx.graph import attribute, is_standard
from export.onnx.tensor_types import float_tensors
from quantize.editing import GraphEdit


def keep_reduced_axes(model: onnx.ModelProto) -> None:
    """Rewrite every float reduction of `model` that drops axes, in place; the values stay.

    OpenVINO (2026.4 on x86) computes in one kernel with a reduction what follows it by channel: a
    factor or a summand, which it also takes from before the reduction to behind it, and the scale
    of a quantization. Where axes before the channels are dropped it takes these for other channels
    (``(x * scale).mean(1)`` of tokens in int8: 36 dB below its answer). Without codes behind it, in
    float32, the same is right.
    """
    floats = set(float_tensors(model))
    edit = GraphEdit(model)
    for number, node in enumerate(edit.graph.nodes):
        reduces = node.op_type.startswith("Reduce") and is_standard(node)
        if not reduces or attribute(node, "keepdims", 1) or node.output[0] not in floats:
            continue
        axes = _find_axes(edit, node)
        if axes is None:
            continue
        kept = NodeProto()
        kept.CopyFrom(node)
        kept.output[0] = edit.name(f"{node.output[0]}_kept")
        next(item for item in kept.attribute if item.name == "keepdims").i = 1
        drop = helper.make_node(
            "Squeeze", [kept.output[0], axes], node.output, name=f"{node.name}_squeeze"
        )
        del kept.metadata_props[:]  # both get those of the node
        edit.replace(number, [kept, drop])
    edit.finish()


def _find_axes(edit: GraphEdit, node: NodeProto) -> str | None:
    """The tensor of the axes, of opset 18 on an input of the node; None where it drops them all."""
    if (axes := attribute(node, "axes", None)) is not None:
        return edit.store(f"{node.output[0]}_axes", np.asarray(axes, np.int64))
    return node.input[1] if len(node.input) > 1 and node.input[1] else None

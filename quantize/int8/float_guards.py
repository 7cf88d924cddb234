"""Keeps what is kept float in float, where the target would quantize its weights by itself.

ONNX Runtime's optimizer (weight_bias_quantization.cc) puts the weights of a float Conv,
ConvTranspose or Gemm that reads a DequantizeLinear with one scale into int8, all channels with one
scale, and says nothing; weights that it first folds to constants, as those behind a Transpose of a
stored tensor, are no exception. It leaves alone what reads a DequantizeLinear with a scale a
channel; the scales are the same, so the values are too.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.onnx.graph import GraphIndex, attribute, is_standard
from export.onnx.tensor_types import float_shapes
from quantize.editing import GraphEdit

_QUANTIZED_BY_THE_TARGET = frozenset({"Conv", "ConvTranspose", "Gemm"})


def count_input_channels(graph: GraphIndex) -> dict[int, int]:
    """Size of axis 1 of the input of every Conv, ConvTranspose and Gemm; 1 where it is not known.

    By the weights that are stored; else by shape inference.
    """
    counts: dict[int, int] = {}
    shapes: Mapping[str, tuple[int | None, ...]] | None = None
    for number, node in enumerate(graph.nodes):
        if node.op_type not in _QUANTIZED_BY_THE_TARGET or not is_standard(node):
            continue
        weight = graph.constant(node.input[1])
        if weight is not None and not attribute(node, "transA", 0):
            counts[number] = _input_channels(node, weight)
            continue
        shapes = float_shapes(graph.model) if shapes is None else shapes
        shape = shapes.get(node.input[0], ())
        counts[number] = (shape[1] if len(shape) > 1 else None) or 1
    return counts


def guard_float_layers(
    edit: GraphEdit,
    int8: Collection[int],
    pair: tuple[NodeProto, NodeProto],
    parameters: tuple[np.ndarray, np.ndarray],
    channels: Mapping[int, int],
) -> Iterator[NodeProto]:
    """Move the float layers behind one Q/DQ pair to a DequantizeLinear with a scale a channel.

    A tensor of one channel cannot be told apart from one with one scale; its float layers read it
    as it was before it was quantized.

    Args:
        edit: of the graph; the inputs of its float layers are changed.
        int8: numbers of the nodes that run in int8.
        pair: the QuantizeLinear and the DequantizeLinear of a tensor.
        parameters: their scale and zero point, of one value each.
        channels: from `count_input_channels`, of the graph as it was.

    Yields:
        Nodes to stand behind the pair, one for every number of channels.
    """
    quantize, dequantize = pair
    (result,) = dequantize.output
    guards: dict[int, str] = {}
    for number, count in channels.items():
        node = edit.graph.nodes[number]
        if number in int8 or node.input[0] != result:
            continue
        if count == 1:
            node.input[0] = quantize.input[0]
            continue
        if count not in guards:
            guards[count] = edit.name(f"{quantize.input[0]}_dequantized_by_channel")
            inputs = [dequantize.input[0]]
            for name, value in zip(dequantize.input[1:], parameters, strict=True):
                inputs.append(edit.store(f"{name}_by_channel", np.full(count, value)))
            yield helper.make_node(
                "DequantizeLinear",
                inputs,
                [guards[count]],
                name=f"{guards[count]}_DequantizeLinear",
                axis=1,
            )
        node.input[0] = guards[count]


def _input_channels(node: NodeProto, weight: TensorProto) -> int:
    """Size of axis 1 of the input of a Conv, ConvTranspose or Gemm."""
    if node.op_type == "Gemm":
        return int(weight.dims[1 if attribute(node, "transB", 0) else 0])
    if node.op_type == "ConvTranspose":
        return int(weight.dims[0])
    return int(weight.dims[1] * attribute(node, "group", 1))

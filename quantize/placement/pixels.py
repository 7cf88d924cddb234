"""uint8 images are codes already: scale 1, zero point 0, and nothing to round.

Where a graph casts a uint8 input to float for a layer that runs in int8, the layer can read the
very bytes. What only moves them (Transpose) is done to the bytes too.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import GraphIndex, attribute, is_standard
from quantize.editing import GraphEdit

SCALE, ZERO_POINT = np.float32(1), 0
"""The codes of pixels: their values."""


def find_pixels(graph: GraphIndex, tensor: str) -> tuple[str, tuple[NodeProto, ...]] | None:
    """The uint8 input that float `tensor` is a cast of, and the nodes that move it; or None."""
    moves: list[NodeProto] = []
    cast = False
    while tensor in graph.producer:
        node = graph.nodes[graph.producer[tensor]]
        if not is_standard(node) or node.op_type not in ("Cast", "Transpose"):
            return None
        if node.op_type == "Transpose":
            moves.append(node)
        elif cast or attribute(node, "to", 0) != TensorProto.FLOAT:
            return None
        else:
            cast = True
        tensor = node.input[0]
    return (tensor, tuple(moves[::-1])) if cast and tensor in graph.uint8_inputs else None


def move_bytes(source: str, moves: Sequence[NodeProto], result: str) -> list[NodeProto]:
    """Nodes that do to the uint8 input `source` what `moves` do to its floats, up to `result`.

    Names are made from that of `result`, which is new in its graph.
    """
    nodes: list[NodeProto] = []
    for number, move in enumerate(moves):
        node = NodeProto()
        node.CopyFrom(move)
        node.name = f"{move.name or move.output[0]}_bytes"
        node.input[0] = nodes[-1].output[0] if nodes else source
        node.output[0] = result if number == len(moves) - 1 else f"{result}_{number}"
        nodes.append(node)
    return nodes


def shift_by_planes(model: onnx.ModelProto) -> None:
    """A constant a channel that is taken from images → BatchNormalization with that mean.

    The values are the same to the last bit. ONNX Runtime moves the Transpose behind a Sub to the
    integer convolution, where the two cancel; the Sub then runs over 3 values at a time, which took
    1.5 ms of 224x224 where a plane at a time takes 0.03 (ONNX Runtime 1.32). It moves nothing past
    a BatchNormalization.
    """
    edit = GraphEdit(model)
    for number, node in enumerate(edit.graph.nodes):
        if node.op_type != "Sub" or not is_standard(node):
            continue
        found, shift = find_pixels(edit.graph, node.input[0]), edit.graph.constant(node.input[1])
        if found is None or shift is None or len(found[1]) != 1:
            continue
        mean = numpy_helper.to_array(shift)
        by_channel = mean.ndim in (3, 4) and mean.size == mean.shape[-3] > 1
        if not by_channel or mean.size != _count_channels(model, found[0], found[1][0]):
            continue  # one number for all channels takes no longer in either layout
        ones, zeros = np.ones(mean.size, np.float32), np.zeros(mean.size, np.float32)
        values = {"scale": ones, "bias": zeros, "mean": mean.reshape(-1), "variance": ones}
        stored = [edit.store(f"{node.output[0]}_{name}", value) for name, value in values.items()]
        inputs, kind = [node.input[0], *stored], "BatchNormalization"
        edit.replace(
            number, [helper.make_node(kind, inputs, node.output, name=node.name, epsilon=0.0)]
        )
    edit.finish()


def _count_channels(model: onnx.ModelProto, image: str, move: NodeProto) -> int:
    """Of the input `image` behind its Transpose `move`; 0 where that is not known."""
    (value,) = (item for item in model.graph.input if item.name == image)
    dims, order = value.type.tensor_type.shape.dim, attribute(move, "perm", [])
    return int(dims[order[1]].dim_value) if len(order) == len(dims) == 4 else 0


def drop_unread_casts(model: onnx.ModelProto) -> None:
    """Take away casts of uint8 inputs, and what moves their result, where nothing reads it now."""
    while True:
        graph = GraphIndex(model)
        unread = [
            node
            for node in graph.nodes
            if node.op_type in ("Cast", "Transpose")
            and not graph.readers[node.output[0]]
            and node.output[0] not in graph.outputs | graph.captured
            and find_pixels(graph, node.output[0]) is not None
        ]
        if not unread:
            return
        for node in unread:
            model.graph.node.remove(node)

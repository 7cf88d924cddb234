"""uint8 images are codes already: scale 1, zero point 0, and nothing to round.

Where a graph casts a uint8 input to float for a layer that runs in int8, the layer can read the
very bytes. What only moves them (Transpose) is done to the bytes too.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from export.graph import GraphIndex, attribute, is_standard

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

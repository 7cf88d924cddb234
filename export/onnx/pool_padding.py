"""Padding by minus infinity in front of a max pool → the padding of the pool itself.

Padding as TensorFlow has it ("same", more behind than before) is an operator of its own in torch,
whose pools pad both sides alike; ONNX's pools do not, and pad by minus infinity. As an operator it
would make a tensor with infinite values, which has no int8 code.
"""

import math

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import GraphIndex, attribute, is_standard


def fold_pool_padding(model: onnx.ModelProto) -> int:
    """Rewrite `model` in place where padding belongs to the max pools behind it; count these.

    Left alone is padding that somebody else reads too, by sizes that are computed or negative, of
    samples or channels, by so much that a window would have nothing else, and in front of a pool
    that rounds its size up or tells where it found the values. Every node that stays and every
    tensor that stays keeps its name.
    """
    graph, places = GraphIndex(model), 0
    done: list[NodeProto] = []
    for node in graph.nodes:
        pads = _read_padding(graph, node)
        name = node.output[0] if pads else ""
        pools = [graph.nodes[number] for number in graph.readers[name]] if pads else []
        if not pads or not pools or name in graph.outputs or name in graph.captured:
            continue
        wanted = [_add_to_own(pool, pads) for pool in pools]
        if None in wanted:
            continue
        for pool, sizes in zip(pools, wanted, strict=True):
            kept = [item for item in pool.attribute if item.name != "pads"]
            del pool.attribute[:]
            pool.attribute.extend([*kept, helper.make_attribute("pads", sizes)])
            pool.input[0] = node.input[0]
            places += 1
        done.append(node)
    if done:
        _drop(model, done)
    return places


def _read_padding(graph: GraphIndex, node: NodeProto) -> list[int] | None:
    """Sizes before all spatial axes and behind them, of padding by minus infinity."""
    if node.op_type != "Pad" or not is_standard(node) or len(node.input) != 3:
        return None
    sizes, value = (graph.constant(name) for name in list(node.input)[1:])
    if sizes is None or value is None or attribute(node, "mode", b"constant") != b"constant":
        return None
    if TensorProto.EXTERNAL in (sizes.data_location, value.data_location):
        return None
    pads = [int(size) for size in numpy_helper.to_array(sizes)]
    half = len(pads) // 2
    if float(numpy_helper.to_array(value).reshape(-1)[0]) != -math.inf or min(pads) < 0:
        return None
    outside = [*pads[:2], *pads[half : half + 2]]
    return None if any(outside) or half < 3 else [*pads[2:half], *pads[half + 2 :]]


def _add_to_own(pool: NodeProto, pads: list[int]) -> list[int] | None:
    """The padding of the pool with `pads` before it; None where the pool cannot take them over."""
    if pool.op_type != "MaxPool" or not is_standard(pool) or len(pool.output) > 1:
        return None
    automatic = attribute(pool, "auto_pad", b"NOTSET") != b"NOTSET"
    if automatic or attribute(pool, "ceil_mode", 0):
        return None
    own = attribute(pool, "pads", None) or [0] * len(pads)
    windows = [*attribute(pool, "kernel_shape", [])] * 2
    sums = [one + other for one, other in zip(own, pads, strict=True)]
    fits = all(size < window for size, window in zip(sums, windows, strict=True))
    return sums if fits else None


def _drop(model: onnx.ModelProto, nodes: list[NodeProto]) -> None:
    """Take `nodes` out, with the constants that only they read."""
    for node in nodes:
        model.graph.node.remove(node)
    graph = GraphIndex(model)
    for name in {name for node in nodes for name in list(node.input)[1:]}:
        if not graph.readers[name] and name not in graph.captured and name not in graph.outputs:
            for tensor in [t for t in model.graph.initializer if t.name == name]:
                model.graph.initializer.remove(tensor)

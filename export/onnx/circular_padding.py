"""Circular padding → slices of the tensor, put beside it.

OpenVINO and TensorRT have no Pad that wraps around; slices and concatenations they have, and none
of them computes anything.
"""

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import GraphIndex, attribute, is_standard

_END = 2**63 - 1
"""As ONNX writes the end of an axis."""


def write_out_circular_padding(model: onnx.ModelProto) -> int:
    """Rewrite `model` in place where a Pad wraps around by sizes that are known; count these.

    Sizes that are negative, and Pads in bodies of loops and branches, stay. The padded tensor keeps
    its name, and the last node of it that of the Pad.
    """
    graph, places = GraphIndex(model), 0
    written: list[NodeProto] = []
    for node in model.graph.node:
        pads = _read_pads(graph, node)
        if pads is None:
            written.append(node)
            continue
        written.extend(_write_out(model, node, pads))
        places += 1
    if places:
        del model.graph.node[:]
        model.graph.node.extend(written)
    return places


def _read_pads(graph: GraphIndex, node: NodeProto) -> dict[int, tuple[int, int]] | None:
    """Sizes before and behind each axis that has any; None where it is no such Pad."""
    if node.op_type != "Pad" or not is_standard(node) or attribute(node, "mode", b"") != b"wrap":
        return None
    stored = [graph.constant(name) if name else None for name in [*node.input, "", "", ""][1:4]]
    sizes, axes = stored[0], stored[2]
    named = len(node.input) > 3 and bool(node.input[3])
    if sizes is None or (named and axes is None):
        return None
    if any(each is not None and each.data_location == TensorProto.EXTERNAL for each in stored):
        return None
    pads = [int(size) for size in numpy_helper.to_array(sizes)]
    half = len(pads) // 2
    where = range(half) if axes is None else [int(axis) for axis in numpy_helper.to_array(axes)]
    found = {axis: (pads[i], pads[half + i]) for i, axis in enumerate(where)}
    return {axis: both for axis, both in found.items() if any(both)} if min(pads) >= 0 else None


def _write_out(
    model: onnx.ModelProto, node: NodeProto, pads: dict[int, tuple[int, int]]
) -> list[NodeProto]:
    name, source = node.output[0], node.input[0]
    nodes: list[NodeProto] = []
    stored: dict[int, TensorProto] = {}

    def store(value: int) -> str:
        constant = f"{name}_circular_{value}"
        stored[value] = helper.make_tensor(constant, TensorProto.INT64, [1], [value])
        return constant

    def cut(start: int, end: int, axis: int, part: str) -> str:
        result = f"{name}_{part}_{axis}"
        inputs = [source, store(start), store(end), store(axis)]
        nodes.append(helper.make_node("Slice", inputs, [result], name=result))
        return result

    for axis, (before, behind) in pads.items():
        parts = [cut(-before, _END, axis, "before")] if before else []
        parts.append(source)
        parts += [cut(0, behind, axis, "behind")] if behind else []
        source = f"{name}_along_{axis}"
        nodes.append(helper.make_node("Concat", parts, [source], name=source, axis=axis))
    if not nodes:
        nodes.append(helper.make_node("Identity", [source], [name]))
    model.graph.initializer.extend(stored.values())
    nodes[-1].output[0], nodes[-1].name = name, node.name
    for new in nodes:
        new.metadata_props.extend(node.metadata_props)
    return nodes

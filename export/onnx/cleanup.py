"""What the exporters leave behind, put in the form that engines want."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from export.artifacts import BATCH
from export.errors import ExportError

AxisNames = Mapping[str, Mapping[int, str]]
"""Names of axes by tensor and number of the axis."""


def name_axes(graph: ir.Graph, axes: AxisNames) -> None:
    """Give the inputs' dynamic axes their names wherever they stand.

    The leading ones are ``"batch"``; others have the names of `axes`.

    Raises:
        ExportError: an axis of `axes` has one size in the graph.
    """
    names: dict[str, str] = {}
    for value in graph.inputs:
        sizes = [] if value.shape is None else list(value.shape)
        wanted = axes.get(str(value.name), {})
        for axis, size in enumerate(sizes):
            name = BATCH if axis == 0 else wanted.get(axis)
            if name is not None and isinstance(size, ir.SymbolicDim):
                names[str(size.value)] = name
            elif axis in wanted:
                raise ExportError(
                    f"axis {axis} of input {str(value.name)!r} has the one size {size} in what was "
                    "captured. Give it this size in --input, or load the model in a form that "
                    "takes others."
                )
    if names:
        _rename(graph, names)


def name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Give the outputs their names, and what has one of these inside the graph another.

    A model that returns a dict may call an output as its own weight or as the exporter calls a
    value in between. An output that is an input, a weight or another output has an Identity before.
    """
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value in graph.outputs[:index]:
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += node.outputs
        for attribute in node.attributes.values():
            if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
                values += [
                    *attribute.as_graph().inputs,
                    *attribute.as_graph().initializers.values(),
                ]
    taken = {str(value.name) for value in values} | set(names)
    for value in values:
        if value.name in names and value not in graph.inputs:
            value.name = next(
                name for n in itertools.count(1) if (name := f"{value.name}_{n}") not in taken
            )
            taken.add(value.name)
    for value, name in zip(graph.outputs, names, strict=False):
        value.name = name


def store_split_constants(graph: ir.Graph) -> None:
    """Store the parts of a constant tensor that the graph splits, in place of the whole.

    So the projections of ``nn.MultiheadAttention`` have constant weights and biases each, as
    whatever looks for them expects; weights as they are multiplied, which the exporter turns behind
    the split. A matrix that is read elsewhere as well stays split; of a vector both are stored.
    """
    for whole in list(graph.initializers.values()):
        splits = [node for node in whole.consumers() if _can_be_stored(node, whole)]
        alike = {_measure_parts(node) for node in splits}
        read_elsewhere = len(whole.uses()) > len(splits) or whole.is_graph_output()
        if len(alike) != 1 or (read_elsewhere and len(whole.shape or ()) != 1):
            continue
        ((axis, sizes),) = alike
        _store_parts(graph, whole, splits, np.cumsum(sizes)[:-1], axis)
        if not read_elsewhere:
            graph.initializers.pop(str(whole.name))


def _can_be_stored(node: ir.Node, whole: ir.Value) -> bool:
    """Whether it splits `whole`, whose values are known, into parts whose sizes are."""
    if node.op_type != "Split" or node.domain != "" or node.graph is not whole.graph:
        return False
    static = all(part.shape is not None and part.shape.is_static() for part in node.outputs)
    return whole.const_value is not None and node.inputs[0] is whole and static


def _measure_parts(node: ir.Node) -> tuple[int, tuple[int, ...]]:
    """The axis of a Split, and the sizes of the parts along it."""
    axis = node.attributes.get_int("axis", 0)
    shapes = [part.shape.numpy() for part in node.outputs if part.shape is not None]
    return axis, tuple(shape[axis] for shape in shapes)


def _store_parts(
    graph: ir.Graph, whole: ir.Value, splits: Sequence[ir.Node], ends: Any, axis: int
) -> None:
    assert whole.const_value is not None
    parts = np.split(whole.const_value.numpy(), ends, axis)
    for index, part in enumerate(parts):
        name = f"{splits[0].outputs[index].name}_stored"
        stored = _store(graph, name, part, whole.type)
        for node in splits:
            node.outputs[index].replace_all_uses_with(stored, replace_graph_outputs=True)
        _store_turned(graph, stored, part)
    for node in splits:
        graph.remove(node, safe=True)


def _store_turned(graph: ir.Graph, stored: ir.Value, part: Any) -> None:
    """Store `stored` as all of its readers turn it, if they do, in its place."""
    readers = stored.consumers()
    orders = {tuple(reader.attributes.get_ints("perm", ())) for reader in readers}
    turned = all(reader.op_type == "Transpose" and reader.domain == "" for reader in readers)
    if not turned or len(orders) != 1 or stored.is_graph_output():
        return
    name = f"{stored.name}_turned"
    after = _store(graph, name, part.transpose(*orders.pop()), stored.type)
    for reader in readers:
        reader.outputs[0].replace_all_uses_with(after, replace_graph_outputs=True)
        graph.remove(reader, safe=True)
    graph.initializers.pop(str(stored.name))


def _store(graph: ir.Graph, name: str, array: Any, kind: ir.TypeProtocol | None) -> ir.Value:
    stored = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=kind,
        const_value=ir.tensor(np.ascontiguousarray(array), name=name),
    )
    graph.register_initializer(stored)
    return stored


def settle_squeezes(model: ir.Model) -> None:
    """Write down which axes each Squeeze takes: those of size 1 in what was captured.

    One without axes takes whatever is 1 when it runs, and so the batch of a lone sample as well.
    Shapes that the exporter left out are inferred; where one cannot be, its Squeeze stays. One
    whose axes are named may name wider ones, which torch leaves and ONNX refuses.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "Squeeze" and node.domain == "" and any(node.inputs[1:]):
            _leave_wide_axes(model.graph, node)
    inferred = False
    while nodes := [node for node in model.graph.all_nodes() if _takes_any_axis(node)]:
        settled = sum(_settle_squeeze(model.graph, node) for node in nodes)
        if not settled and inferred:
            return
        if not settled:
            ShapeInferencePass()(model)
        inferred = not settled


def _takes_any_axis(node: ir.Node) -> bool:
    return node.op_type == "Squeeze" and node.domain == "" and not any(node.inputs[1:])


def _settle_squeeze(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether the shape was known."""
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    if shape is None:
        return False
    _take_axes(graph, node, [axis for axis, size in enumerate(shape) if size == 1])
    return True


def _leave_wide_axes(graph: ir.Graph, node: ir.Node) -> None:
    """Take those of its axes alone that may be 1."""
    value, given = node.inputs[:2]
    named = None if given is None else ir.convenience.get_const_tensor(given)
    if value is None or value.shape is None or named is None:
        return
    axes = [int(axis) for axis in named.numpy().ravel()]
    sizes = [value.shape[axis] for axis in axes]
    kept = [
        axis
        for axis, size in zip(axes, sizes, strict=True)
        if size == 1 or not isinstance(size, int)
    ]
    if len(kept) < len(axes):
        _take_axes(graph, node, kept)


def _take_axes(graph: ir.Graph, node: ir.Node, taken: list[int]) -> None:
    """Have a Squeeze take these axes; none: it is no Squeeze."""
    axes = np.array(taken, np.int64)
    if not axes.size:
        node.resize_inputs(1)
        node.op_type = "Identity"
        return
    name = f"{node.outputs[0].name}_axes"
    value = ir.Value(
        name=name,
        shape=ir.Shape(axes.shape),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(axes, name=name),
    )
    graph.register_initializer(value)
    node.resize_inputs(2)
    node.replace_input_with(1, value)


def _rename(graph: ir.Graph, names: Mapping[str, str]) -> None:
    longest = sorted(names, key=len, reverse=True)  # 32*s3 goes before s3
    pattern = re.compile(rf"\b({'|'.join(re.escape(symbol) for symbol in longest)})\b")
    produced = [value for node in graph.all_nodes() for value in node.outputs]
    for value in {id(v): v for v in (*graph.inputs, *produced, *graph.outputs)}.values():
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                pattern.sub(lambda found: names[found[1]], str(dim.value))
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            ]
        )

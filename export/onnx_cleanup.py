"""What the exporters leave behind, put in the form that engines want."""

import re
from typing import Any

import onnx_ir as ir

from export.artifacts import BATCH

_POOLED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def name_batch_axis(graph: ir.Graph) -> None:
    """Give the inputs' dynamic leading axes the name ``"batch"`` wherever they stand."""
    symbols = set()
    for value in graph.inputs:
        if (
            value.shape is not None
            and len(value.shape)
            and isinstance(value.shape[0], ir.SymbolicDim)
        ):
            symbols.add(str(value.shape[0].value))
    if not symbols:
        return
    pattern = re.compile(rf"\b({'|'.join(re.escape(symbol) for symbol in symbols)})\b")
    produced = [value for node in graph.all_nodes() for value in node.outputs]
    for value in {id(v): v for v in (*graph.inputs, *produced, *graph.outputs)}.values():
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                pattern.sub(BATCH, str(dim.value))
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            ]
        )


def use_global_pooling(graph: ir.Graph) -> None:
    """Turn a mean over all spatial axes into GlobalAveragePool, which engines run in int8.

    ``AdaptiveAvgPool2d(1)`` leaves the exporter as ReduceMean. Without kept axes a Flatten follows.
    """
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "ReduceMean" and node.domain == "" else None
        if source is None or source.shape is None or len(source.shape) < 3:
            continue
        if source.dtype not in _POOLED:
            continue
        rank = len(source.shape)
        axes = _read_axes(node)
        if axes is None or {axis % rank for axis in axes} != set(range(2, rank)):
            continue
        keeps = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
        node.attributes.clear()
        if len(node.inputs) > 1:
            node.resize_inputs(1)
        if keeps:
            node.op_type = "GlobalAveragePool"
            continue
        pool = ir.node("GlobalAveragePool", [source], name=f"{node.name}_pool")
        pool.metadata_props.update(node.metadata_props)
        pool.outputs[0].name = f"{node.outputs[0].name}_pool"
        if source.dtype is not None:
            pool.outputs[0].dtype = source.dtype
        pool.outputs[0].shape = ir.Shape([*source.shape[:2], *[1] * (rank - 2)])
        graph.insert_before(node, pool)
        node.op_type = "Flatten"
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
        node.replace_input_with(0, pool.outputs[0])
    kept = {id(value) for value in graph.outputs}
    for name, value in list(graph.initializers.items()):
        if not value.uses() and id(value) not in kept:
            graph.initializers.pop(name)


def _read_axes(node: ir.Node) -> list[int] | None:
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    axes: Any = node.inputs[1] if len(node.inputs) > 1 else None
    constant = None if axes is None else ir.convenience.get_const_tensor(axes)
    return None if constant is None else [int(axis) for axis in constant.numpy().reshape(-1)]

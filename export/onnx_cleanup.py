"""What the exporters leave behind, put in the form that engines want."""

import re

import onnx_ir as ir

from export.artifacts import BATCH


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

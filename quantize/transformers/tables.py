"""Tables that are looked up by row, such as embeddings, as int8 with a scale a row.

``row = scale * codes``: only the rows that are looked up are ever converted, so it costs no time,
and a vocabulary is half of a small transformer's file.
"""

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import attribute, is_standard, name_node
from quantize.editing import GraphEdit
from quantize.int8.codes import SMALLEST_SCALE

MIN_ELEMENTS = 2**16
"""Below it a table stays float: there is nothing to save."""


def pack_tables(edit: GraphEdit) -> tuple[str, ...]:
    """Replace every Gather of rows of a large constant float32 matrix.

    Returns:
        Names of the nodes that were replaced.
    """
    packed: list[str] = []
    stored: dict[str, tuple[str, str]] = {}
    for number, node in enumerate(edit.graph.nodes):
        if node.op_type != "Gather" or not is_standard(node):
            continue
        tensor = edit.graph.constant(node.input[0])
        if tensor is None or attribute(node, "axis", 0) != 0 or not _is_worth_it(tensor):
            continue
        table = numpy_helper.to_array(tensor)
        if not np.isfinite(table).all():
            continue  # a row that nobody looks up may hold anything
        if node.input[0] not in stored:
            stored[node.input[0]] = _store(edit, node.input[0], table)
        edit.replace(number, _look_up(edit, node, *stored[node.input[0]]))
        packed.append(name_node(node))
    return tuple(packed)


def _is_worth_it(tensor: TensorProto) -> bool:
    matrix = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
    return matrix and int(np.prod(tensor.dims, dtype=np.int64)) >= MIN_ELEMENTS


def _store(edit: GraphEdit, name: str, table: np.ndarray) -> tuple[str, str]:
    """Names of the codes, [rows, width] int8, and of the scales, [rows, 1]."""
    scales = (np.abs(table).max(1, keepdims=True) / 127).astype(np.float32)
    scales = np.where(scales < SMALLEST_SCALE, np.float32(1), scales)
    codes = np.clip(np.rint(table / scales), -127, 127).astype(np.int8)
    return edit.store(f"{name}_quantized", codes), edit.store(f"{name}_scale", scales)


def _look_up(edit: GraphEdit, node: NodeProto, codes: str, scales: str) -> list[NodeProto]:
    name, result, rows = name_node(node), node.output[0], node.input[1]
    picked, wide, scale = (edit.name(f"{result}_{part}") for part in ("codes", "float", "scale"))
    return [
        helper.make_node("Gather", [codes, rows], [picked], name=f"{name}_codes", axis=0),
        helper.make_node("Cast", [picked], [wide], name=f"{name}_Cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, rows], [scale], name=f"{name}_scale", axis=0),
        helper.make_node("Mul", [wide, scale], [result], name=name),
    ]

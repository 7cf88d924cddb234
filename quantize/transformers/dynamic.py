"""MatMul and Gemm in int8 whose activations are quantized as they come: no calibration.

``y = (s_x * s_w) * ((x_q - z_x) @ w_q) + bias``: x is quantized to uint8 over its own range at
every call (DynamicQuantizeLinear), w once, to int8 with one scale an output channel. The product is
in integers (MatMulInteger). ONNX Runtime fuses the chain to one DynamicQuantizeMatMul. OpenVINO
computes it in float: it has its own form, see `quantize.transformers.weight_only`.

On x86 without VNNI, 16-bit sums of uint8 times int8 can saturate; VNNI sums in 32 bits.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from export.artifacts import OnnxModel
from export.errors import QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import name_node
from quantize.editing import GraphEdit
from quantize.int8.codes import weight_scales
from quantize.int8.insertion import Int8Result
from quantize.transformers.matmuls import ConstantMatMul, find_matmuls, read_weight

MIN_OPSET = 11
"""The first opset with DynamicQuantizeLinear."""


def quantize_dynamic(
    model: OnnxModel, path: Path, *, keep_float: Collection[str] = (), levels: int = 127
) -> Int8Result:
    """Write `model` with dynamic int8 products to `path`.

    Args:
        model: the float32 model; its file is not changed.
        path: the file to write; not `model.path`.
        keep_float: names of nodes that stay float.
        levels: codes of weights run from minus this to this; see `QuantScheme.weight_levels`.

    Raises:
        NothingToQuantizeError: no MatMul or Gemm has constant weights of some size.
        QuantizeError: the opset is below 11, weights hold NaN or infinity, an unknown name, or
            `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the int8 one elsewhere.")
    if model.opset < MIN_OPSET:
        raise QuantizeError(
            f"opset {model.opset} has no DynamicQuantizeLinear; export with opset {MIN_OPSET} or "
            "later"
        )
    proto = read_model(model.path)
    edit = GraphEdit(proto)
    matmuls = find_matmuls(edit.graph, what="int8", keep_float=keep_float)
    stored: dict[tuple[str, bool], tuple[str, str]] = {}
    quantized: dict[str, list[str]] = {}
    for use in matmuls.found:
        key, x = (use.weight, use.transposed), edit.graph.nodes[use.node].input[0]
        if key not in stored:
            stored[key] = _store_weights(edit, use, levels)
        head = []
        if x not in quantized:  # one quantization for all that read x, before the first of them
            node, quantized[x] = _quantize(edit, x)
            head.append(node)
        edit.replace(use.node, head + _multiply(edit, use, quantized[x], stored[key]))
    edit.finish()
    write_model(proto, path)
    names = (edit.graph.nodes[use.node] for use in matmuls.found)
    return Int8Result(
        replace(model, path=path),
        tuple(name_node(node) for node in names),
        tuple(matmuls.skipped),
    )


def _store_weights(edit: GraphEdit, use: ConstantMatMul, levels: int) -> tuple[str, str]:
    """Names of the codes, [K, N] int8, and of their scales, [N]."""
    weight = read_weight(edit.graph, use)
    scales = weight_scales(weight, 1, None, 1.0, levels=levels)
    codes = np.clip(np.rint(weight / scales), -levels, levels).astype(np.int8)
    return edit.store(f"{use.weight}_quantized", codes), edit.store(f"{use.weight}_scale", scales)


def _quantize(edit: GraphEdit, x: str) -> tuple[NodeProto, list[str]]:
    """The node that quantizes `x`, and the names of codes, scale and zero point."""
    names = [edit.name(f"{x}_{part}") for part in ("quantized", "scale", "zero_point")]
    node = helper.make_node("DynamicQuantizeLinear", [x], names, name=f"{names[0]}_Dynamic")
    return node, names


def _multiply(
    edit: GraphEdit, use: ConstantMatMul, x: list[str], weight: tuple[str, str]
) -> list[NodeProto]:
    """The chain in place of one product of quantized x and weights."""
    node = edit.graph.nodes[use.node]
    name, result = name_node(node), node.output[0]
    codes, scale, zero_point = x
    total, summed, unit = (edit.name(f"{result}_{part}") for part in ("sum", "float", "scale"))
    product = edit.name(f"{result}_product") if use.bias else result
    nodes = [
        helper.make_node("MatMulInteger", [codes, weight[0], zero_point], [total]),
        helper.make_node("Cast", [total], [summed], to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, weight[1]], [unit]),
        helper.make_node("Mul", [summed, unit], [product]),
    ]
    if use.bias:
        nodes.append(helper.make_node("Add", [product, use.bias], [result]))
    for number, part in enumerate(nodes):
        part.name = name if part is nodes[-1] else f"{name}_{part.op_type}{number}"
    return nodes
